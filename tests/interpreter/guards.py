"""Guarded memory: detects reads and writes outside of tensors, and elements that are not written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

BAND = 64  # elements before and after each tensor
PATTERN = 0x5A  # byte of bands and of new memory


def guarded(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of a tensor with the same alignment, strides and gaps, between two guard bands; and the whole memory."""
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0
    start = BAND + tensor.storage_offset() % 16
    whole = _pattern(start + extent + BAND, tensor.dtype)
    whole[start : start + extent] = tensor.as_strided((extent,), (1,))
    return whole.as_strided(tensor.shape, tensor.stride(), start), whole


def damaged(whole: torch.Tensor) -> bool:
    """Whether a band was written to."""
    bands = torch.cat((whole[:BAND], whole[-BAND:])).view(torch.uint8)
    return bool((bands != PATTERN).any())


def unwritten(tensor: torch.Tensor) -> int:
    """Elements of a tensor from `guarded_allocations` that still hold the pattern."""
    if tensor.numel() == 0:
        return 0
    octets = tensor.detach().contiguous().view(-1, 1).view(torch.uint8)
    return int((octets == PATTERN).all(1).sum())


@contextmanager
def guarded_allocations(monkeypatch) -> Iterator[list[torch.Tensor]]:
    """Inside, `torch.empty` and `torch.empty_like` allocate between guard bands; yields all these allocations."""
    wholes: list[torch.Tensor] = []
    empty = torch.empty

    def fenced(*size, dtype=None, device=None, **options):
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        count = int(torch.Size(shape).numel())
        whole = _pattern(count + 2 * BAND, dtype or torch.get_default_dtype(), empty)
        wholes.append(whole)
        return whole[BAND : BAND + count].view(shape)

    def like(tensor, dtype=None, **options):
        return fenced(*tensor.shape, dtype=dtype or tensor.dtype)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", fenced)
        patch.setattr(torch, "empty_like", like)
        yield wholes


def _pattern(count: int, dtype: torch.dtype, empty=torch.empty) -> torch.Tensor:
    return empty(count, dtype=dtype).view(torch.uint8).fill_(PATTERN).view(dtype)
