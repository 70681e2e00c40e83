"""attention: softmax(Q K^T * D^-0.5) V over packed sequences (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

Shapes: q [Tq, H, D], k and v [Tk, H, D], out [Tq, H, D]. Sequence b has tokens cu_q[b]:cu_q[b+1] of q and
cu_k[b]:cu_k[b+1] of k and v (`cu_seqlens` of FlashAttention). Causal masking is by position: query i of a sequence has
position q_start[b] + i (default i) and sees keys j <= q_start[b] + i. key_len[b] hides all keys of the sequence from
that one on. A query without a visible key gives 0.

FLOPs: 4 H D * sum of Lq Lk over the sequences (half of it where causal); bytes: (2 Tq + 2 Tk) H D * itemsize.

The kernel fuses both products with the softmax (Dao et al. 2022, arXiv 2205.14135), so it neither writes nor reads the
H Lq Lk scores and weights of a sequence: at 512 tokens and head dim 64, these are 8 times the bytes of q, k, v and out.
A program has one tile of queries of one head, keeps a running maximum and sum, and masks only the tiles of keys that
need it. Where all keys fit one tile, nothing is rescaled. On an H200 (4.3 TB/s, 790 TFLOP/s) head dim 64 in bfloat16 is
bound by bytes up to 367 tokens. Above, each score takes 256 FLOPs, one exponential and 7.3 instructions, three limits
about equally high: 487 TFLOP/s if they do not overlap. The backward recomputes the weights: 3.5 times the FLOPs of the
forward, in two kernels, of which one sums over keys and one over queries. There are no atomic additions, so equal calls
give equal gradients.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from . import tuning
from .language import tl, triton


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
    """Attention over packed sequences, computed on a padded batch.

    Args:
        q, k, v: [Tq, H, D], [Tk, H, D], [Tk, H, D] of one floating dtype.
        cu_q, cu_k: int32 [B + 1], offset of the first token of each sequence; the last entry is Tq, Tk.
        max_q, max_k: length of the longest sequence of each.
        causal, q_start, key_len: see the module docstring; q_start and key_len are integer tensors [B].
        key_mask: bool [B, max_k], False hides a key; for masks that key_len cannot express.
        dropout: probability of dropping an attention weight (training).

    Returns:
        [Tq, H, D]; autograd works.
    """
    if max_q == 0 or max_k == 0:
        return torch.zeros_like(q)
    batch = cu_q.numel() - 1
    dense_q, index_q = _padded(q, cu_q, max_q, batch)
    self_attention = cu_k is cu_q
    dense_k, index_k = _padded(k, cu_k, max_k, batch, index_q if self_attention else None)
    dense_v, _ = _padded(v, cu_k, max_k, batch, index_k)

    # In causal self-attention the padding comes after every query, so the causal mask hides it.
    aligned = causal and self_attention and q_start is None
    mask = None
    if index_k is not None and not aligned:
        mask = torch.arange(max_k, device=q.device) < (cu_k[1:] - cu_k[:-1])[:, None]
    if key_len is not None:
        visible = torch.arange(max_k, device=q.device) < key_len[:, None]
        mask = visible if mask is None else mask & visible
    if key_mask is not None:
        mask = key_mask if mask is None else mask & key_mask
    if mask is not None:
        mask = mask[:, None, None, :]
    if causal and (not aligned or mask is not None):
        position = torch.arange(max_q, device=q.device)
        position = position[None] if q_start is None else position + q_start[:, None]
        causal_mask = (torch.arange(max_k, device=q.device) <= position[..., None])[:, None]
        mask = causal_mask if mask is None else mask & causal_mask

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
    """Attention over a padded batch under any mask; also returns the weights.

    Args:
        q: [B, T, H, D]. k, v: [B, S, H, D].
        mask: broadcasts to [B, H, T, S]; bool, False hides a key, or floating, added to the scaled products.
        dropout: probability of dropping a weight (training).

    Returns:
        out [B, T, H, D] and the weights [B, H, T, S] after dropout, both in the dtype of q; softmax in float32. 0 where
        a query has no visible key.
    """
    scores = torch.einsum("bthd,bshd->bhts", q, k).float() * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    # Where all scores of a query are -inf, softmax is NaN: set the weights to 0 without NaN in the gradient.
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    weights = F.dropout(weights, dropout).to(q.dtype)
    return torch.einsum("bhts,bshd->bthd", weights, v), weights


def _padded(
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    batch: int,
    index: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """[T, H, D] -> [batch, H, max_seqlen, D]; indices (packed of padded, padded of packed), None without padding."""
    if batch * max_seqlen == x.shape[0] and not torch.jit.is_tracing():  # the trace may run on shorter sequences
        return x.view(batch, max_seqlen, *x.shape[1:]).transpose(1, 2), None
    if index is None:
        column = torch.arange(max_seqlen, device=x.device)
        valid = column < (cu_seqlens[1:] - cu_seqlens[:-1])[:, None]
        # Padding repeats the first token: finite values, which the mask hides.
        gather = torch.where(valid, cu_seqlens[:-1, None] + column, 0).flatten().long()
        index = (gather, valid.flatten().nonzero().squeeze(1))
    return x[index[0]].view(batch, max_seqlen, *x.shape[1:]).transpose(1, 2), index


LN2 = tl.constexpr(math.log(2))


@triton.jit
def _sequence(cu_seqlens_ptr, batch):
    """Offset of the first token of a sequence, and its length."""
    offset = tl.load(cu_seqlens_ptr + batch)
    return offset.to(tl.int64), tl.load(cu_seqlens_ptr + batch + 1) - offset


@triton.jit
def _visible_keys(q_start_ptr, key_len_ptr, batch, seqlen_q, seqlen_k):
    """Position of the first query of a sequence, and the number of its keys that are not hidden; both int32."""
    q_start = 0
    if q_start_ptr is not None:
        q_start = tl.minimum(tl.maximum(tl.load(q_start_ptr + batch).to(tl.int64), -seqlen_q), seqlen_k).to(tl.int32)
    if key_len_ptr is not None:
        seqlen_k = tl.minimum(tl.maximum(tl.load(key_len_ptr + batch).to(tl.int64), 0), seqlen_k).to(tl.int32)
    return q_start, seqlen_k


@triton.jit
def _key_bounds(q_start, seqlen_k, start_m, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(unmasked_end, end) of a tile of queries: all of them see keys < unmasked_end, none sees keys >= end.

    unmasked_end is a multiple of BLOCK_N: only tiles of keys between the two need a mask.
    """
    unmasked_end, end = seqlen_k, seqlen_k
    if CAUSAL:
        unmasked_end = tl.minimum(seqlen_k, tl.maximum(q_start + start_m + 1, 0))
        end = tl.minimum(seqlen_k, q_start + start_m + BLOCK_M)
    return unmasked_end // BLOCK_N * BLOCK_N, end


