"""Packing: a padded batch [B, L] as one run of its real tokens, and back."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from .kernels.plain import is_traced


@dataclass(frozen=True)
class Packing:
    """Which tokens of a padded [B, L] batch are real.

    Attributes:
        cu: int32 [B + 1], where each row begins in the packed run.
        longest: tokens of the longest row, or more.
        shape: (B, L) of the padded batch.
        index: int64 [T], flat padded index of each packed token; None where every token is real.
    """

    cu: torch.Tensor
    longest: int
    shape: tuple[int, int]
    index: torch.Tensor | None = None

    @classmethod
    def full(cls, rows: int, length: int, device: torch.device) -> Packing:
        """Every token of the batch."""
        cu = torch.arange(rows + 1, dtype=torch.int32, device=device) * length
        return cls(cu, length, (rows, length))

    @classmethod
    def of_mask(cls, mask: torch.Tensor | None, rows: int, length: int, device: torch.device) -> Packing:
        """The tokens where `mask` [B, L] is not 0, wherever they stand."""
        traced = is_traced()
        if mask is None or (not traced and bool(mask.all())):
            return cls.full(rows, length, device)
        mask = mask.bool()
        lengths = mask.sum(1, dtype=torch.int32)
        cu = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        longest = length if traced else int(lengths.max())
        return cls(cu, longest, (rows, length), mask.flatten().nonzero().squeeze(1))

    def joined(self, counts: list[int]) -> tuple[torch.Tensor, int]:
        """`cu` and `longest` of the same tokens as longer rows: the first counts[0] as one, and so on."""
        cu = self.cu[torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int64, device=self.cu.device)]
        return cu, int((cu[1:] - cu[:-1]).max())

    def mask(self) -> torch.Tensor | None:
        """bool [B, L], True at real tokens; None where all are."""
        if self.index is None:
            return None
        rows, length = self.shape
        mask = torch.zeros(rows * length, dtype=torch.bool, device=self.cu.device)
        return mask.index_fill(0, self.index, 1).view(rows, length)  # a trace has no scalars that are bool

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """[B, L, ...] -> [T, ...]"""
        x = x.flatten(0, 1)
        return x if self.index is None else x[self.index]

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """[T, ...] -> [B, L, ...], zeros at tokens that were dropped."""
        if self.index is not None:
            rows, length = self.shape
            x = x.new_zeros(rows * length, *x.shape[1:]).index_copy(0, self.index, x)
        return x.view(*self.shape, *x.shape[1:])


def padded(rows: list[list[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as int64 [B, L], filled up on the right, and where they are real, bool [B, L]."""
    longest = max(map(len, rows))
    padded = [[*row, *[fill] * (longest - len(row))] for row in rows]
    ids = torch.tensor(padded, dtype=torch.int64, device=device)
    lengths = torch.tensor([[len(row)] for row in rows], dtype=torch.int64, device=device)
    return ids, torch.arange(longest, device=device) < lengths
