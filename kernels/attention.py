"""attention: softmax(Q K^T * D^-0.5) V over packed rows (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

Shapes: q [Tq, H, D], k and v [Tk, H, D], out [Tq, H, D]. Row b owns tokens cu_q[b]:cu_q[b+1] of q and
cu_k[b]:cu_k[b+1] of k and v. Causal is by position: query i of a row stands at q_start[b] + i (0 + i by default)
and sees keys j <= q_start[b] + i; key_len[b] hides the keys of row b from that one on. A query with no key to see
gives 0.

FLOPs: 4 H D * sum over rows of Lq Lk (half of it where causal); bytes: (2 Tq + 2 Tk) H D * itemsize.

The kernel fuses both products with the softmax (Dao et al. 2022, arXiv 2205.14135), and so neither writes nor reads
the H Lq Lk scores and weights of a row: at 512 tokens, 8 times the bytes of q, k, v and out with head dim 64. One
program has a tile of a row's queries for one head, keeps a running maximum and sum, and masks only tiles of keys that
need it. Where all keys fit one tile nothing is running. On an H200 (4.3 TB/s, 790 TFLOP/s) head dim 64 in bfloat16 is
bound by bytes up to 367 tokens; above, by the 256 FLOPs, one exponential and 7.3 instructions of a score, each of
which takes about as long: 487 TFLOP/s where they do not overlap. The backward makes the weights again, 3.5 times the
forward's FLOPs in two kernels, one that sums over keys and one that sums over queries: nothing is added atomically,
so that the same call gives the same gradients.
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
    if rows * longest == x.shape[0] and not torch.jit.is_tracing():  # other rows of the same trace may be shorter
        return x.view(rows, longest, *x.shape[1:]).transpose(1, 2), None
    if index is None:
        column = torch.arange(longest, device=x.device)
        valid = column < (cu[1:] - cu[:-1])[:, None]
        # Padding repeats a real token: its value is finite, and the mask hides it.
        gather = torch.where(valid, cu[:-1, None] + column, 0).flatten().long()
        index = (gather, valid.flatten().nonzero().squeeze(1))
    return x[index[0]].view(rows, longest, *x.shape[1:]).transpose(1, 2), index


LN2 = tl.constexpr(math.log(2))


@triton.jit
def _row(cu, row):
    """First token and length of a row."""
    first = tl.load(cu + row)
    return first.to(tl.int64), tl.load(cu + row + 1) - first


@triton.jit
def _seen(q_start, key_len, row, queries, keys):
    """Position of a row's first query and how many of its keys may be seen, both int32 whatever the tensors hold."""
    start = 0
    if q_start is not None:
        start = tl.minimum(tl.maximum(tl.load(q_start + row).to(tl.int64), -queries), keys).to(tl.int32)
    if key_len is not None:
        keys = tl.minimum(tl.maximum(tl.load(key_len + row).to(tl.int64), 0), keys).to(tl.int32)
    return start, keys


