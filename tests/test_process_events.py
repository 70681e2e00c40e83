"""Process events: components are notified of a fork and of the end of the interpreter, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

SETUP = """
    import os, threading, torch
    from bertgen import process_events

    class Component:
        def __init__(self, name):
            self.name = name

        def after_fork(self):
            print(f"{self.name} after fork in the {'child' if os.getpid() != parent else 'parent'}", flush=True)

        def before_exit(self):
            print(f"{self.name} before exit", flush=True)

    parent = os.getpid()
    component = Component("one")
"""


def run(code):
    """The lines that a process prints which runs SETUP and then the code."""
    script = textwrap.dedent(SETUP) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_registered_components_are_notified_before_the_interpreter_ends():
    assert run("process_events.register(component); print('the end')") == ["the end", "one before exit"]
    assert run("process_events.register(component); process_events.register(component)") == ["one before exit"]
    assert run("") == []


def test_a_component_that_is_gone_is_not_notified():
    assert run("process_events.register(component); del component") == []


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@needs_fork
def test_components_are_notified_in_the_child_only():
    code = """
        process_events.register(component)
        assert not process_events.is_child()
        child = os.fork()
        if child == 0:
            print(process_events.is_child(), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        assert not process_events.is_child()
    """
    assert run(code) == ["one after fork in the child", "True", "one before exit"]


@needs_fork
def test_work_runs_in_another_thread_only_in_the_thread_that_forked():
    code = """
        torch.set_num_threads(2)
        process_events.register(component)
        here = lambda: threading.get_ident()
        assert process_events.run(here) == here()
        child = os.fork()
        if child == 0:
            others = {process_events.run(here) for _ in range(3)}
            print(len(others), here() in others, flush=True)
            threads = []
            thread = threading.Thread(target=lambda: threads.append(process_events.run(here) == here()))
            thread.start()
            thread.join()
            torch.set_num_threads(1)  # without a pool the thread that forked does the work itself
            print(*threads, process_events.run(here) == here(), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """
    assert run(code) == ["one after fork in the child", "1 False", "True True", "one before exit"]


@needs_fork
def test_an_error_of_the_work_is_raised_in_the_thread_that_forked():
    code = """
        torch.set_num_threads(2)
        process_events.register(component)
        child = os.fork()
        if child == 0:
            try:
                process_events.run(lambda: 1 / 0)
            except ZeroDivisionError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """
    assert run(code)[1] == "division by zero"
