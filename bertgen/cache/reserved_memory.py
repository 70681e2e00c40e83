"""Memory of a CPU that is reserved whole: the system gives a page when it is first written."""

from __future__ import annotations

import mmap

import torch


def reserved(count: int, dtype: torch.dtype) -> torch.Tensor | None:
    """Zeros [count] that take address space, and memory as far as they were written; None where that cannot be had.

    So it is on Windows, and where the system does not promise more memory than it has.
    """
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return None
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        memory = mmap.mmap(-1, count * dtype.itemsize, flags=flags)
    except (OSError, ValueError, OverflowError):  # also of an empty or an impossible size
        return None
    return torch.frombuffer(memory, dtype=dtype)  # which keeps the mapping
