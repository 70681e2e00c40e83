"""Cache: keys and values of past tokens and of sources, written in place, reordered by table.

Slots of the pools belong to rows and sources by the books of `Pages`. Here are the pools, and for the rows that are
running the tables on the device by which attention finds its keys. Position t of a row is written to a slot of the
row's own and never moves; `table[r, t]` says in which slot position t of row r's history lies, so a beam reorder
gathers rows of that table. The keys of a source exist once, for all rows that attend to it.

The running rows have an order, in which they come in every call: `join` puts rows behind, `select` keeps some.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import ops
from ..errors import UnsupportedError
from ..packing import Packing
from .block_allocator import Admission, Pages


class Pools:
    """Keys and values [slots, heads, head_dim] of each layer, zeros where nothing was written; they grow as needed.

    Args:
        limit: slots they never outgrow.
        full: make all of them now.

    Attributes:
        keys, values: a tensor per layer.
    """

    def __init__(self, layers: int, like: torch.Tensor, limit: int, full: bool):
        # Zeros, not empty memory: a NaN in a slot nobody wrote would come through a mask as 0 * NaN.
        self.limit = limit
        self.keys, self.values = ([like.new_zeros((0, *like.shape)) for _ in range(layers)] for _ in "kv")
        if full:
            self.hold(limit)

    def hold(self, slots: int) -> None:
        """Make room for so many slots; a half more each time, so that a slot is seldom copied."""
        held = len(self.keys[0]) if self.keys else slots
        if slots <= held:
            return
        size = min(max(slots, held + held // 2), self.limit)
        for pools in (self.keys, self.values):
            for layer, pool in enumerate(pools):
                pools[layer] = pool.new_zeros((size, *pool.shape[1:]))
                pools[layer][:held] = pool

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(pool.numel() * pool.element_size() for pool in (*self.keys, *self.values))


@dataclass(frozen=True)
class Sources:
    """The sources of the running rows, as `ops.cross_decode_attention` takes them: one for each request."""

    table: torch.Tensor
    lengths: torch.Tensor
    cu_rows: torch.Tensor
    max_rows: int

    def mask(self) -> torch.Tensor:
        """bool [requests, longest], where the table holds slots."""
        return torch.arange(self.table.shape[1], device=self.table.device) < self.lengths[:, None]

    def cu_keys(self) -> torch.Tensor:
        """int32 [requests + 1], where each source begins when they are packed."""
        return torch.nn.functional.pad(self.lengths.cumsum(0, dtype=torch.int32), (1, 0))


class Cache:
    """Keys and values of the rows of some requests.

    Args:
        layers, heads, head_dim: of the decoder.
        dtype, device: of keys and values.
        rows: sequences decoded together, at most.
        positions: of the longest sequence.
        slots: positions of all rows together; by default as many as `rows` such sequences can have.
        source_positions, source_slots: the same of the sources; 0 without any.
        full: take the memory of all slots at once, and not as they are used.

    Attributes:
        pages: which slots belong to whom.
        layer: the place in its stack of the layer that runs, which is where that layer's keys are, whatever place it
            was built for.
        length: positions of the longest running row.
        lengths: positions of each, int32 [R] on the device.
        has_cross: the keys of the sources are here.
        table: int32 [R, positions], in which slot each position of each running row's history lies.
        slots: int32, those of the positions that are being written.
        source: the sources of the running rows; None without any.
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
        page = Pages.PAGE
        slots = rows * -(-positions // page) * page if slots is None else slots
        self.pages = Pages(rows, positions, slots, source_positions, source_slots)
        like = torch.empty(heads, head_dim, dtype=dtype, device=device)
        self.pools = Pools(layers, like, slots, full)
        self.cross_pools = Pools(layers, like, source_slots, full)
        self.dtype = dtype
        self.device, self.has_cross, self.length, self.layer = device, False, 0, 0
        self._on_host = device.type == "cpu"
        # Of each running row: its number, the request and source it belongs to. On the host, as the books are.
        self._rows = torch.empty(0, dtype=torch.int32, device="cpu")
        self._requests, self._sources = torch.empty(2, 0, dtype=torch.int64, device="cpu")
        self._source_lengths = torch.zeros(rows, dtype=torch.int32, device="cpu")
        self._positions = torch.empty(0, dtype=torch.int32, device="cpu")
        self.lengths = self._positions.to(device)
        self._tables = [torch.zeros(rows, positions, dtype=torch.int32, device=device) for _ in range(2)]
        self.table = self._tables[0][:0]
        self.slots = torch.empty(0, dtype=torch.int32, device=device)  # slots of the positions that are being written
        self.source: Sources | None = None
        self._filling = torch.empty(0, dtype=torch.int64, device=device)  # slots of sources that are being written
        self._packing: Packing | None = None

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
        """A cache with `rows` rows running, and so many of them for each row of `source` as there are to share."""
        page, lengths = Pages.PAGE, [] if source is None else source.cu.diff().tolist()
        cache = cls(
            layers, heads, head_dim, dtype, device, rows=rows, positions=positions,
            source_positions=max(1, *lengths) if lengths else 0,
            source_slots=sum(-(-n // page) * page for n in lengths),
        )  # fmt: skip
        count = len(lengths) or 1
        admitted = [cache.admit(rows // count, positions, i, n) for i, n in enumerate(lengths or [0]) if rows]
        cache.join([one for one in admitted if one is not None])
        if source is not None:
            cache.begin_sources([one for one in admitted if one is not None])
            cache._packing = source
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
        """A cache of what `__reduce__` says: so many rows of each request, and the length of its source."""
        (rows, positions), page = limits, Pages.PAGE
        cache = cls(
            *shape, rows=rows, positions=positions, source_positions=max(lengths, default=0),
            source_slots=sum(-(-n // page) * page for n in lengths),
        )  # fmt: skip
        admitted = [cache.admit(count, positions, i, n) for i, (count, n) in enumerate(zip(counts, lengths))]
        joined = [one for one in admitted if one is not None]
        cache.join(joined)
        if keys_and_values:
            start = keys_and_values[0][0].shape[1]
            cache.begin(start)
            for layer, (keys, values) in enumerate(keys_and_values):
                cache.extend(layer, keys.flatten(0, 1), values.flatten(0, 1))
            cache.advance(start)
        if cross:
            cache.begin_sources(joined)
            for layer, (keys, values) in enumerate(cross):
                cache.set_cross(layer, keys, values)
        cache._packing = packing
        return cache

    def __reduce__(self) -> Any:
        """A copy holds the same in books of slots of its own: both go on, each with other tokens.

        Raises:
            UnsupportedError: the rows have histories of different lengths.
        """
        if bool((self._positions != self.length).any()):
            raise UnsupportedError("a cache whose rows have different lengths cannot be copied")
        _, counts = torch.unique_consecutive(self._requests, return_counts=True)
        layers = range(len(self))
        history = [[t.detach() for t in self.history(layer)] for layer in layers] if self.length else []
        cross = [[t.detach() for t in self._packed(layer)] for layer in layers] if self.has_cross else []
        lengths = [0] * len(counts) if self.source is None else self.source.lengths.tolist()
        pool = self.pools.keys[0] if len(self) else torch.empty(0, 1, 1, dtype=torch.float32, device=self.device)
        shape = (len(self), *pool.shape[1:], pool.dtype, self.device)
        limits = self.pages.limits.rows, self.pages.limits.positions
        return self._of_contents, (shape, limits, counts.tolist(), lengths, history, cross, self._packing)

    @property
    def rows(self) -> int:
        """Rows that are running."""
        return len(self._rows)

    def get_seq_length(self, layer: int = 0) -> int:
        """Positions of the longest running row."""
        return self.length

    def __len__(self) -> int:
        return len(self.pools.keys)

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return self.pools.bytes + self.cross_pools.bytes

    # -- who is running

    def admit(self, rows: int, positions: int, source: int = 0, source_length: int = 0) -> Admission | None:
        """Let a request in, as `Pages.admit` does; None where it does not fit now."""
        admission = self.pages.admit(rows, positions, source, source_length)
        if admission is not None and admission.source is not None:
            self._source_lengths[admission.source] = source_length
        return admission

    def join(self, admissions: Sequence[Admission]) -> None:
        """The rows of requests that were admitted run from now on, behind the others, without a position."""
        rows = torch.tensor([row for one in admissions for row in one.rows], dtype=torch.int32, device="cpu")
        counts = torch.tensor([len(one.rows) for one in admissions], dtype=torch.int64, device="cpu")
        requests = torch.tensor([one.request for one in admissions], dtype=torch.int64, device="cpu")
        held = [-1 if one.source is None else one.source for one in admissions]
        sources = torch.tensor(held, dtype=torch.int64, device="cpu")
        self._rows = torch.cat((self._rows, rows))
        self._requests = torch.cat((self._requests, requests.repeat_interleave(counts)))
        self._sources = torch.cat((self._sources, sources.repeat_interleave(counts)))
        self._run(torch.cat((self._positions, torch.zeros_like(rows))))
        self.table = self._tables[0][: len(self._rows)]

    def select(self, rows: torch.Tensor) -> None:
        """Only these running rows (int64 [n], by their places) go on, in this order; rows of a request stay adjacent.

        A request none of whose rows goes on is released.
        """
        places = rows.cpu()
        before = dict.fromkeys(self._requests.tolist())
        stays = torch.zeros(self.rows, dtype=torch.bool, device="cpu")
        stays[places] = True
        kept = set(self._requests[places].tolist())
        for request in before:
            if request not in kept:
                self.pages.release(request)
        for row, request in zip(self._rows[~stays].tolist(), self._requests[~stays].tolist()):
            if request in kept:
                self.pages.finish(row)
        self._rows, self._requests, self._sources = self._rows[places], self._requests[places], self._sources[places]
        self._reorder(rows.to(self.device))
        self._run(self._positions[places])

    def clear(self) -> None:
        """Nothing runs any more, and nothing that was admitted is kept."""
        self.select(torch.empty(0, dtype=torch.int64, device="cpu"))

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r continues the history of row `rows[r]` (int64 [R]) of the same request; its slots stay its own."""
        self._reorder(rows)

    reorder_cache = reorder

    def _reorder(self, rows: torch.Tensor) -> None:
        """Rows of the table, from one buffer into the other: duplicates make it unsafe in place."""
        spare = self._tables[1][: len(rows)]
        torch.index_select(self.table, 0, rows, out=spare)
        self._tables.reverse()
        self.table = spare

    def _run(self, positions: torch.Tensor) -> None:
        """Take note of who is running, and where."""
        self._positions = positions
        self.lengths = positions if self._on_host else positions.to(self.device)
        self.length = int(positions.max()) if len(positions) else 0
        if not len(positions) or self.pages.limits.source_positions == 0:
            self.source = None
            return
        _, counts = torch.unique_consecutive(self._requests, return_counts=True)
        ends = counts.cumsum(0)
        sources = self._sources[ends - counts]
        lengths = self._source_lengths[sources.clamp(min=0)].where(sources >= 0, 0)  # a source may be empty
        sources = sources.clamp(min=0)
        table = self.pages.sources[:, : int(lengths.max())].index_select(0, sources)
        cu_rows = torch.nn.functional.pad(ends.int(), (1, 0))
        table, lengths, cu_rows = (t.to(self.device) for t in (table, lengths, cu_rows))
        self.source = Sources(table, lengths, cu_rows, int(counts.max()))

    # -- positions

    def begin(self, count: int) -> None:
        """Give each running row slots for its next positions, which the layers of one forward will write.

        Raises:
            InputError: a row would have more positions than it was admitted with.
        """
        if count == 1:
            slots = torch.empty_like(self._rows)
            self.pages.step(self._rows, self._positions, slots)
            self._hold(slots)
            self.slots = slots if self._on_host else slots.to(self.device)
            self.table.scatter_(1, self.lengths[:, None].long(), self.slots[:, None])
            return
        start, end = self.length, self.length + count  # only rows of one length take several positions
        slots = torch.stack([self.pages.extend(row, count)[start:end] for row in self._rows.tolist()])
        self._hold(slots)
        self.slots = slots.to(self.device)
        self.table[:, start:end] = self.slots

    def _hold(self, slots: torch.Tensor) -> None:
        if slots.numel():
            self.pools.hold(int(slots.max()) + 1)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Append the new positions of one layer and attend to all of each row's history, causally.

        Args:
            layer: which layer.
            q, k, v: [R * T, heads, head_dim], the T positions that `begin` was told of, rows after one another.
            key_mask: bool [R, positions so far + T], False hides a key; None where all are seen.

        Returns:
            [R * T, heads, head_dim]. The positions count once `advance(T)` was called, after the last layer.
        """
        new, start = q.shape[0] // self.rows, self.length
        if new == 1 and key_mask is None:
            pools = self.pools.keys[layer], self.pools.values[layer]
            q, k, v = self._held(q, k, v)
            return ops.decode_attention(q, k, v, *pools, self.slots.flatten(), self.table, self.lengths)
        (q,), (keys, values) = self._held(q), (t.flatten(0, 1) for t in self.extend(layer, k, v))
        cu_q = torch.arange(self.rows + 1, dtype=torch.int32, device=q.device) * new
        cu_k = torch.arange(self.rows + 1, dtype=torch.int32, device=q.device) * (start + new) if start else cu_q
        q_start = torch.full((self.rows,), start, dtype=torch.int64, device=q.device) if start else None
        return ops.attention(
            q, keys, values, cu_q, cu_k, new, start + new, causal=True, q_start=q_start, key_mask=key_mask
        )

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new positions [R * T, heads, head_dim] of one layer, without attending.

        Returns:
            All keys and values of each row so far, [R, positions so far + T, heads, head_dim].
        """
        end, slots = self.length + k.shape[0] // self.rows, self.slots.flatten().long()
        k, v = self._held(k, v)
        self.pools.keys[layer].index_copy_(0, slots, k)
        self.pools.values[layer].index_copy_(0, slots, v)
        if self.length == 0:
            return k.unflatten(0, (self.rows, -1)), v.unflatten(0, (self.rows, -1))
        return self.history(layer, end)

    def history(self, layer: int, end: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of each running row's first `end` positions (all of them), [R, end, heads, head_dim]."""
        slots = self.table[:, : self.length if end is None else end].long()
        return self.pools.keys[layer][slots], self.pools.values[layer][slots]

    def advance(self, count: int) -> None:
        """Count the positions that the layers of one forward wrote."""
        self.length += count
        self._positions += count
        if not self._on_host:
            self.lengths += count

    # -- sources

    def begin_sources(self, admissions: Sequence[Admission]) -> None:
        """The keys of the sources of these requests come next, one source behind the other."""
        sources = [one.source for one in admissions if one.source is not None]
        slots = [self.pages.sources[source, : int(self._source_lengths[source])] for source in sources]
        self._filling = torch.cat(slots or [self._rows[:0]]).long().to(self.device)
        if len(self._filling):
            self.cross_pools.hold(max(int(part.max()) + 1 for part in slots if len(part)))

    def set_cross(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the keys and values [tokens, heads, head_dim] of one layer for the sources of `begin_sources`."""
        keys, values = self._held(keys, values)
        self.cross_pools.keys[layer].index_copy_(0, self._filling, keys)
        self.cross_pools.values[layer].index_copy_(0, self._filling, values)
        self.has_cross = True

    def cross(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Keys and values of a layer, padded [sources, length, heads, head_dim], and the mask of real ones or None."""
        assert self._packing is not None, "only the sources of a batch have a padded form"
        keys, values = self._packed(layer)
        return self._packing.unpack(keys), self._packing.unpack(values), self._packing.mask()

    def attend_cross(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Attend from q [R * T, heads, head_dim] to the source of each row."""
        source, new = self.source, q.shape[0] // self.rows
        assert source is not None and self.has_cross, "cross-attention before set_cross"
        (q,) = self._held(q)
        if new == 1:
            pools = self.cross_pools.keys[layer], self.cross_pools.values[layer]
            return ops.cross_decode_attention(q, *pools, source.table, source.lengths, source.cu_rows, source.max_rows)
        longest = source.table.shape[1]
        return ops.attention(
            q, *self._packed(layer), source.cu_rows * new, source.cu_keys(), source.max_rows * new, longest
        )

    def _held(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors in the dtype of the cache, which is the model's: under autocast products have another."""
        return tuple(t if t.dtype == self.dtype else t.to(self.dtype) for t in given)

    def _packed(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [tokens, heads, head_dim] of a layer, the source of one request behind the other."""
        assert self.source is not None
        slots = self.source.table[self.source.mask()].long()
        return self.cross_pools.keys[layer][slots], self.cross_pools.values[layer][slots]
