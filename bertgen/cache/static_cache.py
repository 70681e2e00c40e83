"""StaticCache: a fixed number of rows over the pools of a `Cache`, in tensors that never move.

A step over it is a program without values of the host: `begin`, the layers, `advance` and `reorder` read nothing back,
copy nothing to the device, and have the same shapes and addresses each time. So it can be recorded once and replayed,
as a CUDA graph. Between steps the host lets requests join and leave.

The rows of a unit are adjacent, and so are the units. Every row runs in every step. A row that is not active writes the
scratch slot of the pool, which belongs to no row, and does not advance.

The slots of a request are known when it joins, since its admission reserves all of them. On a CPU they are taken later,
by `prepare`, so that memory grows with what is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch

from ..errors import InputError
from .block_allocator import Admission, BlockAllocator
from .cache import Cache
from .step_cache import CrossAttentionMetadata, StepCache


class StaticCache(StepCache):
    """The tables of a fixed number of units.

    Args:
        cache: its allocator and its pools are used.
        widths: rows of each unit.
        source_width: the longest source that fits; 0 without sources.

    Attributes:
        unit_of_row: int64 [R].
        own_slots: int32 [R, positions], the slots that each row itself writes, as far as they are known.
        slot_table: int32 [R, positions], the slot of each position of the history of each row: the first of two
            tensors, which `reorder` exchanges. After an even number of calls it is the same tensor again.
        lengths: int32 [R], positions of each row; 0 in empty units.
        slot_mapping: int32 [R], the slots that this step writes.
        source_table: int32 [units, source_width]. source_lengths: int32 [units], 0 in empty units.
        cu_rows: int32 [units + 1], where the rows of each unit begin.
    """

    def __init__(self, cache: Cache, widths: Sequence[int], source_width: int):
        self.allocator, self.pool, self.cross_pool = cache.allocator, cache.pool, cache.cross_pool
        self.arrivals = cache.arrivals
        self.dtype, self.device, self.layer, self.has_cross = cache.dtype, cache.device, 0, source_width > 0
        self._on_host = cache.device.type == "cpu"
        self.widths, self.source_width = tuple(widths), source_width
        self._first_rows = [0, *itertools.accumulate(widths)]
        units, rows, positions = len(widths), self._first_rows[-1], self.allocator.limits.positions
        if self._on_host:
            self.pool.add_scratch()
        else:
            self.pool.fill()
        self.cu_rows = torch.tensor(self._first_rows, dtype=torch.int32, device=self.device)
        unit_of_row = [unit for unit, width in enumerate(widths) for _ in range(width)]
        self.unit_of_row = torch.tensor(unit_of_row, dtype=torch.int64, device=self.device)
        self.own_slots, *self._tables = (self._zeros(rows, positions) for _ in range(3))
        self.slot_table = self._tables[0]
        self.lengths, self.slot_mapping = self._zeros(rows), self._zeros(rows)
        self.source_table, self.source_lengths = self._zeros(units, source_width), self._zeros(units)
        self.cross_metadata = (
            CrossAttentionMetadata(self.source_table, self.source_lengths, self.cu_rows, max(widths, default=0))
            if source_width
            else None
        )
        self._source_sizes = [0] * units  # on the host
        # On the host, of each row: its number in the allocator, positions with known slots, and positions in all.
        self._numbers = [-1] * rows
        self._known, self._limits = torch.zeros(2, rows, dtype=torch.int32, device="cpu")

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=self.device)

    @property
    def rows(self) -> int:
        """Number of rows, those of empty units as well."""
        return len(self._numbers)

    def rows_of(self, units: Iterable[int]) -> list[int]:
        """The rows of these units."""
        return [row for unit in units for row in range(self._first_rows[unit], self._first_rows[unit + 1])]

    # Between steps

    def join(self, units: Sequence[int], admissions: Sequence[Admission]) -> None:
        """Let admitted requests run in these units, which are empty. They have no positions yet.

        Args:
            admissions: of each unit, with as many rows. A request of several units is split (`Admission.split`).

        Raises:
            InputError: a source that is longer than the table.
        """
        limits, rows = self.allocator.limits, self.rows_of(units)
        lengths = [one.source_length for one in admissions]
        self._set_sources(units, lengths)
        # What is not known is no slot of another row: on a CPU none, which a step refuses.
        unknown = -1 if self._on_host else self.pool.limit
        own = torch.full((len(rows), limits.positions), unknown, dtype=torch.int32, device="cpu")
        sources = torch.zeros(len(units), self.source_width, dtype=torch.int32, device="cpu")
        numbers = [number for one in admissions for number in one.rows]
        positions = [one.positions for one in admissions for _ in one.rows]
        for row, number, count in zip(rows, numbers, positions, strict=True):
            self._numbers[row], self._known[row], self._limits[row] = number, 0, count
        if not self._on_host:
            for i, (row, number, count) in enumerate(zip(rows, numbers, positions)):
                own[i, :count] = self.allocator.extend(number, count)[:count]
                self._known[row] = count
        for i, one in enumerate(admissions):
            if one.source is not None:
                sources[i, : one.source_length] = self.allocator.source_table[one.source, : one.source_length]
        index, unit_index, source_lengths, own, sources = self._copied(rows, units, lengths, own, sources)
        index, unit_index = index.long(), unit_index.long()
        self.own_slots.index_copy_(0, index, own.view(len(rows), limits.positions))
        self.lengths.index_fill_(0, index, 0)
        self.source_lengths.index_copy_(0, unit_index, source_lengths)
        if self.source_width:
            self.source_table.index_copy_(0, unit_index, sources.view(len(units), self.source_width))

    def _set_sources(self, units: Sequence[int], lengths: Sequence[int]) -> None:
        if max(lengths, default=0) > self.source_width:
            raise InputError(f"a source of {max(lengths)} positions; the table has {self.source_width}")
        for unit, length in zip(units, lengths, strict=True):
            self._source_sizes[unit] = length

    def leave(self, units: Sequence[int]) -> None:
        """Empty these units. Their slots stay taken until the allocator releases the request."""
        rows = self.rows_of(units)
        for row in rows:
            self._numbers[row], self._known[row], self._limits[row] = -1, 0, 0
        index, unit_index = self._copied(rows, units)
        self.lengths.index_fill_(0, index.long(), 0)
        self.source_lengths.index_fill_(0, unit_index.long(), 0)

    def take(self, other: StaticCache, theirs: Sequence[int], mine: Sequence[int]) -> None:
        """Continue units of another static cache of the same `Cache` in empty units of this one.

        The other one may not run these units any more.

        Raises:
            InputError: a source that is longer than the table.
        """
        self._set_sources(mine, [other._source_sizes[unit] for unit in theirs])
        rows, other_rows = self.rows_of(mine), other.rows_of(theirs)
        for row, other_row in zip(rows, other_rows, strict=True):
            self._numbers[row] = other._numbers[other_row]
            self._known[row], self._limits[row] = other._known[other_row], other._limits[other_row]
        index, other_index, units, other_units = (t.long() for t in self._copied(rows, other_rows, mine, theirs))
        for name in ("own_slots", "slot_table", "lengths"):
            getattr(self, name).index_copy_(0, index, getattr(other, name)[other_index])
        self.source_lengths.index_copy_(0, units, other.source_lengths[other_units])
        width = min(self.source_width, other.source_width)
        self.source_table[:, :width].index_copy_(0, units, other.source_table[other_units, :width])

    def prepare(self, count: int) -> None:
        """Take the slots of the next `count` positions of each row where they are not known yet.

        Only here and in a prefill may the pools move.
        """
        if not self._on_host:
            return
        wanted = torch.minimum(self.lengths + count, self._limits)
        page, most = BlockAllocator.PAGE, 0
        for row in (wanted > self._known).nonzero().flatten().tolist():
            start, end = int(self._known[row]), int(wanted[row])
            end = min(-(-end // page) * page, int(self._limits[row]))  # the rest of a page costs nothing
            slots = self.allocator.extend(self._numbers[row], end - start)[start:end]
            self.own_slots[row, start:end] = slots
            self._known[row], most = end, max(most, int(slots.max()) + 1)
        self.pool.reserve(most)

    def _copied(self, *parts: Sequence[int] | torch.Tensor) -> list[torch.Tensor]:
        """Integers of the host as flat int32 tensors on the device, by one copy that waits for nothing."""
        tensors = [
            part.flatten() if isinstance(part, torch.Tensor) else torch.tensor(part, dtype=torch.int32, device="cpu")
            for part in parts
        ]
        packed = torch.cat(tensors)
        if not self._on_host:
            packed = packed.pin_memory().to(self.device, non_blocking=True)
        return list(packed.split([len(t) for t in tensors]))

    # Inside of a step

    def begin(self, active: torch.Tensor) -> None:
        """Give each row its slot for the next position: its own where `active`, bool [R], else the scratch slot."""
        position = self.lengths.long()[:, None]
        own = self.own_slots.gather(1, position).squeeze(1)
        torch.where(active, own, self.pool.scratch, out=self.slot_mapping)
        self.slot_table.scatter_(1, position, self.slot_mapping[:, None])

    def advance(self, active: torch.Tensor) -> None:
        """Count the position that the layers wrote since `begin` in the rows that are `active`, bool [R].

        Rows that end in this step need not count it: so no length passes the end of the tables.
        """
        self.lengths += active

    def exchange_tables(self) -> None:
        """Exchange the two tables on the host, after a `reorder` that was recorded and will not run."""
        self._tables.reverse()
        self.slot_table = self._tables[0]

    def reorder(self, parents: torch.Tensor) -> None:
        """Row r continues the history of row parents[r] (int64 [R]) of its unit; it keeps its own slots."""
        self._gather_slot_table(parents)