@triton.jit
def _range(start, keys, first, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Keys before the first number are seen by all queries of a tile, those from the second on by none.

    The first one is a multiple of BLOCK_N: only the tiles of keys between the two need a mask.
    """
    plain, end = keys, keys
    if CAUSAL:
        plain = tl.minimum(keys, tl.maximum(start + first + 1, 0))
        end = tl.minimum(keys, start + first + BLOCK_M)
    return plain // BLOCK_N * BLOCK_N, end


@triton.jit
def _tile(x, index, end, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Vectors `index` of one head [N, BLOCK_D]; 0 from `end` and from HEAD_DIM on."""
    d = tl.arange(0, BLOCK_D)
    mask = (index < end)[:, None] & (d < HEAD_DIM)[None, :]
    return tl.load(x + index.to(tl.int64)[:, None] * stride + d[None, :], mask=mask, other=0.0)


@triton.jit
def _put(x, value, index, end, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes what `_tile` reads."""
    d = tl.arange(0, BLOCK_D)
    mask = (index < end)[:, None] & (d < HEAD_DIM)[None, :]
    tl.store(x + index.to(tl.int64)[:, None] * stride + d[None, :], value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _kept(seed, drop, row_head, query, first_key, BLOCK_N: tl.constexpr):
    """Which weights dropout keeps [M, BLOCK_N].

    Word j % 4 of Philox(seed; j // 4, query, row_head, 0) decides on key j, as a signed number that must reach `drop`:
    a weight's fate depends on its place alone, so that the backward meets it again with other tiles.
    """
    fours = first_key // 4 + tl.arange(0, BLOCK_N // 4)
    a, b, c, d = tl.philox(seed, fours[None, :], query[:, None], row_head, 0)
    words = tl.join(tl.join(a, c), tl.join(b, d)).reshape(query.shape[0], BLOCK_N)
    return words.to(tl.int32, bitcast=True) >= drop


@triton.jit(do_not_specialize=["tokens", "tiles", "seed", "drop"])
def _attention_kernel(
    q,  # [Tq, H, D], strides below; the last one is 1
    k,  # [Tk, H, D]
    v,  # [Tk, H, D]
    out,  # [Tq, H, D], contiguous
    lse,  # float32 [H, Tq]: log2 of the sum of 2^score, inf where no key is seen; None: not wanted
    cu_q,  # int32 [B + 1]
    cu_k,  # int32 [B + 1]
    q_start,  # integers [B] or None
    key_len,  # integers [B] or None
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    tokens,  # Tq
    heads,
    tiles,  # of queries, of the longest row
    scale,  # D^-0.5 log2(e): the exponent is a power of two
    seed: tl.int64,
    drop: tl.int32,
    rescale,  # 1 / (1 - dropout)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    ONE_TILE: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row, head, tile = program // (tiles * heads), program // tiles % heads, (program % tiles).to(tl.int32)
    begin_q, queries = _row(cu_q, row)
    if tile * BLOCK_M >= queries:
        return
    begin_k, keys = _row(cu_k, row)
    start, keys = _seen(q_start, key_len, row, queries, keys)
    row_head = (row * heads + head).to(tl.int32)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.arange(0, BLOCK_N)

    plain, end = _range(start, keys, tile * BLOCK_M, CAUSAL, BLOCK_M, BLOCK_N)
    if ONE_TILE:
        plain, end = 0, BLOCK_N

    k += begin_k * k_token + head * k_head
    v += begin_k * v_token + head * v_head
    query = _tile(q + begin_q * q_token + head * q_head, m, queries, q_token, HEAD_DIM, BLOCK_D)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    most = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for masked in tl.static_range(ONE_TILE, 2):
        for n in tl.range(plain if masked else 0, end if masked else plain, BLOCK_N, num_stages=1 if masked else None):
            key = _tile(k, n + j, keys if masked else n + BLOCK_N, k_token, HEAD_DIM, BLOCK_D)
            score = tl.dot(query, tl.trans(key), input_precision="ieee")
            if masked:
                seen = (n + j < keys)[None, :]
                if CAUSAL:
                    seen = seen & (n + j[None, :] <= start + m[:, None])
                score = tl.where(seen, score, -float("inf"))
            above = tl.maximum(most, tl.max(score, 1) * scale)
            # Of a query that has seen no key yet, every weight must become 0 and not nan.
            shift = tl.where(above == -float("inf"), 0.0, above) if masked else above
            weight = tl.math.exp2(score * scale - shift[:, None])
            if not ONE_TILE:
                shrink = tl.math.exp2(most - shift)
                total *= shrink
                acc *= shrink[:, None]
            total += tl.sum(weight, 1)
            most = above
            if DROPOUT:
                weight = tl.where(_kept(seed, drop, row_head, m, n, BLOCK_N), weight, 0.0)
            value = _tile(v, n + j, keys if masked else n + BLOCK_N, v_token, HEAD_DIM, BLOCK_D)
            acc = tl.dot(weight.to(value.dtype), value, acc, input_precision="ieee")

    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    acc *= (rescale / total)[:, None]
    _put(out + (begin_q * heads + head) * HEAD_DIM, acc, m, queries, heads * HEAD_DIM, HEAD_DIM, BLOCK_D)
    if lse is not None:
        sums = tl.where(empty, float("inf"), most + tl.math.log2(total))
        tl.store(lse + head * tokens + begin_q + m, sums, mask=m < queries)


class _Rows(NamedTuple):
    """Which rows there are and what their queries see: what the kernels share besides q, k and v."""

    cu_q: torch.Tensor
    cu_k: torch.Tensor
    max_q: int
    max_k: int
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

    Head dims to 128, of float32, float16 or bfloat16; the vectors of a head are contiguous, tokens and heads may be
    strided. The seed of dropout is drawn from torch's default generator; the weights dropped are other ones than those
    of the reference.

    Raises:
        ValueError: for arguments that do not fit together or exceed a limit, and for any key_mask.
    """
    rows = _Rows(cu_q, cu_k, max_q, max_k, causal, q_start, key_len, float(dropout), 0)
    _check(q, k, v, rows, key_mask)
    if q.numel() == 0 or max_q == 0 or max_k == 0:
        return torch.zeros_like(q)
    if dropout:
        rows = rows._replace(seed=int(torch.randint(2**63 - 1, (), device="cpu")))
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _Attention.apply(q, k, v, rows)
    return _forward(q, k, v, rows, None)


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: _Rows, key_mask: torch.Tensor | None) -> None:
    if key_mask is not None:
        raise ValueError("key_mask: not in this kernel, only in the reference")
    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape or q.shape[1:] != k.shape[1:]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: not [Tq, H, D] and twice [Tk, H, D]"
        )
    if not 1 <= q.shape[2] <= 128:
        raise ValueError(f"head dim {q.shape[2]}: from 1 to 128 are supported")
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16) or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"q {q.dtype}, k {k.dtype}, v {v.dtype}: one of float32, float16 and bfloat16 for all")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.numel() and x.stride(2) != 1 and x.shape[2] > 1:
            raise ValueError(f"{name} has stride {x.stride(2)} in its last dimension: 1 is supported")
    count = rows.cu_q.numel() - 1
    for name, x, size in (
        ("cu_q", rows.cu_q, count + 1),
        ("cu_k", rows.cu_k, count + 1),
        ("q_start", rows.q_start, count),
        ("key_len", rows.key_len, count),
    ):
        if x is None:
            continue
        if x.shape != (size,) or count < 0 or not x.is_contiguous():
            raise ValueError(f"{name} {tuple(x.shape)} of stride {x.stride()}: not {max(count, 0)} contiguous rows")
        if x.dtype != torch.int32 and (x.dtype != torch.int64 or name.startswith("cu")):
            raise ValueError(f"{name} is {x.dtype}: int32 {'' if name.startswith('cu') else 'or int64 '}is supported")
    for name, x, longest in (("max_q", q, rows.max_q), ("max_k", k, rows.max_k)):
        if not 0 <= longest <= x.shape[0] or longest * count < x.shape[0]:
            raise ValueError(f"{name} {longest}: not the longest of {count} rows with {x.shape[0]} tokens in all")
    for other in (k, v, *rows):
        if isinstance(other, torch.Tensor) and other.device != q.device:
            raise ValueError(f"tensors on {q.device} and {other.device}: one device is supported")
    if not 0.0 <= rows.dropout < 1.0:
        raise ValueError(f"dropout {rows.dropout}: from 0 to below 1 is supported")


