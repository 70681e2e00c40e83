"""Separate processes, for measurements that need a fresh or undisturbed process: peak memory, numbers of threads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module-level function in a new process; its arguments and its result must be picklable."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class Child:
    """An object in a separate process, which ends with this process or with `close`.

    Args:
        make: a module-level function or class that makes the object; its arguments must be picklable.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            self._pool.submit(_make, make, *arguments).result()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object."""
        return self._pool.submit(_call, method, *arguments).result()

    def close(self) -> None:
        self._pool.shutdown()


_made: list[Any] = []


def _make(make: Callable[..., Any], *arguments: Any) -> None:
    _made.append(make(*arguments))


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_made[0], method)(*arguments)
