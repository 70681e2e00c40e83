"""Packing: the real tokens of a padded batch [B, L] as one sequence, and back."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from .kernels.plain import is_traced


@dataclass(frozen=True)
class Packing:
    """Which tokens of a padded [B, L] batch are real.

    Attributes:
        cu_seqlens: int32 [B + 1], where each row begins among the packed tokens.
        max_seqlen: tokens of the longest row, or more.
        shape: (B, L) of the padded batch.
        index: int64 [T], flat padded index of each packed token; None where every token is real.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    shape: tuple[int, int]
    index: torch.Tensor | None = None

    @classmethod
    def full(cls, rows: int, length: int, device: torch.device) -> Packing:
        """Every token of the batch."""
        cu_seqlens = torch.arange(rows + 1, dtype=torch.int32, device=device) * length
        return cls(cu_seqlens, length, (rows, length))

    @classmethod
    def of_mask(cls, mask: torch.Tensor | None, rows: int, length: int, device: torch.device) -> Packing:
        """The tokens where `mask` [B, L] is not 0, at any positions."""
        traced = is_traced()
        if mask is None or (not traced and bool(mask.all())):
            return cls.full(rows, length, device)
        mask = mask.bool()
        lengths = mask.sum(1, dtype=torch.int32)
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        max_seqlen = length if traced else int(lengths.max())
        return cls(cu_seqlens, max_seqlen, (rows, length), mask.flatten().nonzero().squeeze(1))

    def joined(self, counts: list[int]) -> tuple[torch.Tensor, int]:
        """`cu_seqlens` and `max_seqlen` of longer rows: the first counts[0] rows as one, then the next counts[1], .."""
        ends = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int64, device=self.cu_seqlens.device)
        cu_seqlens = self.cu_seqlens[ends]
        return cu_seqlens, int((cu_seqlens[1:] - cu_seqlens[:-1]).max())

    def mask(self) -> torch.Tensor | None:
        """bool [B, L], True at real tokens; None where all are."""
        if self.index is None:
            return None
        rows, length = self.shape
        mask = torch.zeros(rows * length, dtype=torch.bool, device=self.cu_seqlens.device)
        return mask.index_fill(0, self.index, 1).view(rows, length)  # not True: a trace has no bool scalars

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """[B, L, ...] -> [T, ...]"""
        x = x.flatten(0, 1)
        return x if self.index is None else x[self.index]

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """[T, ...] -> [B, L, ...], zeros at dropped tokens."""
        if self.index is not None:
            rows, length = self.shape
            x = x.new_zeros(rows * length, *x.shape[1:]).index_copy(0, self.index, x)
        return x.view(*self.shape, *x.shape[1:])


def padded(rows: list[list[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as int64 [B, L], padded on the right with `fill`, and their mask, bool [B, L], True at real ids."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], dtype=torch.int64, device=device)
    lengths = torch.tensor([[len(row)] for row in rows], dtype=torch.int64, device=device)
    return ids, torch.arange(length, device=device) < lengths
