"""Processes of their own, for what has to begin with nothing, or to be alone: peaks of memory, numbers of threads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns; it has to be one of a module's own, its arguments and its result such that can be pickled."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class Child:
    """An object in a process of its own, which ends with this one or with `close`.

    Args:
        make: makes it; one of a module's own functions or classes, with arguments that can be pickled.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            self._pool.submit(_make, make, *arguments).result()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of it returns."""
        return self._pool.submit(_call, method, *arguments).result()

    def close(self) -> None:
        self._pool.shutdown()


_made: list[Any] = []


def _make(make: Callable[..., Any], *arguments: Any) -> None:
    _made.append(make(*arguments))


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_made[0], method)(*arguments)
