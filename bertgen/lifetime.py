"""The process that engines live in: it may end at any time, and it may be the child of a fork."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Inhabitant(Protocol):
    """What has to know of its process."""

    def forked(self) -> None:
        """This is the child of a fork: no thread but this one is there, and locks may be held by those that are not."""

    def ends(self) -> None:
        """The interpreter is about to end: from now on no other thread may be inside of torch."""


_inhabitants: weakref.WeakSet[Inhabitant] = weakref.WeakSet()
_registered = False
_forker: int | None = None  # in the child of a fork, the thread that forked
_hands: ThreadPoolExecutor | None = None  # there, a thread that did not


def inhabit(one: Inhabitant) -> None:
    """Tell something of the end of the process and of forks, as long as it is there."""
    global _registered
    if not _registered:  # with the first one, and not when this is imported
        _registered = True
        atexit.register(_end)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_fork)
    _inhabitants.add(one)


def is_child() -> bool:
    """Whether this is the child of a fork of a process that had inhabitants."""
    return _forker is not None


def run(work: Callable[[], T]) -> T:
    """What the work returns, done in a thread that can use torch's threads.

    Those of the thread that forks stay behind in the parent, and in the child it would wait for them for ever. A thread
    that begins in the child has its own.
    """
    global _hands
    if _forker != threading.get_ident() or torch.get_num_threads() == 1:
        return work()
    if _hands is None:
        _hands = ThreadPoolExecutor(1, "bertgen")
    return _hands.submit(work).result()


def _end() -> None:
    for one in [*_inhabitants]:
        one.ends()


def _fork() -> None:
    global _forker, _hands
    _forker, _hands = threading.get_ident(), None
    for one in [*_inhabitants]:
        one.forked()
