"""Stand-in, replaced by branch part-search: greedy search over a fixed number of units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import ops
from .search import Search


class StaticSearch:
    """Greedy search over a fixed number of units."""

    def __init__(
        self,
        search: Search,
        units: int,
        positions: int,
        over: torch.Tensor,
        tokens: torch.Tensor,
        parents: torch.Tensor,
    ):
        self.search, self.units, self.width = search, units, search.width
        self.owners: list[Any] = [None] * units
        self.over, self.tokens, self.parents = over, tokens, parents
        self.sequences = torch.zeros(units, positions, dtype=torch.int64, device=over.device)
        self.lengths, self.limits = torch.ones(2, units, dtype=torch.int64, device=over.device)
        self.end = torch.tensor(search.options.end_tokens, dtype=torch.int64, device=over.device)
        self.state = {"sequences": self.sequences, "lengths": self.lengths, "limits": self.limits}

    def free_units(self, count: int) -> list[int] | None:
        free = [unit for unit, owner in enumerate(self.owners) if owner is None]
        return free[:count] if len(free) >= count else None

    def join(
        self,
        units: Sequence[int],
        prefix: torch.Tensor,
        owners: Sequence[Any],
        seeds: torch.Tensor | None = None,
        numbers: torch.Tensor | None = None,
        limits: torch.Tensor | None = None,
    ) -> None:
        index = torch.tensor(units, dtype=torch.int64, device=self.over.device)
        self.sequences[index, :1] = self.tokens[index] = prefix
        self.lengths[index] = 1
        self.limits[index] = self.search.options.max_length if limits is None else limits
        self.over[index] = False
        for unit, owner in zip(units, owners, strict=True):
            self.owners[unit] = owner

    def leave(self, units: Sequence[int]) -> None:
        for unit in units:
            self.over[unit] = True
            self.owners[unit] = None

    def take(self, other: StaticSearch, theirs: Sequence[int], mine: Sequence[int]) -> None:
        for source, target in zip(theirs, mine, strict=True):
            for name in ("sequences", "lengths", "limits", "tokens", "over"):
                getattr(self, name)[target] = getattr(other, name)[source]
            self.owners[target] = other.owners[source]

    def step(self, logits: torch.Tensor) -> None:
        tokens = ops.select(logits.float(), 1, False, None).squeeze(1)
        tokens = torch.where(self.over, self.tokens.squeeze(1), tokens)
        place = self.lengths[:, None]
        kept = torch.where(self.over, self.sequences.gather(1, place).squeeze(1), tokens)
        self.sequences.scatter_(1, place, kept[:, None])
        self.tokens.copy_(tokens[:, None])
        self.lengths += ~self.over
        self.over |= (tokens[:, None] == self.end).any(1) | (self.lengths >= self.limits)

    def results(self, units: torch.Tensor) -> list[tuple[list[list[int]], list[float | None]]]:
        rows, lengths = self.sequences[units].tolist(), self.lengths[units].tolist()
        return [([row[1:n]], [None]) for row, n in zip(rows, lengths)]
