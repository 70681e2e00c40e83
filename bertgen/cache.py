"""Cache: keys and values of past tokens, written in place, reordered by table.

Self-attention: row r owns slots r * capacity + t of a pool [rows * capacity, heads, head_dim] per layer and writes
position t there. `seen[r, t]` says in which slot position t of row r's history lies: a beam reorder gathers rows of
that table; keys and values never move. Cross-attention: one [sources, length, heads, head_dim] pair per layer,
shared by all rows of a source.
"""

from __future__ import annotations

import torch

from . import ops


class Cache:
    """Keys and values of one batch. Every row has the same number of positions.

    Args:
        layers, heads, head_dim: of the decoder.
        rows: sequences decoded together; the rows of a source (its beams) are adjacent.
        capacity: positions to make room for; `reserve` adds more.
        dtype, device: of keys and values.
    """

    def __init__(
        self, layers: int, rows: int, capacity: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ):
        self.rows, self.capacity, self.length = rows, capacity, 0
        # Zeros, not empty memory: a NaN in a slot nobody wrote would come through the mask as 0 * NaN.
        shape = (layers, rows * capacity, heads, head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._own = _identity(rows, capacity, device)
        self._seen: torch.Tensor | None = None  # None while every row has seen just its own slots
        self._cross: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * layers
        self.source_mask: torch.Tensor | None = None  # bool [sources, length]

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
            slots = self._own[:, start]
            return ops.decode_attention(q, k, v, self._keys[layer], self._values[layer], slots, self._seen, start)
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
        slots = self._own[:, self.length : end].flatten()
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

    def set_cross(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep the keys and values [sources, length, heads, head_dim] of the encoder's states for one layer."""
        self._cross[layer] = (keys, values)

    @property
    def has_cross(self) -> bool:
        """Whether the encoder's keys and values are here."""
        return bool(self._cross) and self._cross[0] is not None

    def cross(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values [sources, length, heads, head_dim] that `set_cross` kept."""
        pair = self._cross[layer]
        assert pair is not None, "cross-attention before set_cross"
        return pair

    def attend_cross(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Attend from q [rows * T, heads, head_dim] to the source of each row."""
        return ops.cross_decode_attention(q, *self.cross(layer), self.source_mask)

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r continues the history of row `rows[r]` (int64 [rows]) of the same source; its slots stay its own."""
        seen = (self._own if self._seen is None else self._seen)[rows]
        seen[:, self.length :] = self._own[:, self.length :]
        self._seen = seen

    reorder_cache = reorder

    def select(self, rows: torch.Tensor, sources: torch.Tensor) -> None:
        """Keep only these rows (int64) and these sources: the others are finished."""
        self._resize(rows, self.capacity)
        self._cross = [None if pair is None else (pair[0][sources], pair[1][sources]) for pair in self._cross]
        if self.source_mask is not None:
            self.source_mask = self.source_mask[sources]

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
        self._own = _identity(self.rows, capacity, self._own.device)


def _identity(rows: int, capacity: int, device: torch.device) -> torch.Tensor:
    return torch.arange(rows * capacity, device=device).view(rows, capacity)