@triton.jit
def _load_tile(ptr, offs, end, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Vectors `offs` of one head, [len(offs), BLOCK_D]; 0 from `end` and from HEAD_DIM on."""
    offs_d = tl.arange(0, BLOCK_D)
    mask = (offs < end)[:, None] & (offs_d < HEAD_DIM)[None, :]
    return tl.load(ptr + offs.to(tl.int64)[:, None] * stride + offs_d[None, :], mask=mask, other=0.0)


@triton.jit
def _store_tile(ptr, value, offs, end, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The counterpart of `_load_tile`."""
    offs_d = tl.arange(0, BLOCK_D)
    mask = (offs < end)[:, None] & (offs_d < HEAD_DIM)[None, :]
    tl.store(ptr + offs.to(tl.int64)[:, None] * stride + offs_d[None, :], value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _dropout_mask(seed, threshold, batch_head, offs_m, start_n, BLOCK_N: tl.constexpr):
    """Whether dropout keeps each weight, [len(offs_m), BLOCK_N].

    Word j % 4 of Philox(seed; j // 4, query, batch_head, 0) belongs to key j; the weight is kept where that word, as a
    signed number, is at least `threshold`. So the mask depends on the position of a weight alone, and the backward
    reproduces it with other tiles.
    """
    offs_four = start_n // 4 + tl.arange(0, BLOCK_N // 4)
    a, b, c, d = tl.philox(seed, offs_four[None, :], offs_m[:, None], batch_head, 0)
    words = tl.join(tl.join(a, c), tl.join(b, d)).reshape(offs_m.shape[0], BLOCK_N)
    return words.to(tl.int32, bitcast=True) >= threshold


@triton.jit(do_not_specialize=["total_q", "tiles", "seed", "dropout_threshold"])
def _attention_fwd_kernel(
    q_ptr,  # [Tq, H, D]; the stride of the last dimension is 1
    k_ptr,  # [Tk, H, D]
    v_ptr,  # [Tk, H, D]
    out_ptr,  # [Tq, H, D], contiguous
    lse_ptr,  # float32 [H, Tq]: log2 of the sum of 2^score, inf where no key is visible; or None
    cu_seqlens_q_ptr,  # int32 [B + 1]
    cu_seqlens_k_ptr,  # int32 [B + 1]
    q_start_ptr,  # integers [B] or None
    key_len_ptr,  # integers [B] or None
    stride_q_token,
    stride_q_head,
    stride_k_token,
    stride_k_head,
    stride_v_token,
    stride_v_head,
    total_q,  # Tq
    heads,
    tiles,  # of queries, of the longest sequence
    scale,  # D^-0.5 log2(e): softmax by powers of two
    seed: tl.int64,
    dropout_threshold: tl.int32,
    dropout_scale,  # 1 / (1 - dropout)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    ONE_TILE: tl.constexpr,  # whether every sequence has at most BLOCK_N keys
    DROPOUT: tl.constexpr,
):
    """One program per sequence, head and tile of queries."""
    program = tl.program_id(0).to(tl.int64)
    batch, head, tile = program // (tiles * heads), program // tiles % heads, (program % tiles).to(tl.int32)
    offset_q, seqlen_q = _sequence(cu_seqlens_q_ptr, batch)
    if tile * BLOCK_M >= seqlen_q:
        return
    offset_k, seqlen_k = _sequence(cu_seqlens_k_ptr, batch)
    q_start, seqlen_k = _visible_keys(q_start_ptr, key_len_ptr, batch, seqlen_q, seqlen_k)
    batch_head = (batch * heads + head).to(tl.int32)
    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)

    unmasked_end, end = _key_bounds(q_start, seqlen_k, tile * BLOCK_M, CAUSAL, BLOCK_M, BLOCK_N)
    if ONE_TILE:
        unmasked_end, end = 0, BLOCK_N

    k_ptr += offset_k * stride_k_token + head * stride_k_head
    v_ptr += offset_k * stride_v_token + head * stride_v_head
    q_ptr += offset_q * stride_q_token + head * stride_q_head
    q = _load_tile(q_ptr, offs_m, seqlen_q, stride_q_token, HEAD_DIM, BLOCK_D)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    row_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for masked in tl.static_range(ONE_TILE, 2):
        for start_n in tl.range(
            unmasked_end if masked else 0,
            end if masked else unmasked_end,
            BLOCK_N,
            num_stages=1 if masked else None,
        ):
            k = _load_tile(
                k_ptr, start_n + offs_n, seqlen_k if masked else start_n + BLOCK_N, stride_k_token, HEAD_DIM, BLOCK_D
            )
            qk = tl.dot(q, tl.trans(k), input_precision="ieee")
            if masked:
                visible = (start_n + offs_n < seqlen_k)[None, :]
                if CAUSAL:
                    visible = visible & (start_n + offs_n[None, :] <= q_start + offs_m[:, None])
                qk = tl.where(visible, qk, -float("inf"))
            new_max = tl.maximum(row_max, tl.max(qk, 1) * scale)
            # Of a query without a visible key so far, every weight must become 0 and not NaN.
            shift = tl.where(new_max == -float("inf"), 0.0, new_max) if masked else new_max
            p = tl.math.exp2(qk * scale - shift[:, None])
            if not ONE_TILE:
                alpha = tl.math.exp2(row_max - shift)
                row_sum *= alpha
                acc *= alpha[:, None]
            row_sum += tl.sum(p, 1)
            row_max = new_max
            if DROPOUT:
                p = tl.where(_dropout_mask(seed, dropout_threshold, batch_head, offs_m, start_n, BLOCK_N), p, 0.0)
            v = _load_tile(
                v_ptr, start_n + offs_n, seqlen_k if masked else start_n + BLOCK_N, stride_v_token, HEAD_DIM, BLOCK_D
            )
            acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")

    empty = row_sum == 0.0
    row_sum = tl.where(empty, 1.0, row_sum)
    acc *= (dropout_scale / row_sum)[:, None]
    out_ptr += (offset_q * heads + head) * HEAD_DIM
    _store_tile(out_ptr, acc, offs_m, seqlen_q, heads * HEAD_DIM, HEAD_DIM, BLOCK_D)
    if lse_ptr is not None:
        lse = tl.where(empty, float("inf"), row_max + tl.math.log2(row_sum))
        tl.store(lse_ptr + head * total_q + offset_q + offs_m, lse, mask=offs_m < seqlen_q)


class _PackedBatch(NamedTuple):
    """Arguments of attention besides q, k and v."""

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    causal: bool
    q_start: torch.Tensor | None
    key_len: torch.Tensor | None
    dropout: float
    seed: int


def attention_triton(
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
    """`attention_reference` as one kernel; two more for the gradients of q, k and v.

    Head dims up to 128, in float32, float16 or bfloat16. The last dimension of q, k and v is contiguous; tokens and
    heads may be strided. The dropout seed is drawn from torch's default generator; the mask differs from that of the
    reference.

    Raises:
        ValueError: arguments that do not fit together or exceed a limit, and any key_mask.
    """
    batch = _PackedBatch(cu_q, cu_k, max_q, max_k, causal, q_start, key_len, float(dropout), 0)
    _check(q, k, v, batch, key_mask)
    if q.numel() == 0 or max_q == 0 or max_k == 0:
        return torch.zeros_like(q)
    if dropout:
        batch = batch._replace(seed=int(torch.randint(2**63 - 1, (), device="cpu")))
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _Attention.apply(q, k, v, batch)
    return _forward(q, k, v, batch, None)


def _check(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: _PackedBatch, key_mask: torch.Tensor | None
) -> None:
    if key_mask is not None:
        raise ValueError("key_mask: not supported by this kernel, only by the reference")
    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape or q.shape[1:] != k.shape[1:]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: must be [Tq, H, D], [Tk, H, D], [Tk, H, D]"
        )
    if not 1 <= q.shape[2] <= 128:
        raise ValueError(f"head dim {q.shape[2]}: from 1 to 128 are supported")
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16) or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"q {q.dtype}, k {k.dtype}, v {v.dtype}: one of float32, float16 and bfloat16 for all")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.numel() and x.stride(2) != 1 and x.shape[2] > 1:
            raise ValueError(f"{name} has stride {x.stride(2)} in its last dimension: 1 is supported")
    sequences = batch.cu_seqlens_q.numel() - 1
    for name, x, size in (
        ("cu_q", batch.cu_seqlens_q, sequences + 1),
        ("cu_k", batch.cu_seqlens_k, sequences + 1),
        ("q_start", batch.q_start, sequences),
        ("key_len", batch.key_len, sequences),
    ):
        if x is None:
            continue
        if x.shape != (size,) or sequences < 0 or not x.is_contiguous():
            raise ValueError(f"{name} must be contiguous [{max(size, 0)}], not {list(x.shape)} of strides {x.stride()}")
        if x.dtype != torch.int32 and (x.dtype != torch.int64 or name.startswith("cu")):
            raise ValueError(f"{name} is {x.dtype}: int32 {'' if name.startswith('cu') else 'or int64 '}is supported")
    for name, x, max_seqlen in (("max_q", q, batch.max_seqlen_q), ("max_k", k, batch.max_seqlen_k)):
        if not 0 <= max_seqlen <= x.shape[0] or max_seqlen * sequences < x.shape[0]:
            raise ValueError(f"{name} {max_seqlen}: not the longest of {sequences} sequences with {x.shape[0]} tokens")
    for other in (k, v, *batch):
        if isinstance(other, torch.Tensor) and other.device != q.device:
            raise ValueError(f"tensors on {q.device} and {other.device}: one device is supported")
    if not 0.0 <= batch.dropout < 1.0:
        raise ValueError(f"dropout {batch.dropout}: from 0 to below 1 is supported")


