"""Cache: keys and values of past tokens, written in place, reordered by table.

Self-attention: row r owns slots r * capacity + t of a pool [rows * capacity, heads, head_dim] per layer and writes
position t there. `seen[r, t]` says in which slot position t of row r's history lies: a beam reorder gathers rows of
that table; keys and values never move. Cross-attention: a pool [tokens, heads, head_dim] per layer of all the tokens
of the sources, shared by all rows of a source; one table says where the tokens of each source are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import ops
from .packing import Packing


@dataclass(frozen=True)
class Source:
    """Where the cross keys of each source are, as `ops.cross_decode_attention` takes it, and which rows see them.

    Attributes:
        packing: which tokens of the padded sources they are.
        beams: rows of each source.
    """

    packing: Packing
    table: torch.Tensor
    lengths: torch.Tensor
    cu_rows: torch.Tensor
    beams: int

    @classmethod
    def of(cls, packing: Packing, rows: int) -> Source:
        """Of sources that so many rows, the same number for each, attend to."""
        sources, cu = packing.shape[0], packing.cu
        beams = rows // max(sources, 1)
        table = cu[:-1, None] + torch.arange(packing.longest, dtype=torch.int32, device=cu.device)
        cu_rows = torch.arange(sources + 1, dtype=torch.int32, device=cu.device) * beams
        return cls(packing, table, cu.diff(), cu_rows, beams)


class Cache:
    """Keys and values of one batch. Every row has the same number of positions.

    Args:
        layers, heads, head_dim: of the decoder.
        rows: sequences decoded together; the rows of a source (its beams) are adjacent.
        capacity: positions to make room for; `reserve` adds more.
        dtype, device: of keys and values.

    Attributes:
        length: positions held per row.
        lengths: the same on the device, int32 [rows].
    """

    def __init__(
        self, layers: int, rows: int, capacity: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ):
        self.rows, self.capacity, self.length = rows, capacity, 0
        # Zeros, not empty memory: a NaN in a slot nobody wrote would come through the mask as 0 * NaN.
        shape = (layers, rows * capacity, heads, head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int32, device=device)
        self._own = _identity(rows, capacity, device)
        self._seen: torch.Tensor | None = None  # None while every row has seen just its own slots
        self._cross: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * layers
        self._source: Source | None = None

    def get_seq_length(self, layer: int = 0) -> int:
        """Positions held per row."""
        return self.length

    def __len__(self) -> int:
        return self._keys.shape[0]

    def reserve(self, positions: int) -> None:
        """Make room for so many positions per row; what is held stays."""
        if positions <= self.capacity:
            return
        capacity = max(positions, 2 * self.capacity)
        self._resize(torch.arange(self.rows, device=self._own.device), capacity)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Append the new positions of one layer and attend to all of each row's history, causally.

        Args:
            layer: which layer.
            q, k, v: [rows * T, heads, head_dim], T new positions per row, rows after one another.
            key_mask: bool [rows, positions so far + T], False hides a key; None where all are seen.

        Returns:
            [rows * T, heads, head_dim]. The positions count once `advance(T)` was called, after the last layer.
        """
        new, start = q.shape[0] // self.rows, self.length
        if new == 1 and key_mask is None:
            slots, table = self._own[:, start], self._own if self._seen is None else self._seen
            return ops.decode_attention(q, k, v, self._keys[layer], self._values[layer], slots, table, self.lengths)
        keys, values = (t.flatten(0, 1) for t in self.extend(layer, k, v))
        cu_q = torch.arange(self.rows + 1, dtype=torch.int32, device=q.device) * new
        cu_k = torch.arange(self.rows + 1, dtype=torch.int32, device=q.device) * (start + new) if start else cu_q
        q_start = torch.full((self.rows,), start, device=q.device) if start else None
        return ops.attention(
            q, keys, values, cu_q, cu_k, new, start + new, causal=True, q_start=q_start, key_mask=key_mask
        )

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new positions [rows * T, heads, head_dim] of one layer, without attending.

        Returns:
            All keys and values of each row so far, [rows, positions so far + T, heads, head_dim].
        """
        end = self.length + k.shape[0] // self.rows
        slots = self._own[:, self.length : end].flatten().long()
        pairs = ((self._keys[layer], k), (self._values[layer], v))
        for pool, new in pairs:
            pool.index_copy_(0, slots, new)
        if self.length == 0:
            return k.unflatten(0, (self.rows, -1)), v.unflatten(0, (self.rows, -1))
        history = (self._own if self._seen is None else self._seen)[:, :end]
        return self._keys[layer][history], self._values[layer][history]

    def advance(self, positions: int) -> None:
        """Count the positions that the layers of one forward wrote."""
        self.length += positions
        self.lengths += positions

    def set_cross(self, layer: int, keys: torch.Tensor, values: torch.Tensor, source: Packing) -> None:
        """Keep the keys and values [tokens, heads, head_dim] of the encoder's states for one layer.

        Args:
            source: which tokens of the padded sources these are, the same for all layers.
        """
        if self._source is None or self._source.packing is not source:
            self._source = Source.of(source, self.rows)
        self._cross[layer] = (keys, values)

    @property
    def has_cross(self) -> bool:
        """Whether the encoder's keys and values are here."""
        return bool(self._cross) and self._cross[0] is not None

    def cross(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Keys and values of a layer, padded [sources, length, heads, head_dim], and the mask of real ones or None."""
        keys, values, source = self._known(layer)
        return source.packing.unpack(keys), source.packing.unpack(values), source.packing.mask()

    def attend_cross(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Attend from q [rows * T, heads, head_dim] to the source of each row."""
        keys, values, source = self._known(layer)
        new, tokens = q.shape[0] // self.rows, source.packing
        if new == 1:
            return ops.cross_decode_attention(
                q, keys, values, source.table, source.lengths, source.cu_rows, source.beams
            )
        return ops.attention(q, keys, values, source.cu_rows * new, tokens.cu, source.beams * new, tokens.longest)

    def _known(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, Source]:
        pair = self._cross[layer]
        assert pair is not None and self._source is not None, "cross-attention before set_cross"
        return *pair, self._source

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r continues the history of row `rows[r]` (int64 [rows]) of the same source; its slots stay its own."""
        seen = (self._own if self._seen is None else self._seen)[rows]
        seen[:, self.length :] = self._own[:, self.length :]
        self._seen = seen

    reorder_cache = reorder

    def select(self, rows: torch.Tensor, sources: torch.Tensor) -> None:
        """Keep only these rows (int64) and these sources: the others are finished."""
        self._resize(rows, self.capacity)
        if self._source is None:
            return
        all_, mask = self._source.packing, self._source.packing.mask()
        kept = Packing.of_mask(None if mask is None else mask[sources], len(sources), all_.shape[1], sources.device)
        numbers = torch.arange(int(all_.cu[-1]), device=sources.device)  # of the tokens, as they were packed
        index = kept.pack(all_.unpack(numbers)[sources])
        self._cross = [None if pair is None else (pair[0][index], pair[1][index]) for pair in self._cross]
        self._source = Source.of(kept, self.rows)

    def _resize(self, rows: torch.Tensor, capacity: int) -> None:
        """Move the histories of `rows` into new pools of `capacity` positions a row."""
        history = (self._own if self._seen is None else self._seen)[rows, : self.length].flatten()
        layers, _, heads, width = self._keys.shape
        pools = []
        for pool in (self._keys, self._values):
            new = pool.new_zeros(layers, rows.numel() * capacity, heads, width)
            new.view(layers, rows.numel(), capacity, heads, width)[:, :, : self.length] = pool[:, history].view(
                layers, rows.numel(), self.length, heads, width
            )
            pools.append(new)
        self._keys, self._values = pools
        self.rows, self.capacity, self._seen = rows.numel(), capacity, None
        self.lengths = self.lengths[rows]
        self._own = _identity(self.rows, capacity, self._own.device)


def _identity(rows: int, capacity: int, device: torch.device) -> torch.Tensor:
    return torch.arange(rows * capacity, dtype=torch.int32, device=device).view(rows, capacity)
