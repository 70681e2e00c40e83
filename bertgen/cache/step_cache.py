"""The part of a cache that the layers of a decoder use in a step of one token of each row."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import ops
from .kv_pool import KVPool


@dataclass(frozen=True)
class CrossAttentionMetadata:
    """The sources of the rows, as arguments of `ops.cross_decode_attention`. Each request has one source.

    Attributes:
        table: int32 [requests, length of the longest source], the slots of each source.
        lengths: int32 [requests], positions of each source.
        cu_rows: int32 [requests + 1], where the rows of each request begin.
        max_rows: rows of the largest request.
    """

    table: torch.Tensor
    lengths: torch.Tensor
    cu_rows: torch.Tensor
    max_rows: int

    def mask(self) -> torch.Tensor:
        """bool [requests, length of the longest source], True where the table holds slots."""
        return torch.arange(self.table.shape[1], device=self.table.device) < self.lengths[:, None]

    def cu_seqlens_k(self) -> torch.Tensor:
        """int32 [requests + 1], where each source begins among the packed sources."""
        return torch.nn.functional.pad(self.lengths.cumsum(0, dtype=torch.int32), (1, 0))


class StepCache:
    """Base of the caches: pools, and the tables through which a step of one token of each row reads and writes them.

    Attributes:
        dtype, device: of keys and values.
        pool, cross_pool: keys and values of tokens, and of sources.
        layer: index in its stack of the layer that runs. It selects the tensors of the pools; the index that the layer
            was built with may differ.
        has_cross: whether the keys of the sources are written.
        lengths: int32 [R], positions of each row.
        slot_table: int32 [R, positions], the slot of each position of the history of each row.
        slot_mapping: int32 [R], the slots of the positions that this step writes.
        cross_metadata: the sources of the rows; None without any.
        arrivals: int32, zeros between launches: counters of attention whose keys several programs share.
    """

    dtype: torch.dtype
    device: torch.device
    pool: KVPool
    cross_pool: KVPool
    layer: int
    has_cross: bool
    lengths: torch.Tensor
    slot_table: torch.Tensor
    slot_mapping: torch.Tensor
    cross_metadata: CrossAttentionMetadata | None
    arrivals: torch.Tensor
    _tables: list[torch.Tensor]  # two; `slot_table` is the first of them, or its first rows

    @property
    def rows(self) -> int:
        """Number of rows."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.pool.keys)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Append the new position of each row in one layer, and attend to all of its history.

        Args:
            layer: index of the layer.
            q, k, v: [R, heads, head_dim].

        Returns:
            [R, heads, head_dim]. The position counts from the end of the step on.
        """
        assert key_mask is None, "a step has no mask"
        pool = self.pool.keys[layer], self.pool.values[layer]
        q, k, v = self._cast(q, k, v)
        slots = self.slot_mapping.flatten()
        return ops.decode_attention(q, k, v, *pool, slots, self.slot_table, self.lengths, self.arrivals)

    def attend_cross(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Attend from q [R, heads, head_dim] to the source of each row."""
        source = self.cross_metadata
        assert source is not None and self.has_cross, "cross-attention before set_cross"
        (q,) = self._cast(q)
        pool = self.cross_pool.keys[layer], self.cross_pool.values[layer]
        return ops.cross_decode_attention(
            q, *pool, source.table, source.lengths, source.cu_rows, source.max_rows, self.arrivals
        )

    def _gather_slot_table(self, rows: torch.Tensor) -> None:
        """Gather rows of the table from one buffer into the other: with duplicates it cannot be done in place."""
        gathered = self._tables[1][: len(rows)]
        torch.index_select(self.slot_table, 0, rows, out=gathered)
        self._tables.reverse()
        self.slot_table = gathered

    def _cast(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors in the dtype of the cache, which is that of the model: under autocast, products have another."""
        return tuple(t if t.dtype == self.dtype else t.to(self.dtype) for t in tensors)
