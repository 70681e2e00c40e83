"""Out of memory: recognize such errors, try work that may not fit, release memory that is not used."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def attempt(work: Callable[[], T], device: torch.device) -> T | None:
    """The result of the work; None if it needs more memory than the device has."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Not in the except block: there the traceback keeps the tensors of the attempt alive.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def release(tensor: torch.Tensor) -> None:
    """Give back the memory of a tensor in a mapped file; a later read takes it from the file again.

    The memory of any other tensor may be swapped out. Does nothing if the system does not support it (`madvise` with
    MADV_PAGEOUT, Linux 5.4).
    """
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return
    first, page = tensor.data_ptr(), mmap.PAGESIZE
    start, end = -(-first // page) * page, (first + tensor.nbytes) // page * page
    if start < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 21)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an allocation failed."""
    messages = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in messages)
