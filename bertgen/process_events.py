"""Process events that engines and workers must handle: the end of the interpreter, and a fork."""

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


class Component(Protocol):
    """An object with threads or locks, which is notified of forks and of the end of the interpreter."""

    def after_fork(self) -> None:
        """Called in the child of a fork, where only this thread exists. Locks may be held by threads that are gone."""

    def before_exit(self) -> None:
        """Called before the interpreter ends. After this no other thread may run torch code."""


_components: weakref.WeakSet[Component] = weakref.WeakSet()
_registered = False
_forking_thread: int | None = None  # in the child of a fork, the thread that forked
_executor: ThreadPoolExecutor | None = None  # in the child of a fork, one thread that was started there


def register(component: Component) -> None:
    """Notify a component of forks and of the end of the interpreter, as long as the component exists."""
    global _registered
    if not _registered:  # with the first component: importing has no effects
        _registered = True
        atexit.register(_before_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_after_fork)
    _components.add(component)


def is_child() -> bool:
    """Whether this process is the fork of a process with registered components."""
    return _forking_thread is not None


def run(work: Callable[[], T]) -> T:
    """Run a function in a thread that can use torch's thread pool, and return its result.

    In the child of a fork, the thread that forked would wait forever for its pool, which exists in the parent only. A
    thread that is started in the child gets a new pool.
    """
    global _executor
    if _forking_thread != threading.get_ident() or torch.get_num_threads() == 1:
        return work()
    if _executor is None:
        _executor = ThreadPoolExecutor(1, "bertgen")
    return _executor.submit(work).result()


def _before_exit() -> None:
    for component in [*_components]:
        component.before_exit()


def _after_fork() -> None:
    global _forking_thread, _executor
    _forking_thread, _executor = threading.get_ident(), None
    for component in [*_components]:
        component.after_fork()