def _arguments(q: torch.Tensor, rows: _Rows) -> dict[str, Any]:
    """What every kernel is given."""
    head_dim = q.shape[2]
    return {
        "cu_q": rows.cu_q,
        "cu_k": rows.cu_k,
        "q_start": rows.q_start,
        "key_len": rows.key_len,
        "tokens": q.shape[0],
        "heads": q.shape[1],
        "scale": head_dim**-0.5 * math.log2(math.e),
        "seed": rows.seed,
        "drop": min(round(rows.dropout * 2**32), 2**32 - 1) - 2**31,
        "rescale": 1 / (1 - rows.dropout),
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(16, tuning.power_of_2(head_dim)),
        "CAUSAL": rows.causal,
        "DROPOUT": rows.dropout > 0,
    }


def _strides(**tensors: torch.Tensor) -> dict[str, int]:
    return {f"{name}_{what}": x.stride(i) for name, x in tensors.items() for i, what in enumerate(("token", "head"))}


def _grid(tiles: int, q: torch.Tensor, rows: _Rows) -> tuple[int]:
    programs = tiles * q.shape[1] * (rows.cu_q.numel() - 1)
    if programs >= 2**31:
        raise ValueError(f"{programs} tiles of attention: at most {2**31 - 1} are supported")
    return (programs,)


