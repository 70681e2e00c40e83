"""Objects in processes of their own: calls that are stopped."""

from __future__ import annotations

import threading
import time

import pytest
from bertgen.bench.child import Child


def test_a_call_that_lasts_too_long_ends_the_process():
    child = Child(threading.Event)
    assert child.call("is_set") is False
    child.limit = 0.2
    with pytest.raises(RuntimeError, match="stopped after 0 s"):
        child.call("wait")
    with pytest.raises(RuntimeError):  # there is no process any more
        child.call("is_set")
    child.close()


def test_an_interrupted_call_is_not_waited_for():
    """Ctrl-C raises in the thread that waits for the result; `close` comes next."""
    child = Child(threading.Event)
    start = time.monotonic()
    threading.Timer(0.3, lambda: child.close()).start()
    with pytest.raises(RuntimeError):
        child.call("wait")
    assert time.monotonic() - start < 30