def _kernel_arguments(q: torch.Tensor, batch: _PackedBatch) -> dict[str, Any]:
    """Arguments that all three kernels have."""
    head_dim = q.shape[2]
    return {
        "cu_seqlens_q_ptr": batch.cu_seqlens_q,
        "cu_seqlens_k_ptr": batch.cu_seqlens_k,
        "q_start_ptr": batch.q_start,
        "key_len_ptr": batch.key_len,
        "total_q": q.shape[0],
        "heads": q.shape[1],
        "scale": head_dim**-0.5 * math.log2(math.e),
        "seed": batch.seed,
        "dropout_threshold": min(round(batch.dropout * 2**32), 2**32 - 1) - 2**31,
        "dropout_scale": 1 / (1 - batch.dropout),
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(16, tuning.power_of_2(head_dim)),
        "CAUSAL": batch.causal,
        "DROPOUT": batch.dropout > 0,
    }


def _strides(**tensors: torch.Tensor) -> dict[str, int]:
    """stride_NAME_token and stride_NAME_head of each tensor."""
    dims = ("token", "head")
    return {f"stride_{name}_{dim}": x.stride(i) for name, x in tensors.items() for i, dim in enumerate(dims)}


def _grid(tiles: int, q: torch.Tensor, batch: _PackedBatch) -> tuple[int]:
    programs = tiles * q.shape[1] * (batch.cu_seqlens_q.numel() - 1)
    if programs >= 2**31:
        raise ValueError(f"{programs} tiles of attention: at most {2**31 - 1} are supported")
    return (programs,)


