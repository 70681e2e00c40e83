"""The threads that torch has in the calling thread: no more than CPUs are available.

torch has one for each core of the machine, or as many as OMP_NUM_THREADS says. In a container with fewer CPUs they wait
for each other at the end of every parallel region. `torch.set_num_threads` would change the whole process;
`omp_set_num_threads` of OpenMP and `mkl_set_num_threads_local` of MKL change the calling thread only.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from .available_cpus import available_cpus

SECONDS = 1.0  # after which the CPUs are counted again: a quota may change, and an affinity

_NONE: AbstractContextManager[None] = contextlib.nullcontext()


class _Count(threading.local):
    """The CPUs of a thread, which may have an affinity of its own."""

    cpus, until = 1, -math.inf


_count = _Count()


def thread_limit() -> AbstractContextManager[None]:
    """A context in which torch has no more threads in this thread than CPUs are available."""
    now = time.monotonic()
    if now >= _count.until:
        _count.cpus, _count.until = available_cpus(), now + SECONDS
    return _NONE if torch.get_num_threads() <= _count.cpus else _limited(_count.cpus)


@contextlib.contextmanager
def _limited(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    change = _setter()
    change(count)
    try:
        yield
    finally:
        if torch.get_num_threads() == count:  # else a callback has set it
            change(before)


@functools.cache
def _setter() -> Callable[[int], None]:
    """Sets the number of threads of the calling thread; without effect where torch has no OpenMP."""
    try:
        change = ctypes.CDLL(torch._C.__file__).omp_set_num_threads  # POSIX also searches the libraries that this needs
    except (AttributeError, OSError):
        return lambda count: None
    change.restype, change.argtypes = None, [ctypes.c_int]
    return change
