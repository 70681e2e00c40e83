"""A function in a process of its own, for what has to begin with nothing: peaks of memory, a number of threads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns; it has to be one of a module's own, its arguments and its result such that can be pickled."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