def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: _PackedBatch, lse: torch.Tensor | None
) -> torch.Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    launch = tuning.attention(tuning.architecture(q.device), q.shape[2], q.dtype.itemsize, batch.dropout > 0)
    tiles = -(-batch.max_seqlen_q // launch.tiles["BLOCK_M"])
    _attention_fwd_kernel[_grid(tiles, q, batch)](
        q_ptr=q,
        k_ptr=k,
        v_ptr=v,
        out_ptr=out,
        lse_ptr=lse,
        tiles=tiles,
        ONE_TILE=int(batch.max_seqlen_k <= launch.tiles["BLOCK_N"]),
        **_kernel_arguments(q, batch),
        **_strides(q=q, k=k, v=v),
        **launch.tiles,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return out


@triton.jit(do_not_specialize=["total_q", "tiles", "seed", "dropout_threshold"])
def _attention_bwd_dq_kernel(
    q_ptr,  # to lse_ptr as in _attention_fwd_kernel
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    dout_ptr,  # [Tq, H, D]; the stride of the last dimension is 1
    delta_ptr,  # float32 [H, Tq], written: row sums of dout * out
    dq_ptr,  # [Tq, H, D], contiguous, written
    cu_seqlens_q_ptr,
    cu_seqlens_k_ptr,
    q_start_ptr,
    key_len_ptr,
    stride_q_token,
    stride_q_head,
    stride_k_token,
    stride_k_head,
    stride_v_token,
    stride_v_head,
    stride_dout_token,
    stride_dout_head,
    total_q,
    heads,
    tiles,  # of queries
    scale,
    seed: tl.int64,
    dropout_threshold: tl.int32,
    dropout_scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """One program per sequence, head and tile of queries; sums over keys."""
    program = tl.program_id(0).to(tl.int64)
    batch, head, tile = program // (tiles * heads), program // tiles % heads, (program % tiles).to(tl.int32)
    offset_q, seqlen_q = _sequence(cu_seqlens_q_ptr, batch)
    if tile * BLOCK_M >= seqlen_q:
        return
    offset_k, seqlen_k = _sequence(cu_seqlens_k_ptr, batch)
    q_start, seqlen_k = _visible_keys(q_start_ptr, key_len_ptr, batch, seqlen_q, seqlen_k)
    batch_head = (batch * heads + head).to(tl.int32)
    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    unmasked_end, end = _key_bounds(q_start, seqlen_k, tile * BLOCK_M, CAUSAL, BLOCK_M, BLOCK_N)

    k_ptr += offset_k * stride_k_token + head * stride_k_head
    v_ptr += offset_k * stride_v_token + head * stride_v_head
    offset_out = (offset_q * heads + head) * HEAD_DIM
    q_ptr += offset_q * stride_q_token + head * stride_q_head
    q = _load_tile(q_ptr, offs_m, seqlen_q, stride_q_token, HEAD_DIM, BLOCK_D)
    dout_ptr += offset_q * stride_dout_token + head * stride_dout_head
    dout = _load_tile(dout_ptr, offs_m, seqlen_q, stride_dout_token, HEAD_DIM, BLOCK_D)
    out = _load_tile(out_ptr + offset_out, offs_m, seqlen_q, heads * HEAD_DIM, HEAD_DIM, BLOCK_D)
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + head * total_q + offset_q + offs_m, delta, mask=offs_m < seqlen_q)
    lse = tl.load(lse_ptr + head * total_q + offset_q + offs_m, mask=offs_m < seqlen_q, other=float("inf"))
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for masked in tl.static_range(2):
        for start_n in tl.range(
            unmasked_end if masked else 0,
            end if masked else unmasked_end,
            BLOCK_N,
            num_stages=1 if masked else None,
        ):
            k_end = seqlen_k if masked else start_n + BLOCK_N
            k = _load_tile(k_ptr, start_n + offs_n, k_end, stride_k_token, HEAD_DIM, BLOCK_D)
            p = tl.math.exp2(tl.dot(q, tl.trans(k), input_precision="ieee") * scale - lse[:, None])
            if masked:
                visible = (start_n + offs_n < seqlen_k)[None, :]
                if CAUSAL:
                    visible = visible & (start_n + offs_n[None, :] <= q_start + offs_m[:, None])
                p = tl.where(visible, p, 0.0)
            v = _load_tile(v_ptr, start_n + offs_n, k_end, stride_v_token, HEAD_DIM, BLOCK_D)
            dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
            if DROPOUT:
                dropout_mask = _dropout_mask(seed, dropout_threshold, batch_head, offs_m, start_n, BLOCK_N)
                dp = tl.where(dropout_mask, dp * dropout_scale, 0.0)
            ds = p * (dp - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    _store_tile(dq_ptr + offset_out, dq * (scale * LN2), offs_m, seqlen_q, heads * HEAD_DIM, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["total_q", "tiles", "seed", "dropout_threshold"])
def _attention_bwd_dkv_kernel(
    q_ptr,  # to delta_ptr as in _attention_bwd_dq_kernel, but for out_ptr
    k_ptr,
    v_ptr,
    lse_ptr,
    dout_ptr,
    delta_ptr,
    dk_ptr,  # [Tk, H, D], contiguous, written
    dv_ptr,  # [Tk, H, D], contiguous, written
    cu_seqlens_q_ptr,
    cu_seqlens_k_ptr,
    q_start_ptr,
    key_len_ptr,
    stride_q_token,
    stride_q_head,
    stride_k_token,
    stride_k_head,
    stride_v_token,
    stride_v_head,
    stride_dout_token,
    stride_dout_head,
    total_q,
    heads,
    tiles,  # of keys
    scale,
    seed: tl.int64,
    dropout_threshold: tl.int32,
    dropout_scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """One program per sequence, head and tile of keys; sums over queries. Runs after _attention_bwd_dq_kernel."""
    program = tl.program_id(0).to(tl.int64)
    batch, head, tile = program // (tiles * heads), program // tiles % heads, (program % tiles).to(tl.int32)
    offset_k, seqlen_k = _sequence(cu_seqlens_k_ptr, batch)
    start_n = tile * BLOCK_N
    if start_n >= seqlen_k:
        return
    offset_q, seqlen_q = _sequence(cu_seqlens_q_ptr, batch)
    q_start, visible_k = _visible_keys(q_start_ptr, key_len_ptr, batch, seqlen_q, seqlen_k)
    batch_head = (batch * heads + head).to(tl.int32)
    offs_n = start_n + tl.arange(0, BLOCK_N)
    offs_block_m = tl.arange(0, BLOCK_M)

    # Queries < first_m see no key of the tile; queries >= unmasked_start see all its keys that are not hidden.
    first_m, unmasked_start = 0, 0
    if CAUSAL:
        first_m = tl.maximum(start_n - q_start, 0) // BLOCK_M * BLOCK_M
        unmasked_start = tl.cdiv(tl.maximum(start_n + BLOCK_N - 1 - q_start, 0), BLOCK_M) * BLOCK_M
    if start_n >= visible_k:
        seqlen_q = 0

    q_ptr += offset_q * stride_q_token + head * stride_q_head
    dout_ptr += offset_q * stride_dout_token + head * stride_dout_head
    lse_ptr += head * total_q + offset_q
    delta_ptr += head * total_q + offset_q
    k_ptr += offset_k * stride_k_token + head * stride_k_head
    k = _load_tile(k_ptr, offs_n, visible_k, stride_k_token, HEAD_DIM, BLOCK_D)
    v_ptr += offset_k * stride_v_token + head * stride_v_head
    v = _load_tile(v_ptr, offs_n, visible_k, stride_v_token, HEAD_DIM, BLOCK_D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for masked in tl.static_range(2 if CAUSAL else 1):
        for start_m in tl.range(
            first_m if masked else unmasked_start,
            tl.minimum(unmasked_start, seqlen_q) if masked else seqlen_q,
            BLOCK_M,
            num_stages=1 if masked else None,
        ):
            offs_m = start_m + offs_block_m
            q = _load_tile(q_ptr, offs_m, seqlen_q, stride_q_token, HEAD_DIM, BLOCK_D)
            dout = _load_tile(dout_ptr, offs_m, seqlen_q, stride_dout_token, HEAD_DIM, BLOCK_D)
            lse = tl.load(lse_ptr + offs_m, mask=offs_m < seqlen_q, other=float("inf"))
            delta = tl.load(delta_ptr + offs_m, mask=offs_m < seqlen_q, other=0.0)
            p = tl.math.exp2(tl.dot(k, tl.trans(q), input_precision="ieee") * scale - lse[None, :])
            if masked:
                p = tl.where(offs_n[:, None] <= q_start + offs_m[None, :], p, 0.0)
            dp = tl.dot(v, tl.trans(dout), input_precision="ieee")
            p_dropped = p
            if DROPOUT:
                dropout_mask = _dropout_mask(seed, dropout_threshold, batch_head, offs_m, start_n, BLOCK_N)
                dropout_mask = tl.trans(dropout_mask)
                p_dropped = tl.where(dropout_mask, p * dropout_scale, 0.0)
                dp = tl.where(dropout_mask, dp * dropout_scale, 0.0)
            dv = tl.dot(p_dropped.to(dout.dtype), dout, dv, input_precision="ieee")
            ds = p * (dp - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")

    offset_out = (offset_k * heads + head) * HEAD_DIM
    visible = (offs_n < visible_k)[:, None]
    dk = tl.where(visible, dk * (scale * LN2), 0.0)
    dv = tl.where(visible, dv, 0.0)
    _store_tile(dk_ptr + offset_out, dk, offs_n, seqlen_k, heads * HEAD_DIM, HEAD_DIM, BLOCK_D)
    _store_tile(dv_ptr + offset_out, dv, offs_n, seqlen_k, heads * HEAD_DIM, HEAD_DIM, BLOCK_D)


class _Attention(torch.autograd.Function):
    """Saves lse, from which the backward recomputes the softmax weights (Dao 2023, arXiv 2307.08691)."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: _PackedBatch) -> torch.Tensor:
        lse = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32, device=q.device)
        out = _forward(q, k, v, batch, lse)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.batch = batch
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        return *_backward(q, k, v, out, lse, dout, ctx.batch), None


def _backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    dout: torch.Tensor,
    batch: _PackedBatch,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if dout.stride(2) != 1:
        dout = dout.contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)
    arch = tuning.architecture(q.device)
    arguments = {
        **{"q_ptr": q, "k_ptr": k, "v_ptr": v, "lse_ptr": lse, "dout_ptr": dout, "delta_ptr": delta},
        **_kernel_arguments(q, batch),
        **_strides(q=q, k=k, v=v, dout=dout),
    }
    launch = tuning.attention_dq(arch, q.shape[2], q.dtype.itemsize, batch.dropout > 0)
    tiles = -(-batch.max_seqlen_q // launch.tiles["BLOCK_M"])
    _attention_bwd_dq_kernel[_grid(tiles, q, batch)](
        out_ptr=out, dq_ptr=dq, tiles=tiles, **arguments,
        **launch.tiles, num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    # After the dq kernel, which writes delta.
    launch = tuning.attention_dkv(arch, q.shape[2], q.dtype.itemsize, batch.dropout > 0)
    tiles = -(-batch.max_seqlen_k // launch.tiles["BLOCK_N"])
    _attention_bwd_dkv_kernel[_grid(tiles, q, batch)](
        dk_ptr=dk, dv_ptr=dv, tiles=tiles, **arguments,
        **launch.tiles, num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    return dq, dk, dv
