"""The end of the interpreter, and forks, while requests are in flight."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.hostile import PATIENCE


def script(tmp_path, tiny_checkpoint, body, threads=1):
    """Run a script with a Generator; returns its exit code and what it wrote."""
    head = f"""
        import os, sys, threading, time
        import torch
        from bertgen import Generator, process_events
        torch.set_num_threads({threads})
        generator = Generator({str(tiny_checkpoint)!r}, max_rows=32)
        long = dict(min_new_tokens=30, max_new_tokens=38)
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    folder = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])}
    found = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False
    )
    return found.returncode, found.stdout + found.stderr


ENDS = {
    "futures that wait": ("f = [generator.submit('one two three', **long) for _ in range(200)]", 0),
    "futures in flight": (
        "f = [generator.submit('one', **long) for _ in range(200)]; time.sleep(0.05); sys.exit(3)", 3),
    "an error": ("f = [generator.submit('one', **long) for _ in range(200)]; raise ValueError('mine')", 1),
    "a stream": ("s = generator.stream(['one two'] * 80, **long); next(s)", 0),
    "a stream and an error": (
        "s = generator.stream(['one'] * 80, **long); next(s); f = generator.submit('two'); 1 / 0", 1),
    "a thread that drives": (
        "t = threading.Thread(target=generator.generate, args=(['one'] * 800,), kwargs=long, daemon=True);"
        "t.start(); time.sleep(0.1); sys.exit(5)", 5),
    "a thread that is waited for": (
        "t = threading.Thread(target=lambda: print(generator.generate(['one'])[0].text)); t.start()", 0),
    "a function that never returns": (
        "f = generator.submit('one', on_tokens=lambda _: threading.Event().wait()); time.sleep(0.1); sys.exit(4)", 4),
    "a slow step": (
        "f = [generator.submit('one two', logits_processor=[lambda h, s: time.sleep(0.3) or s]) for _ in range(9)];"
        "time.sleep(0.1); sys.exit(6)", 6),
    "what is done when it ends": (
        "import atexit; atexit.register(lambda: print(generator.generate(['one'])[0].text));"
        "f = [generator.submit('one two three', **long) for _ in range(200)]", 0),
    "what is submitted when it has ended": (  # by what was registered before the engine was made
        "import atexit; from bertgen import Generator;"
        "atexit.register(lambda: print(other.submit('one').result(60).text));"
        "atexit.unregister(process_events._before_exit);"
        "process_events._registered = False; other = Generator(generator.model, generator.tokenizer)", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_an_interpreter_may_end_at_any_time(tmp_path, tiny_checkpoint, name):
    body, code = ENDS[name]
    found, output = script(tmp_path, tiny_checkpoint, body)
    assert found == code, output
    assert "terminate called" not in output and "Fatal" not in output
    assert ("eins" in output) == ("print" in body)


def test_futures_fail_when_the_interpreter_ends(tmp_path, tiny_checkpoint):
    body = """
        futures = [generator.submit('one two three', **long) for _ in range(500)]
        futures[-1].add_done_callback(lambda future: print(repr(future.exception())))
    """
    code, output = script(tmp_path, tiny_checkpoint, body)
    assert code == 0 and "BackendError('the engine was cleared before this was done')" in output


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("busy", [False, True])
def test_a_child_of_a_fork_works(tmp_path, tiny_checkpoint, busy):
    """Also while torch has threads and a step runs; futures and streams of the parent are refused."""
    body = f"""
        import multiprocessing
        from bertgen import BackendError
        torch.randn(2000, 2000) @ torch.randn(2000, 2000)  # whose threads stay behind
        stream, go, began = generator.stream(['one'] * 80, **long), threading.Event(), threading.Event()
        next(stream)
        held = generator.submit('one', on_tokens=lambda _: began.set() or go.wait(60)) if {busy} else None
        assert held is None or began.wait(60)

        def refused(wait):
            try:
                wait()
            except BackendError as error:
                return 'this process is a fork of it' in str(error)

        def child(in_step):
            assert held is None or in_step or refused(held.result)
            assert in_step or refused(lambda: list(stream))
            assert generator.generate(['one'] * 40)[0].text == 'eins'
            assert generator.submit('two').result(60).text == 'zwei'
            assert generator.score(['two'] * 40, ['zwei'] * 40)[0].score > -1

        fork = multiprocessing.get_context('fork')
        children = [fork.Process(target=child, args=(i == 2,)) for i in range(3)]

        def inside(history, scores):  # a fork by the very thread that is in the step
            if history.shape[1] == 2:
                children[2].start()
            return scores

        children[0].start()
        children[1].start()
        go.set()
        assert generator.submit('one', logits_processor=[inside]).result(60).text == 'eins'
        for one in children:
            one.join(60)
        print([one.exitcode for one in children])
        for one in children:
            one.kill()
        assert held is None or held.result(60).text == 'eins'
    """
    code, output = script(tmp_path, tiny_checkpoint, body, threads=2)
    assert code == 0 and "[0, 0, 0]" in output, output
