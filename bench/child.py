"""Separate processes, for measurements that need a fresh or undisturbed process: peak memory, numbers of threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError
from typing import Any


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module-level function in a new process; its arguments and its result must be picklable."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class Child:
    """An object in a separate process, which ends with this process or with `close`.

    Args:
        make: a module-level function or class that makes the object; its arguments must be picklable.

    Attributes:
        limit: seconds after which a call ends the process and raises RuntimeError; None waits for any time.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        self.limit: float | None = None
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self._process: int | None = None
        self._last: Future[Any] = self._pool.submit(_make, make, *arguments)
        try:
            self._process = self._last.result()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object."""
        self._last = self._pool.submit(_call, method, *arguments)
        try:
            return self._last.result(self.limit)
        except TimeoutError:
            self._end()
            raise RuntimeError(f"stopped after {self.limit:.0f} s") from None

    def close(self) -> None:
        """End the process; a call that was interrupted is not waited for."""
        if not self._last.done():
            self._end()
        self._pool.shutdown()

    def _end(self) -> None:
        if self._process is not None:
            os.kill(self._process, signal.SIGTERM)


_made: list[Any] = []


def _make(make: Callable[..., Any], *arguments: Any) -> int:
    _made.append(make(*arguments))
    return os.getpid()


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_made[0], method)(*arguments)
