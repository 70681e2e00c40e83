"""decode_attention: one new token per row against the keys and values of its past.

Self-attention: row r appends its key and value at slot `slots[r]` of the pools and attends to the positions
0 .. length of its own history; `table[r, t]` says in which slot position t lies (None: slot r * capacity + t), so
that a beam reorder permutes the table and moves no keys or values.

Cross-attention: the rows of one source (its beams) attend as one tile to the keys and values of that source, which
exist once: k and v [B, S, H, D] serve rows [B * W, H, D].

Bytes: self 2 R t H D, cross 2 B S H D, each times itemsize; nothing else is of that size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def decode_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_pool: torch.Tensor,
    value_pool: torch.Tensor,
    slots: torch.Tensor,
    table: torch.Tensor | None,
    length: int,
) -> torch.Tensor:
    """Append one position and attend to all.

    Args:
        q, k, v: [R, H, D], the new position of each row.
        key_pool, value_pool: [N, H, D], written in place at `slots`.
        slots: int64 [R], the slot each row writes.
        table: int32 or int64 [R, >= length + 1] slot of each position, the new one included; None where row r owns
            slots r * (N / R) + t.
        length: positions before this one, the same for all rows.

    Returns:
        [R, H, D]
    """
    rows, heads, width = q.shape
    key_pool.index_copy_(0, slots, k)
    value_pool.index_copy_(0, slots, v)
    if table is None:
        keys = key_pool.view(rows, -1, heads, width)[:, : length + 1]
        values = value_pool.view(rows, -1, heads, width)[:, : length + 1]
    else:
        index = table[:, : length + 1].flatten()
        keys = key_pool.index_select(0, index).view(rows, length + 1, heads, width)
        values = value_pool.index_select(0, index).view(rows, length + 1, heads, width)
    out = F.scaled_dot_product_attention(q.unsqueeze(2), keys.transpose(1, 2), values.transpose(1, 2))
    return out.squeeze(2)


def cross_decode_attention_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend from the rows of each source to that source.

    Args:
        q: [B * W, H, D], the W rows of a source adjacent.
        k, v: [B, S, H, D].
        key_mask: bool [B, S], False hides a key; None where all are real.

    Returns:
        [B * W, H, D]; 0 where a source has no key.
    """
    sources, length, heads, width = k.shape
    if length == 0:
        return torch.zeros_like(q)
    tile = q.view(sources, -1, heads, width).transpose(1, 2)
    mask = None if key_mask is None else key_mask[:, None, None, :]
    out = F.scaled_dot_product_attention(tile, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2).reshape(q.shape)
