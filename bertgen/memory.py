"""Work that may not fit into memory."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def attempt(work: Callable[[], T], device: torch.device) -> T | None:
    """What the work returns; None where the memory of the device does not suffice."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Here and not above: while an exception is handled its traceback keeps the tensors of the attempt alive.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def release(tensor: torch.Tensor) -> None:
    """Give back the memory of a tensor that lies in a mapped file; if it is read again, it comes from the file again.

    That of any other tensor may go to the disk for a while. Does nothing where the system cannot do it (it is asked by
    `madvise` with MADV_PAGEOUT, Linux 5.4).
    """
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return
    first, page = tensor.data_ptr(), mmap.PAGESIZE
    start, end = -(-first // page) * page, (first + tensor.nbytes) // page * page
    if start < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 21)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed."""
    signs = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)