def _forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: _Rows, lse: torch.Tensor | None) -> torch.Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    launch = tuning.attention(tuning.architecture(q.device), q.shape[2], q.dtype.itemsize, rows.dropout > 0)
    tiles = -(-rows.max_q // launch.tiles["BLOCK_M"])
    _attention_kernel[_grid(tiles, q, rows)](
        q=q,
        k=k,
        v=v,
        out=out,
        lse=lse,
        tiles=tiles,
        ONE_TILE=int(rows.max_k <= launch.tiles["BLOCK_N"]),
        **_arguments(q, rows),
        **_strides(q=q, k=k, v=v),
        **launch.tiles,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return out


@triton.jit(do_not_specialize=["tokens", "tiles", "seed", "drop"])
def _attention_dq_kernel(
    q,  # as of _attention_kernel
    k,
    v,
    out,
    lse,
    grad,  # of out, [Tq, H, D], strides below; the last one is 1
    delta,  # float32 [H, Tq], written: the sums of grad * out
    dq,  # [Tq, H, D], contiguous, written
    cu_q,
    cu_k,
    q_start,
    key_len,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    grad_token,
    grad_head,
    tokens,
    heads,
    tiles,  # of queries
    scale,
    seed: tl.int64,
    drop: tl.int32,
    rescale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row, head, tile = program // (tiles * heads), program // tiles % heads, (program % tiles).to(tl.int32)
    begin_q, queries = _row(cu_q, row)
    if tile * BLOCK_M >= queries:
        return
    begin_k, keys = _row(cu_k, row)
    start, keys = _seen(q_start, key_len, row, queries, keys)
    row_head = (row * heads + head).to(tl.int32)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.arange(0, BLOCK_N)
    plain, end = _range(start, keys, tile * BLOCK_M, CAUSAL, BLOCK_M, BLOCK_N)

    k += begin_k * k_token + head * k_head
    v += begin_k * v_token + head * v_head
    contiguous = (begin_q * heads + head) * HEAD_DIM
    query = _tile(q + begin_q * q_token + head * q_head, m, queries, q_token, HEAD_DIM, BLOCK_D)
    upper = _tile(grad + begin_q * grad_token + head * grad_head, m, queries, grad_token, HEAD_DIM, BLOCK_D)
    result = _tile(out + contiguous, m, queries, heads * HEAD_DIM, HEAD_DIM, BLOCK_D)
    shared = tl.sum(upper.to(tl.float32) * result.to(tl.float32), 1)
    tl.store(delta + head * tokens + begin_q + m, shared, mask=m < queries)
    sums = tl.load(lse + head * tokens + begin_q + m, mask=m < queries, other=float("inf"))
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for masked in tl.static_range(2):
        for n in tl.range(plain if masked else 0, end if masked else plain, BLOCK_N, num_stages=1 if masked else None):
            last = keys if masked else n + BLOCK_N
            key = _tile(k, n + j, last, k_token, HEAD_DIM, BLOCK_D)
            weight = tl.math.exp2(tl.dot(query, tl.trans(key), input_precision="ieee") * scale - sums[:, None])
            if masked:
                seen = (n + j < keys)[None, :]
                if CAUSAL:
                    seen = seen & (n + j[None, :] <= start + m[:, None])
                weight = tl.where(seen, weight, 0.0)
            value = _tile(v, n + j, last, v_token, HEAD_DIM, BLOCK_D)
            slope = tl.dot(upper, tl.trans(value), input_precision="ieee")
            if DROPOUT:
                slope = tl.where(_kept(seed, drop, row_head, m, n, BLOCK_N), slope * rescale, 0.0)
            slope = weight * (slope - shared[:, None])
            acc = tl.dot(slope.to(key.dtype), key, acc, input_precision="ieee")
    _put(dq + contiguous, acc * (scale * LN2), m, queries, heads * HEAD_DIM, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["tokens", "tiles", "seed", "drop"])
def _attention_dkv_kernel(
    q,  # as of _attention_dq_kernel
    k,
    v,
    lse,
    grad,
    delta,
    dk,  # [Tk, H, D], contiguous, written
    dv,  # [Tk, H, D], contiguous, written
    cu_q,
    cu_k,
    q_start,
    key_len,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    grad_token,
    grad_head,
    tokens,
    heads,
    tiles,  # of keys
    scale,
    seed: tl.int64,
    drop: tl.int32,
    rescale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row, head, tile = program // (tiles * heads), program // tiles % heads, (program % tiles).to(tl.int32)
    begin_k, length = _row(cu_k, row)
    first = tile * BLOCK_N
    if first >= length:
        return
    begin_q, queries = _row(cu_q, row)
    start, keys = _seen(q_start, key_len, row, queries, length)
    row_head = (row * heads + head).to(tl.int32)
    n = first + tl.arange(0, BLOCK_N)
    i = tl.arange(0, BLOCK_M)

    # Queries before `some` see no key of the tile, those from `plain` on see all that are not hidden.
    some, plain = 0, 0
    if CAUSAL:
        some = tl.maximum(first - start, 0) // BLOCK_M * BLOCK_M
        plain = tl.cdiv(tl.maximum(first + BLOCK_N - 1 - start, 0), BLOCK_M) * BLOCK_M
    if first >= keys:
        queries = 0

    q += begin_q * q_token + head * q_head
    grad += begin_q * grad_token + head * grad_head
    lse += head * tokens + begin_q
    delta += head * tokens + begin_q
    key = _tile(k + begin_k * k_token + head * k_head, n, keys, k_token, HEAD_DIM, BLOCK_D)
    value = _tile(v + begin_k * v_token + head * v_head, n, keys, v_token, HEAD_DIM, BLOCK_D)
    key_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    value_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for masked in tl.static_range(2 if CAUSAL else 1):
        for at in tl.range(
            some if masked else plain,
            tl.minimum(plain, queries) if masked else queries,
            BLOCK_M,
            num_stages=1 if masked else None,
        ):
            m = at + i
            query = _tile(q, m, queries, q_token, HEAD_DIM, BLOCK_D)
            upper = _tile(grad, m, queries, grad_token, HEAD_DIM, BLOCK_D)
            sums = tl.load(lse + m, mask=m < queries, other=float("inf"))
            shared = tl.load(delta + m, mask=m < queries, other=0.0)
            weight = tl.math.exp2(tl.dot(key, tl.trans(query), input_precision="ieee") * scale - sums[None, :])
            if masked:
                weight = tl.where(n[:, None] <= start + m[None, :], weight, 0.0)
            slope = tl.dot(value, tl.trans(upper), input_precision="ieee")
            dropped = weight
            if DROPOUT:
                kept = tl.trans(_kept(seed, drop, row_head, m, first, BLOCK_N))
                dropped = tl.where(kept, weight * rescale, 0.0)
                slope = tl.where(kept, slope * rescale, 0.0)
            value_acc = tl.dot(dropped.to(upper.dtype), upper, value_acc, input_precision="ieee")
            slope = weight * (slope - shared[None, :])
            key_acc = tl.dot(slope.to(query.dtype), query, key_acc, input_precision="ieee")

    contiguous = (begin_k * heads + head) * HEAD_DIM
    seen = (n < keys)[:, None]
    key_acc = tl.where(seen, key_acc * (scale * LN2), 0.0)
    value_acc = tl.where(seen, value_acc, 0.0)
    _put(dk + contiguous, key_acc, n, length, heads * HEAD_DIM, HEAD_DIM, BLOCK_D)
    _put(dv + contiguous, value_acc, n, length, heads * HEAD_DIM, HEAD_DIM, BLOCK_D)


class _Attention(torch.autograd.Function):
    """Keeps the sums of the softmax, from which the backward makes the weights again (Dao 2023, arXiv 2307.08691)."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: _Rows) -> torch.Tensor:
        lse = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32, device=q.device)
        out = _forward(q, k, v, rows, lse)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rows = rows
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        return *_backward(q, k, v, out, lse, grad, ctx.rows), None


def _backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad: torch.Tensor,
    rows: _Rows,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if grad.stride(2) != 1:
        grad = grad.contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)
    arch = tuning.architecture(q.device)
    given = {
        **{"q": q, "k": k, "v": v, "lse": lse, "grad": grad, "delta": delta},
        **_arguments(q, rows),
        **_strides(q=q, k=k, v=v, grad=grad),
    }
    launch = tuning.attention_dq(arch, q.shape[2], q.dtype.itemsize, rows.dropout > 0)
    tiles = -(-rows.max_q // launch.tiles["BLOCK_M"])
    _attention_dq_kernel[_grid(tiles, q, rows)](
        **given, out=out, dq=dq, tiles=tiles, **launch.tiles, num_warps=launch.num_warps, num_stages=launch.num_stages
    )
    # After it, since that one writes delta.
    launch = tuning.attention_dkv(arch, q.shape[2], q.dtype.itemsize, rows.dropout > 0)
    tiles = -(-rows.max_k // launch.tiles["BLOCK_N"])
    _attention_dkv_kernel[_grid(tiles, q, rows)](
        **given, dk=dk, dv=dv, tiles=tiles, **launch.tiles, num_warps=launch.num_warps, num_stages=launch.num_stages
    )
    return dq, dk, dv
