"""The decoder over units in fixed tensors: a step that is one program, and how its steps run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ..cache.block_allocator import Admission
from ..cache.cache import Cache
from ..cache.static_cache import StaticCache
from ..config import GenerationConfig
from ..decoding.search import Search
from ..decoding.static_search import StaticSearch
from ..errors import InputError
from ..layers.attention import AttentionContext


class StaticDecoder:
    """A decoder, its static cache and static searches.

    All is called in inference mode. `step` is pure: it reads nothing back from the device, copies nothing to it, and
    has the same shapes and addresses each time. Everything else happens between steps.

    Args:
        decoder: `BertGenerationDecoder`, or another with its `step`.
        cache: with room for what joins; several static decoders may share it.
        searches: a search without units, and its number of units.
        positions: of the longest history, with its prefix.
        source_width: of the longest source; 0 without sources.

    Attributes:
        searches: the rows of each are adjacent, in this order.
        over: bool [units], those that have ended or are empty.
        tokens: int64 [R, 1], the next input.
        parents: int64 [R], of each row, the row of its search whose history it continues.
    """

    def __init__(
        self,
        decoder: Any,
        cache: Cache,
        searches: Sequence[tuple[Search, int]],
        positions: int,
        source_width: int,
    ):
        self.decoder = decoder
        widths = [search.width for search, units in searches for _ in range(units)]
        self.cache = StaticCache(cache, widths, source_width)
        device, rows = cache.device, sum(widths)
        self.over = torch.ones(len(widths), dtype=torch.bool, device=device)
        self.tokens = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._first_units = [0, *itertools.accumulate(units for _, units in searches)]
        self._row_slices = _slices([search.width * units for search, units in searches])
        counts = [rows.stop - rows.start for rows in self._row_slices]
        self.parents = torch.cat([torch.arange(count, device=device) for count in counts])
        self._offsets = torch.cat([torch.full_like(self.parents[rows], rows.start) for rows in self._row_slices])
        self.searches = [
            StaticSearch(search, units, positions, self.over[part], self.tokens[rows], self.parents[rows])
            for (search, units), part, rows in zip(
                searches, _slices([units for _, units in searches]), self._row_slices
            )
        ]
        self._reorders = any(search.width > 1 for search, _ in searches)
        self._context = AttentionContext.of_step(self.cache)

    @property
    def units(self) -> int:
        """Number of units, of all searches."""
        return self._first_units[-1]

    def step(self) -> None:
        """Decode one token of every row."""
        cache = self.cache
        cache.begin(~self.over.index_select(0, cache.unit_of_row))
        logits = self.decoder.step(self.tokens.flatten(), self._context)
        for search, rows in zip(self.searches, self._row_slices):
            search.step(logits[rows])
        cache.advance(~self.over.index_select(0, cache.unit_of_row))
        if self._reorders:
            cache.reorder(self.parents + self._offsets)

    # Between steps. Units are those of the search `index`, from 0.

    def join(
        self,
        index: int,
        units: Sequence[int],
        admissions: Sequence[Admission],
        prefix: torch.Tensor,
        owners: Sequence[Any],
        seeds: torch.Tensor | None = None,
        numbers: torch.Tensor | None = None,
        limits: torch.Tensor | None = None,
        options: Sequence[GenerationConfig] | None = None,
    ) -> None:
        """Let requests run in empty units: as `StaticCache.join` and `StaticSearch.join`, one entry for each unit.

        Raises:
            InputError: an output that may be longer than its admission holds; limits on a GPU are not read.
        """
        longest = self.searches[index].search.options.max_length
        if limits is None or limits.device.type == "cpu":
            most = [longest] * len(admissions) if limits is None else limits.tolist()
            for one, limit in zip(admissions, most, strict=True):
                if limit - 1 > one.positions:  # the last token is not fed to the decoder
                    raise InputError(f"an output of {limit} tokens; its rows have {one.positions} positions")
        self.cache.join(self._numbered(index, units), admissions)
        self.searches[index].join(units, prefix, owners, seeds, numbers, limits, options)

    def leave(self, index: int, units: Sequence[int]) -> None:
        """Empty units. The allocator releases their requests once no queued step may write their slots."""
        self.searches[index].leave(units)
        self.cache.leave(self._numbered(index, units))

    def take(
        self, index: int, other: StaticDecoder, other_index: int, theirs: Sequence[int], mine: Sequence[int]
    ) -> None:
        """Continue units of a search of another static decoder, of the same cache and options, in empty units."""
        self.cache.take(other.cache, other._numbered(other_index, theirs), self._numbered(index, mine))
        self.searches[index].take(other.searches[other_index], theirs, mine)

    def _numbered(self, index: int, units: Sequence[int]) -> list[int]:
        """The numbers of units of a search among all units."""
        return [self._first_units[index] + unit for unit in units]


def _slices(counts: Sequence[int]) -> list[slice]:
    """Adjacent runs of so many."""
    ends = [*itertools.accumulate(counts)]
    return [slice(end - count, end) for end, count in zip(ends, counts)]


class Steps(Protocol):
    """How the steps of a `StaticDecoder` run."""

    def run(self, count: int, stop_when_over: bool = False) -> int:
        """Run or queue up to `count` steps, an even number for a graph; returns how many.

        Args:
            stop_when_over: return after the step in which a unit ends, where it is known.
        """

    def flags(self) -> tuple[int, list[bool]]:
        """The newest run whose end is known, counted from 1, and `over` of each unit after it; 0 before the first."""
