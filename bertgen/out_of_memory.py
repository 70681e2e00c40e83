"""Out of memory: recognize such errors, try work that may not fit, release what is not used, ask what is free."""

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


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a GPU. What torch holds without a tensor is given back before."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


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


# Of torch's CPU allocator; of cuBLAS, cuDNN and their kin; of the CUDA runtime and the driver, through torch ("CUDA
# error", "CUDA driver error"), Triton ("Triton Error [CUDA]") and NCCL ("Cuda failure 2").
_MESSAGES = (
    "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED", "error: out of memory",
    "Error [CUDA]: out of memory", "'out of memory'",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an allocation failed."""
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in _MESSAGES)
