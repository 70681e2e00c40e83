"""attention: softmax(Q K^T * D^-0.5) V over packed rows (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

Shapes: q [Tq, H, D], k and v [Tk, H, D], out [Tq, H, D]. Row b owns tokens cu_q[b]:cu_q[b+1] of q and
cu_k[b]:cu_k[b+1] of k and v. Causal is by position: query i of a row stands at q_start[b] + i (0 + i by default)
and sees keys j <= q_start[b] + i; key_len[b] hides the keys of row b from that one on. A query with no key to see
gives 0.

FLOPs: 4 H D * sum over rows of Lq Lk (half of it where causal); bytes: (2 Tq + 2 Tk) H D * itemsize.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    causal: bool = False,
    q_start: torch.Tensor | None = None,
    key_len: torch.Tensor | None = None,
    key_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention of packed rows, by way of a padded batch.

    Args:
        q, k, v: [Tq, H, D], [Tk, H, D], [Tk, H, D] of one floating dtype.
        cu_q, cu_k: int32 [B + 1], where each row begins; the last entry is Tq, Tk.
        max_q, max_k: length of the longest row of each.
        causal, q_start, key_len: see the module; q_start and key_len are integer tensors [B].
        key_mask: bool [B, max_k], False hides a key; for masks that lengths cannot express.
        dropout: probability with which an attention weight is dropped (training).

    Returns:
        [Tq, H, D]; autograd works.
    """
    if max_q == 0 or max_k == 0:
        return torch.zeros_like(q)
    rows = cu_q.numel() - 1
    dense_q, index_q = _padded(q, cu_q, max_q, rows)
    same = cu_k is cu_q
    dense_k, index_k = _padded(k, cu_k, max_k, rows, index_q if same else None)
    dense_v, _ = _padded(v, cu_k, max_k, rows, index_k)

    # In causal self-attention the padding stands behind every real query, so the causal mask hides it as well.
    aligned = causal and same and q_start is None
    mask = None
    if index_k is not None and not aligned:
        mask = torch.arange(max_k, device=q.device) < (cu_k[1:] - cu_k[:-1])[:, None]
    if key_len is not None:
        seen = torch.arange(max_k, device=q.device) < key_len[:, None]
        mask = seen if mask is None else mask & seen
    if key_mask is not None:
        mask = key_mask if mask is None else mask & key_mask
    if mask is not None:
        mask = mask[:, None, None, :]
    if causal and (not aligned or mask is not None):
        position = torch.arange(max_q, device=q.device)
        position = position[None] if q_start is None else position + q_start[:, None]
        past = (torch.arange(max_k, device=q.device) <= position[..., None])[:, None]
        mask = past if mask is None else mask & past

    out = F.scaled_dot_product_attention(
        dense_q, dense_k, dense_v, attn_mask=mask, dropout_p=dropout, is_causal=causal and mask is None
    ).transpose(1, 2)
    if index_q is None:
        return out.reshape(q.shape)
    return out.flatten(0, 1)[index_q[1]]


def masked_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of a padded batch under any mask, with its weights.

    Args:
        q: [B, T, H, D]. k, v: [B, S, H, D].
        mask: broadcasts to [B, H, T, S]; bool, False hides a key, or floating, added to the scaled products.
        dropout: probability with which a weight is dropped (training).

    Returns:
        out [B, T, H, D] and the weights [B, H, T, S] it was made with, after dropout; softmax in float32, both in the
        dtype of q. 0 where a query has no key to see.
    """
    scores = torch.einsum("bthd,bshd->bhts", q, k).float() * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    # A row of nothing but -inf has no softmax: its weights are 0, and the gradient must not meet the nan.
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    weights = F.dropout(weights, dropout).to(q.dtype)
    return torch.einsum("bhts,bshd->bthd", weights, v), weights


def _padded(
    x: torch.Tensor,
    cu: torch.Tensor,
    longest: int,
    rows: int,
    index: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """[T, H, D] -> [rows, H, longest, D] and the index pair (packed of padded, padded of packed); None if full."""
    if rows * longest == x.shape[0]:
        return x.view(rows, longest, *x.shape[1:]).transpose(1, 2), None
    if index is None:
        column = torch.arange(longest, device=x.device)
        valid = column < (cu[1:] - cu[:-1])[:, None]
        # Padding repeats a real token: its value is finite, and the mask hides it.
        gather = torch.where(valid, cu[:-1, None] + column, 0).flatten().long()
        index = (gather, valid.flatten().nonzero().squeeze(1))
    return x[index[0]].view(rows, longest, *x.shape[1:]).transpose(1, 2), index
