"""Several threads use one engine."""

import contextlib
import gc
import random
import sys
import threading
import time

import pytest
import torch

from bertgen.config import EngineConfig
from bertgen.engine import Engine
from tests.support.hostile import HOSTILE, PATIENCE, PROCESSORS, check_idle
from tests.support.made_up_model import Model, alone, requests, result


def test_threads_share_one_engine():
    """Eight threads submit and step; each gets its own outputs."""
    wanted = requests(random.Random(5), 160)
    expected = {request.number: alone(request) for request in wanted[:80]}
    engine, found = Engine(Model(), EngineConfig(max_rows=16)), {}

    def work(part):
        done = []
        engine.submit(part, done.append)
        while len(done) < len(part):
            engine.step()
        found.update({request.number: result(request) for request in done})

    threads = [threading.Thread(target=work, args=(wanted[i:80:8],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == expected and not engine.busy


@pytest.mark.parametrize("beams", [1, 3])
def test_the_state_of_the_stepping_thread_does_not_affect_requests(generator, texts, expected, beams):
    with generator.engine.lock:  # this thread drives
        futures = [generator.submit(text, num_beams=beams) for text in texts]
        with torch.autocast("cpu", torch.bfloat16):
            assert generator.generate([texts[0]], num_beams=beams)[0].text == expected[texts[0], beams]
    assert [future.result(PATIENCE).text for future in futures] == [expected[text, beams] for text in texts]


def test_a_thread_without_stack_left_fails_alone(generator, texts, expected):
    def deep(depth):
        return deep(depth - 1) if depth else generator.generate(["one"])

    seen = set()
    with generator.engine.lock:
        futures = [generator.submit(text) for text in texts]
        for depth in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit()):
            try:
                deep(depth)
            except RecursionError:
                seen.add("failed")
            else:
                seen.add("done")
    assert [future.result(PATIENCE).text for future in futures] == [expected[text, 1] for text in texts]
    assert "failed" in seen
    check_idle(generator)


@pytest.mark.timeout(300)
def test_threads_that_submit_cancel_and_abandon_at_random(generator, texts, expected):
    """Nothing hangs, and every waiting thread gets the right output."""
    wrong, stop = [], time.monotonic() + 4

    def work(seed):
        r = random.Random(seed)
        while time.monotonic() < stop:
            text, beams, what = r.choice(texts), r.choice([1, 3]), r.random()
            if what < 0.4:
                future = generator.submit(text, num_beams=beams)
                if r.random() < 0.4:
                    future.cancel()
                elif future.result(PATIENCE).text != expected[text, beams]:
                    wrong.append(text)
            elif what < 0.6:
                stream = generator.stream(r.sample(texts, 5), num_beams=beams)
                if next(stream)[1].text not in expected.values():
                    wrong.append(text)
                loop = [stream]
                loop.append(loop)
            elif what < 0.8:
                given, error = r.choice(HOSTILE[: len(PROCESSORS)])
                found = generator.submit(text, num_beams=beams, min_new_tokens=4, **given).exception(PATIENCE)
                if type(found) is not error:
                    wrong.append(found)
            elif what < 0.9:
                gc.collect(0)
            elif generator.generate([text], num_beams=beams)[0].text != expected[text, beams]:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "something hangs"
    assert not wrong
    gc.collect()
    with contextlib.suppress(StopIteration):
        next(generator.stream(["one"]))
    check_idle(generator)
