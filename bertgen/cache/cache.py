"""Cache: keys and values of past tokens and of sources, written in place and reordered by table.

`BlockAllocator` decides on the host which slots belong to which row and source. `Cache` holds the pools of keys and
values, and the tables on the device through which attention reads them. Position t of a row is written to a slot of
this row and never moves. `slot_table[r, t]` is the slot of position t of the history of row r, so a beam reorder
gathers rows of that table. The keys of a source are stored once, for all rows that attend to it.

The running rows have an order, which is their order in every call: `join` appends rows, `select` keeps a subset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import ops
from ..errors import UnsupportedError
from ..kernels.tuning import DECODE_COUNTERS
from ..packing import Packing
from .block_allocator import Admission, BlockAllocator
from .kv_pool import KVPool
from .step_cache import CrossAttentionMetadata, StepCache


class _Step:
    """The context of `Cache.step`. A class and not contextlib: the engine enters one for each token."""

    __slots__ = ("cache", "count")

    def __init__(self, cache: Cache, count: int):
        self.cache, self.count = cache, count

    def __enter__(self) -> None:
        self.cache.begin(self.count)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.cache.advance(self.count)


class Cache(StepCache):
    """Keys and values of the rows of all running requests.

    Args:
        layers, heads, head_dim: of the decoder.
        dtype, device: of keys and values.
        rows: the most sequences that are decoded together.
        positions: of the longest sequence.
        slots: positions of all rows together; by default enough for `rows` sequences of the longest length.
        source_positions, source_slots: the same for sources; 0 without any.
        full: allocate the memory of all slots at once instead of on demand.

    Attributes:
        allocator: assigns slots to rows and sources.
        pool, cross_pool: keys and values of tokens, and of sources.
        layer: index in its stack of the layer that runs. It selects the tensors of the pools; the index that the layer
            was built with may differ.
        length: positions of the longest running row.
        lengths: int32 [R] on the device, positions of each running row.
        has_cross: whether the keys of the sources are written.
        slot_table: int32 [R, positions], the slot of each position of the history of each running row.
        slot_mapping: int32 [R] or [R, T], the slots of the positions that this step writes.
        cross_metadata: the sources of the running rows; None without any.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        rows: int,
        positions: int,
        slots: int | None = None,
        source_positions: int = 0,
        source_slots: int = 0,
        full: bool = False,
    ):
        slots = rows * _whole_pages(positions) if slots is None else slots
        self.allocator = BlockAllocator(rows, positions, slots, source_positions, source_slots)
        like = torch.empty(heads, head_dim, dtype=dtype, device=device)
        self.pool = KVPool(layers, like, slots, full)
        self.cross_pool = KVPool(layers, like, source_slots, full)
        self.dtype = dtype
        self.device, self.has_cross, self.length, self.layer = device, False, 0, 0
        self._on_host = device.type == "cpu"
        # One tensor for all launches: the kernels leave it at zero, and a stream runs them one after the other.
        self.arrivals = torch.zeros(DECODE_COUNTERS, dtype=torch.int32, device=device)
        # Of each running row: its number, request and source. On the host, as the allocator is.
        self._rows = torch.empty(0, dtype=torch.int32, device="cpu")
        self._requests, self._sources = torch.empty(2, 0, dtype=torch.int64, device="cpu")
        self._source_lengths = torch.zeros(rows, dtype=torch.int32, device="cpu")
        self._positions = torch.empty(0, dtype=torch.int32, device="cpu")
        self.lengths = self._positions.to(device)
        self._tables = [torch.zeros(rows, positions, dtype=torch.int32, device=device) for _ in range(2)]
        self.slot_table = self._tables[0][:0]
        self.slot_mapping = torch.empty(0, dtype=torch.int32, device=device)
        self.cross_metadata: CrossAttentionMetadata | None = None
        self._source_slot_mapping = torch.empty(0, dtype=torch.int64, device=device)  # slots that `set_cross` writes
        self._source_packing: Packing | None = None  # of a cache made by `of_batch`

    @classmethod
    def of_batch(
        cls,
        layers: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        rows: int,
        positions: int,
        source: Packing | None = None,
    ) -> Cache:
        """A cache of `rows` running rows, which the rows of `source` share in equal parts."""
        lengths = [] if source is None else source.cu_seqlens.diff().tolist()
        cache = cls(
            layers, heads, head_dim, dtype, device, rows=rows, positions=positions,
            source_positions=max(1, *lengths) if lengths else 0, source_slots=sum(map(_whole_pages, lengths)),
        )  # fmt: skip
        requests = len(lengths) or 1
        admissions = cache._admit_all([rows // requests] * requests if rows else [], lengths or [0], positions)
        cache.join(admissions)
        if source is not None:
            cache.begin_sources(admissions)
            cache._source_packing = source
        return cache

    @classmethod
    def _of_contents(
        cls,
        shape: tuple[Any, ...],
        limits: tuple[int, int],
        counts: list[int],
        lengths: list[int],
        keys_and_values: list[list[torch.Tensor]],
        cross: list[list[torch.Tensor]],
        packing: Packing | None,
    ) -> Cache:
        """A cache with the contents that `__reduce__` collected; each request has a count of rows and a length."""
        rows, positions = limits
        cache = cls(
            *shape, rows=rows, positions=positions, source_positions=max(lengths, default=0),
            source_slots=sum(map(_whole_pages, lengths)),
        )  # fmt: skip
        admissions = cache._admit_all(counts, lengths, positions)
        cache.join(admissions)
        if keys_and_values:
            with cache.step(keys_and_values[0][0].shape[1]):
                for layer, (keys, values) in enumerate(keys_and_values):
                    cache.extend(layer, keys.flatten(0, 1), values.flatten(0, 1))
        if cross:
            cache.begin_sources(admissions)
            for layer, (keys, values) in enumerate(cross):
                cache.set_cross(layer, keys, values)
        cache._source_packing = packing
        return cache

    def _admit_all(self, counts: Sequence[int], lengths: Sequence[int], positions: int) -> list[Admission]:
        """Admit a request of so many rows for each source; the cache is large enough for all of them."""
        admissions = [self.admit(count, positions, i, n) for i, (count, n) in enumerate(zip(counts, lengths))]
        return [admission for admission in admissions if admission is not None]

    def __reduce__(self) -> Any:
        """A copy has the same contents and its own allocator: both can continue, independently.

        Raises:
            UnsupportedError: the rows have histories of different lengths.
        """
        if bool((self._positions != self.length).any()):
            raise UnsupportedError("a cache whose rows have different lengths cannot be copied")
        _, counts = torch.unique_consecutive(self._requests, return_counts=True)
        layers = range(len(self))
        history = [[t.detach() for t in self.history(layer)] for layer in layers] if self.length else []
        cross = [[t.detach() for t in self._packed_source(layer)] for layer in layers] if self.has_cross else []
        lengths = [0] * len(counts) if self.cross_metadata is None else self.cross_metadata.lengths.tolist()
        keys = self.pool.keys[0] if len(self) else torch.empty(0, 1, 1, dtype=torch.float32, device=self.device)
        shape = (len(self), *keys.shape[1:], keys.dtype, self.device)
        limits = self.allocator.limits.rows, self.allocator.limits.positions
        return self._of_contents, (shape, limits, counts.tolist(), lengths, history, cross, self._source_packing)

    @property
    def rows(self) -> int:
        """Number of running rows."""
        return len(self._rows)

    def get_seq_length(self, layer: int = 0) -> int:
        """Positions of the longest running row."""
        return self.length

    @property
    def bytes(self) -> int:
        """Allocated memory of keys and values."""
        return self.pool.bytes + self.cross_pool.bytes

    # Running rows

    def admit(self, rows: int, positions: int, source: int = 0, source_length: int = 0) -> Admission | None:
        """Admit a request, as `BlockAllocator.admit` does; None where it does not fit now."""
        admission = self.allocator.admit(rows, positions, source, source_length)
        if admission is not None and admission.source is not None:
            self._source_lengths[admission.source] = source_length
        return admission

    def join(self, admissions: Sequence[Admission]) -> None:
        """Append the rows of admitted requests to the running rows. They have no positions yet."""
        rows = torch.tensor([row for one in admissions for row in one.rows], dtype=torch.int32, device="cpu")
        counts = torch.tensor([len(one.rows) for one in admissions], dtype=torch.int64, device="cpu")
        requests = torch.tensor([one.request for one in admissions], dtype=torch.int64, device="cpu")
        numbers = [-1 if one.source is None else one.source for one in admissions]
        sources = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        self._rows = torch.cat((self._rows, rows))
        self._requests = torch.cat((self._requests, requests.repeat_interleave(counts)))
        self._sources = torch.cat((self._sources, sources.repeat_interleave(counts)))
        self._update_running(torch.cat((self._positions, torch.zeros_like(rows))))
        self.slot_table = self._tables[0][: len(self._rows)]

    def select(self, rows: torch.Tensor) -> None:
        """Keep only these running rows (int64 [n], their indices), in this order; rows of a request stay adjacent.

        A request without remaining rows is released.
        """
        indices = rows.cpu()
        requests_before = dict.fromkeys(self._requests.tolist())
        stays = torch.zeros(self.rows, dtype=torch.bool, device="cpu")
        stays[indices] = True
        kept = set(self._requests[indices].tolist())
        for request in requests_before:
            if request not in kept:
                self.allocator.release(request)
        for row, request in zip(self._rows[~stays].tolist(), self._requests[~stays].tolist()):
            if request in kept:
                self.allocator.finish(row)
        self._rows, self._requests = self._rows[indices], self._requests[indices]
        self._sources = self._sources[indices]
        self._gather_slot_table(rows.to(self.device))
        self._update_running(self._positions[indices])

    def clear(self) -> None:
        """Release all requests."""
        self.select(torch.empty(0, dtype=torch.int64, device="cpu"))

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r continues the history of row `rows[r]` (int64 [R]) of the same request; it keeps its own slots.

        This is the reorder of beam search; it moves no keys or values.
        """
        self._gather_slot_table(rows)

    reorder_cache = reorder

    def _update_running(self, positions: torch.Tensor) -> None:
        """Set what depends on the running rows: their lengths and their sources."""
        self._positions = positions
        self.lengths = positions if self._on_host else positions.to(self.device)
        self.length = int(positions.max()) if len(positions) else 0
        if not len(positions) or self.allocator.limits.source_positions == 0:
            self.cross_metadata = None
            return
        _, counts = torch.unique_consecutive(self._requests, return_counts=True)
        ends = counts.cumsum(0)
        sources = self._sources[ends - counts]
        lengths = self._source_lengths[sources.clamp(min=0)].where(sources >= 0, 0)  # a source may be empty
        sources = sources.clamp(min=0)
        table = self.allocator.source_table[:, : int(lengths.max())].index_select(0, sources)
        cu_rows = torch.nn.functional.pad(ends.int(), (1, 0))
        table, lengths, cu_rows = (t.to(self.device) for t in (table, lengths, cu_rows))
        self.cross_metadata = CrossAttentionMetadata(table, lengths, cu_rows, int(counts.max()))

    # Positions

    def step(self, count: int) -> _Step:
        """A context in which the layers write the next `count` positions of each running row.

        `with cache.step(1): ...` calls `begin(1)` and, unless an exception is raised inside, `advance(1)`.
        """
        return _Step(self, count)

    def begin(self, count: int) -> None:
        """Give each running row slots for its next `count` positions, which the layers of one forward write.

        For code that cannot use `step`, such as one call per layer. `advance(count)` follows after the last layer.

        Raises:
            InputError: a row would have more positions than it was admitted with.
        """
        if count == 1:
            slots = torch.empty_like(self._rows)
            self.allocator.step(self._rows, self._positions, slots)
            self._reserve(slots)
            self.slot_mapping = slots if self._on_host else slots.to(self.device)
            self.slot_table.scatter_(1, self.lengths[:, None].long(), self.slot_mapping[:, None])
            return
        start, end = self.length, self.length + count  # several positions at once: all rows have one length
        slots = torch.stack([self.allocator.extend(row, count)[start:end] for row in self._rows.tolist()])
        self._reserve(slots)
        self.slot_mapping = slots.to(self.device)
        self.slot_table[:, start:end] = self.slot_mapping

    def _reserve(self, slots: torch.Tensor) -> None:
        if slots.numel():
            self.pool.reserve(int(slots.max()) + 1)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Append the new positions of one layer and attend to all of each row's history, causally.

        Args:
            layer: index of the layer.
            q, k, v: [R * T, heads, head_dim], the T positions of this step, row by row.
            key_mask: bool [R, positions so far + T], False hides a key; None where all are visible.

        Returns:
            [R * T, heads, head_dim]. The positions count from the end of the step on.
        """
        new, start = q.shape[0] // self.rows, self.length
        if new == 1 and key_mask is None:
            return super().attend(layer, q, k, v)
        (q,), (keys, values) = self._cast(q), (t.flatten(0, 1) for t in self.extend(layer, k, v))
        cu_seqlens_q = torch.arange(self.rows + 1, dtype=torch.int32, device=q.device) * new
        cu_seqlens_k, q_start = cu_seqlens_q, None
        if start:
            cu_seqlens_k = torch.arange(self.rows + 1, dtype=torch.int32, device=q.device) * (start + new)
            q_start = torch.full((self.rows,), start, dtype=torch.int64, device=q.device)
        return ops.attention(
            q, keys, values, cu_seqlens_q, cu_seqlens_k, new, start + new,
            causal=True, q_start=q_start, key_mask=key_mask,
        )  # fmt: skip

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new positions [R * T, heads, head_dim] of one layer, without attending.

        Returns:
            All keys and values of each row so far, [R, positions so far + T, heads, head_dim].
        """
        end, slots = self.length + k.shape[0] // self.rows, self.slot_mapping.flatten().long()
        k, v = self._cast(k, v)
        self.pool.keys[layer].index_copy_(0, slots, k)
        self.pool.values[layer].index_copy_(0, slots, v)
        if self.length == 0:
            return k.unflatten(0, (self.rows, -1)), v.unflatten(0, (self.rows, -1))
        return self.history(layer, end)

    def history(self, layer: int, end: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first `end` (default: all) positions of each row, [R, end, heads, head_dim]."""
        slots = self.slot_table[:, : self.length if end is None else end].long()
        return self.pool.keys[layer][slots], self.pool.values[layer][slots]

    def advance(self, count: int) -> None:
        """Count the positions that the layers wrote since `begin(count)`."""
        self.length += count
        self._positions += count
        if not self._on_host:
            self.lengths += count

    # Sources

    def begin_sources(self, admissions: Sequence[Admission]) -> None:
        """Select the sources of these requests: `set_cross` then writes their keys and values, in this order."""
        table = self.allocator.source_table
        slots = [table[one.source, : one.source_length] for one in admissions if one.source is not None]
        self._source_slot_mapping = torch.cat(slots or [self._rows[:0]]).long().to(self.device)
        if len(self._source_slot_mapping):
            self.cross_pool.reserve(max(int(part.max()) + 1 for part in slots if len(part)))

    def set_cross(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the keys and values [tokens, heads, head_dim] of one layer for the sources of `begin_sources`."""
        keys, values = self._cast(keys, values)
        self.cross_pool.keys[layer].index_copy_(0, self._source_slot_mapping, keys)
        self.cross_pool.values[layer].index_copy_(0, self._source_slot_mapping, values)
        self.has_cross = True

    def cross(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Keys and values of a layer, padded [sources, length, heads, head_dim], and the mask; None without padding."""
        packing = self._source_packing
        assert packing is not None, "only the sources of a batch have a padded form"
        keys, values = self._packed_source(layer)
        return packing.unpack(keys), packing.unpack(values), packing.mask()

    def attend_cross(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Attend from q [R * T, heads, head_dim] to the source of each row."""
        source, new = self.cross_metadata, q.shape[0] // self.rows
        if new == 1:
            return super().attend_cross(layer, q)
        assert source is not None and self.has_cross, "cross-attention before set_cross"
        (q,) = self._cast(q)
        max_seqlen_q, max_seqlen_k = source.max_rows * new, source.table.shape[1]
        return ops.attention(
            q, *self._packed_source(layer), source.cu_rows * new, source.cu_seqlens_k(), max_seqlen_q, max_seqlen_k
        )

    def _packed_source(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [tokens, heads, head_dim] of the sources of all running requests, packed."""
        assert self.cross_metadata is not None
        slots = self.cross_metadata.table[self.cross_metadata.mask()].long()
        return self.cross_pool.keys[layer][slots], self.cross_pool.values[layer][slots]


def _whole_pages(positions: int) -> int:
    """The slots of the pages that so many positions need."""
    page = BlockAllocator.PAGE
    return -(-positions // page) * page
