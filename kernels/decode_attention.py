"""decode_attention: one new token per row against the keys and values of its past.

    out[r, h] = sum_t p[t] v[t, h],  p = softmax_t(q[r, h] . k[t, h] / sqrt(D))

Self-attention: row r appends its key and value at slot `slots[r]` of the pools and attends to the positions
0 .. length of its own history; `table[r, t]` says in which slot position t lies (None: slot r * capacity + t), so
that a beam reorder permutes the table and moves no keys or values.

Cross-attention: the rows of one source (its beams) attend as one tile to the keys and values of that source, which
exist once: k and v [B, S, H, D] serve rows [B * W, H, D].

Fused: the append (the new key and value come from the arguments, so that the row need not wait for its own write),
the gather through the table (plain torch copies the whole history of every row first: three times the bytes) and the
merge of the parts where several programs share the keys of one row.

Limits on an H200: bytes, at 4.3 TB/s. Self 2 R t H D, cross 2 B S H D, each times itemsize; nothing else is of that
size. FLOPs are 4 per score and element, so self does 2 FLOP per byte in bfloat16 and cross 2 W: far below the 184 at
which the tensor cores would be the limit. Instructions: at 4.3 TB/s each SM receives 8 elements of 2 bytes per clock
and issues 128, so there are 15 instructions per element; docs/kernels/decode_attention.md counts what is used.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from . import tuning
from .language import tl, triton

LARGEST_HEAD = 128
LOG2_E = 1.4426950408889634


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


@triton.jit
def _weights(scores, top):
    """2^(scores - top); 0 for a score of -inf, also where nothing has been seen and `top` is -inf too."""
    return tl.exp2(scores - tl.where(top == float("-inf"), 0.0, top))


@triton.jit
def _empty(W: tl.constexpr, D: tl.constexpr):
    """The sums over no keys."""
    nothing = tl.zeros((W,), tl.float32)
    return nothing - float("inf"), nothing, tl.zeros((W, D), tl.float32)


@triton.jit
def _fold(top, total, mixed, next_top, next_total, next_mixed):
    """The sums over some keys ([W], [W], [W, D]) and the sums over the next keys become the sums over both.

    A fold goes from the first chunk of keys to the last, one chunk at a time, and its multiply-adds are spelled out:
    whether one program folds all or many share the work, the bits are the same.
    """
    both = tl.maximum(top, next_top)
    old, new = _weights(top, both), _weights(next_top, both)
    mixed = tl.fma(mixed, tl.broadcast_to(old[:, None], mixed.shape), next_mixed * new[:, None])
    return both, tl.fma(total, old, next_total * new), mixed


@triton.jit
def _publish(sums, mixes, arrivals, part, top, total, mixed, w, W, there, dims, D: tl.constexpr):
    """Leave the sums over one chunk for the others; returns how many chunks were left before it.

    The barrier puts every thread's stores before the one thread's release, and what came before that thread's acquire
    is visible to all threads that it lets go on.
    """
    tl.store(sums + part * 2 * W + w, top, mask=there)
    tl.store(sums + (part * 2 + 1) * W + w, total, mask=there)
    tl.store(mixes + (part * W + w)[:, None] * D + dims[None, :], mixed, mask=there[:, None] & (dims < D)[None, :])
    tl.debug_barrier()
    return tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu")


@triton.jit
def _collect(
    sums, mixes, arrivals, part, chunks, w, W, there, dims,
    D: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Fold what `_publish` left, from part `part` on, read past L1; leaves the counter at zero for the next launch."""
    top, total, mixed = _empty(BLOCK_W, BLOCK_D)
    for _ in tl.range(0, chunks, loop_unroll_factor=4):  # the loads of four chunks are on their way together
        next_top = tl.load(sums + part * 2 * W + w, mask=there, other=float("-inf"), cache_modifier=".cg")
        next_total = tl.load(sums + (part * 2 + 1) * W + w, mask=there, other=0.0, cache_modifier=".cg")
        next_mixed = tl.load(
            mixes + (part * W + w)[:, None] * D + dims[None, :],
            mask=there[:, None] & (dims < D)[None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        top, total, mixed = _fold(top, total, mixed, next_top, next_total, next_mixed)
        part += 1
    tl.store(arrivals, 0)
    return top, total, mixed


@triton.jit
def _row_chunk(
    query, keys, values, table, base, first, length, keys_slot, values_slot, dims, D: tl.constexpr, BLOCK: tl.constexpr
):
    """Sums of one query over the positions first .. first + BLOCK that are below `length`: [1], [1], [1, D]."""
    position = first + tl.arange(0, BLOCK)
    seen = position < length
    if table is None:
        slot = base + position
    else:
        slot = tl.load(table + base + position, mask=seen, other=0).to(tl.int64)
    there = seen[:, None] & (dims < D)[None, :]
    # Elements that are not there are neither read nor counted: 0 * NaN would be NaN.
    k = tl.load(keys + slot[:, None] * keys_slot + dims[None, :], mask=there, other=0.0)
    v = tl.load(values + slot[:, None] * values_slot + dims[None, :], mask=there, other=0.0)
    scores = tl.where(seen, tl.sum(k.to(tl.float32) * query[None, :], 1), float("-inf"))
    top = tl.max(scores, 0, keep_dims=True)
    p = _weights(scores, top)
    return top, tl.sum(p, 0, keep_dims=True), tl.sum(p[:, None] * v.to(tl.float32), 0, keep_dims=True)


@triton.jit
def _tile_chunk(
    query,
    keys,
    values,
    visible,
    first,
    length,
    scale,
    k_position,
    v_position,
    dims,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of the queries [W, D] over the positions first .. first + BLOCK of their source: [W], [W], [W, D]."""
    position = (first + tl.arange(0, BLOCK)).to(tl.int64)
    seen = position < length
    if visible is not None:
        seen = tl.load(visible + position, mask=seen, other=0) != 0
    there = seen[:, None] & (dims < D)[None, :]  # a hidden key costs no bytes
    k = tl.load(keys + position[:, None] * k_position + dims[None, :], mask=there, other=0.0)
    v = tl.load(values + position[:, None] * v_position + dims[None, :], mask=there, other=0.0)
    scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where(seen[None, :], scores, float("-inf"))
    top = tl.max(scores, 1)
    p = _weights(scores, top[:, None])
    return top, tl.sum(p, 1), tl.dot(p.to(v.dtype), v, input_precision="ieee")


@triton.jit(do_not_specialize=["length", "base", "slots_row"])
def _decode_attention_kernel(
    q,  # [R, H, D]; k and v likewise
    k,
    v,
    key_pool,  # [N, H, D], written at slots; value_pool likewise
    value_pool,
    slots,  # [R]
    table,  # [R, >= length] or None
    out,  # [R, H, D], contiguous
    sums,  # float32 [R * H, chunks, 2]: the largest score of a chunk and its sum of weights; None without SPLIT
    mixes,  # float32 [R * H, chunks, D]: its weighted sum of values
    arrivals,  # int32 [R * H], zeros: how many chunks of the pair are done
    length,
    base,  # elements from one row of the table to the next; without a table, slots of a row
    heads,
    scale,  # log2(e) / sqrt(D): weights are powers of two
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    keys_slot,
    keys_head,
    values_slot,
    values_head,
    slots_row,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program per row and head; with SPLIT per row, head and chunk of BLOCK keys, and the last to arrive folds."""
    pair = tl.program_id(0).to(tl.int64)  # the heads of a row run side by side, as they lie in memory
    row, head = pair // heads, pair % heads
    chunk = tl.program_id(1)
    dims = tl.arange(0, BLOCK_D)
    real = dims < D
    query = tl.load(q + row * q_row + head * q_head + dims, mask=real, other=0.0).to(tl.float32) * scale
    new_key = tl.load(k + row * k_row + head * k_head + dims, mask=real, other=0.0)
    new_value = tl.load(v + row * v_row + head * v_head + dims, mask=real, other=0.0)
    keys, values = key_pool + head * keys_head, value_pool + head * values_head
    at = pair * D + dims[None, :]
    base = row * base
    chunks = tl.maximum(tl.cdiv(length, BLOCK), 1)
    begin, end = 0, chunks
    if SPLIT:
        begin, end = chunk, tl.minimum(chunk + 1, chunks)  # the grid may be longer than the history
    top, total, mixed = _empty(1, BLOCK_D)
    for i in tl.range(begin, end, num_stages=STAGES):
        next_top, next_total, next_mixed = _row_chunk(
            query, keys, values, table, base, i * BLOCK, length, keys_slot, values_slot, dims, D, BLOCK
        )
        top, total, mixed = _fold(top, total, mixed, next_top, next_total, next_mixed)

    # The new position last, and from its arguments: nobody waits for a write to a pool, or for these three loads.
    if chunk == 0:
        slot = tl.load(slots + row * slots_row).to(tl.int64)
        tl.store(keys + slot * keys_slot + dims, new_key, mask=real)
        tl.store(values + slot * values_slot + dims, new_value, mask=real)
    own_top = tl.sum(query * new_key.to(tl.float32), 0, keep_dims=True)
    own_total = tl.full((1,), 1.0, tl.float32)
    own_mixed = new_value.to(tl.float32)[None, :]
    if SPLIT:
        arrived = chunk
        part = pair * tl.num_programs(1)
        one = tl.arange(0, 1)
        if (chunks > 1) & (chunk < chunks):
            arrived = _publish(sums, mixes, arrivals + pair, part + chunk, top, total, mixed, one, 1, one < 1, dims, D)
        if arrived == chunks - 1:
            if chunks > 1:
                top, total, mixed = _collect(
                    sums, mixes, arrivals + pair, part, chunks, one, 1, one < 1, dims, D, 1, BLOCK_D
                )
            top, total, mixed = _fold(top, total, mixed, own_top, own_total, own_mixed)
            tl.store(out + at, mixed / total[:, None], mask=real[None, :])
    else:
        top, total, mixed = _fold(top, total, mixed, own_top, own_total, own_mixed)
        tl.store(out + at, mixed / total[:, None], mask=real[None, :])


def decode_attention_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_pool: torch.Tensor,
    value_pool: torch.Tensor,
    slots: torch.Tensor,
    table: torch.Tensor | None,
    length: int,
    arrivals: torch.Tensor | None = None,
) -> torch.Tensor:
    """`decode_attention_reference` in one launch. `slots` may be int32 too; nothing reads what they and `table` hold.

    Args:
        arrivals: int32 [>= R * H] of zeros, which the kernel leaves zero: a caller that gives the same ones to every
            launch of a stream saves their filling, a launch of its own, where few rows share their keys' work out.

    Raises:
        ValueError: shapes, dtypes, devices or strides that do not fit, a history that does not fit into the table or
            the pools, or an input that wants gradients.
    """
    _check(q, k=k, v=v, key_pool=key_pool, value_pool=value_pool)
    rows, heads, width = q.shape
    if k.shape != q.shape or v.shape != q.shape:
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} must have the shape of q, {tuple(q.shape)}")
    if key_pool.shape != value_pool.shape or key_pool.shape[1:] != q.shape[1:]:
        raise ValueError(
            f"pools {tuple(key_pool.shape)} and {tuple(value_pool.shape)} must both be [N, {heads}, {width}]"
        )
    _check_integers(q, "slots", slots, rows, 1)
    if table is not None:
        _check_integers(q, "table", table, rows, 2)
        if table.stride(1) != 1 and table.shape[1] > 1:
            raise ValueError(f"a row of table must be contiguous, its stride is {table.stride(1)}")
        capacity, base = table.shape[1], table.stride(0)
    else:
        capacity = base = key_pool.shape[0] // max(rows, 1)
        if capacity * rows != key_pool.shape[0] and rows:
            raise ValueError(f"without a table the {key_pool.shape[0]} slots must be a multiple of the {rows} rows")
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    if not 0 <= length < capacity:
        raise ValueError(f"length is {length}, a row holds {capacity} positions and needs one for the new token")
    launch = tuning.decode_attention(tuning.architecture(q.device), rows * heads, capacity - 1, width, q.element_size())
    chunks = launch.tiles["CHUNKS"]
    sums, mixes, arrivals = _shared(q, rows * heads, chunks, 1, arrivals)
    _decode_attention_kernel[(rows * heads, chunks)](
        q,
        k,
        v,
        key_pool,
        value_pool,
        slots,
        table,
        out,
        sums,
        mixes,
        arrivals,
        length,
        base,
        heads,
        LOG2_E / math.sqrt(width),
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *key_pool.stride()[:2],
        *value_pool.stride()[:2],
        slots.stride(0),
        D=width,
        BLOCK_D=max(16, tuning.power_of_2(width)),
        BLOCK=launch.tiles["BLOCK"],
        SPLIT=chunks > 1,
        STAGES=launch.num_stages,
        num_warps=launch.num_warps,
    )
    return out


@triton.jit(do_not_specialize=["length", "W", "mask_source"])
def _cross_decode_attention_kernel(
    q,  # [B * W, H, D]
    k,  # [B, S, H, D]; v likewise
    v,
    key_mask,  # uint8 [B, S] or None
    out,  # [B * W, H, D], contiguous
    sums,  # float32 [B * H * tiles, chunks, 2, W]; this and the next two as above
    mixes,  # float32 [B * H * tiles, chunks, W, D]
    arrivals,  # int32 [B * H * tiles]
    length,  # S
    W,
    heads,
    scale,
    q_row,
    q_head,
    k_source,
    k_position,
    k_head,
    v_source,
    v_position,
    v_head,
    mask_source,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One program per source, head and BLOCK_W of its rows; with SPLIT also per chunk of BLOCK keys."""
    place = tl.program_id(0).to(tl.int64)  # the tiles of a source and head side by side: L2 has its keys for the second
    tiles = tl.cdiv(W, BLOCK_W)
    pair, first_row = place // tiles, place % tiles * BLOCK_W
    source, head = pair // heads, pair % heads
    chunk = tl.program_id(1)
    dims = tl.arange(0, BLOCK_D)
    w = tl.arange(0, BLOCK_W)
    there = w < W - first_row
    row = source * W + first_row + w
    real = there[:, None] & (dims < D)[None, :]
    query = tl.load(q + row[:, None] * q_row + head * q_head + dims[None, :], mask=real, other=0.0)
    keys = k + source * k_source + head * k_head
    values = v + source * v_source + head * v_head
    visible = key_mask
    if key_mask is not None:
        visible += source * mask_source

    top, total, mixed = _empty(BLOCK_W, BLOCK_D)
    at = (row[:, None] * heads + head) * D + dims[None, :]
    first, last = 0, length
    if SPLIT:
        first = chunk * BLOCK
        last = first + 1
    for begin in tl.range(first, last, BLOCK):
        next_top, next_total, next_mixed = _tile_chunk(
            query, keys, values, visible, begin, length, scale, k_position, v_position, dims, D, BLOCK
        )
        top, total, mixed = _fold(top, total, mixed, next_top, next_total, next_mixed)
    if SPLIT:
        chunks = tl.num_programs(1)
        part = place * chunks
        arrived = _publish(sums, mixes, arrivals + place, part + chunk, top, total, mixed, w, W, there, dims, D)
        if arrived == chunks - 1:
            top, total, mixed = _collect(
                sums, mixes, arrivals + place, part, chunks, w, W, there, dims, D, BLOCK_W, BLOCK_D
            )
            tl.store(out + at, mixed / tl.where(total == 0.0, 1.0, total)[:, None], mask=real)
    else:
        tl.store(out + at, mixed / tl.where(total == 0.0, 1.0, total)[:, None], mask=real)


def cross_decode_attention_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_mask: torch.Tensor | None = None,
    arrivals: torch.Tensor | None = None,
) -> torch.Tensor:
    """`cross_decode_attention_reference` in one launch.

    Args:
        arrivals: as `decode_attention_triton` takes them, int32 [>= B * H * tiles of W].

    Raises:
        ValueError: shapes, dtypes, devices or strides that do not fit, or an input that wants gradients.
    """
    _check(q, k=k, v=v)
    rows, heads, width = q.shape
    if k.dim() != 4 or v.shape != k.shape or k.shape[2:] != q.shape[1:]:
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} must both be [B, S, {heads}, {width}]")
    sources, length = k.shape[:2]
    if rows % sources if sources else rows:
        raise ValueError(f"the {rows} rows of q must be a multiple of the {sources} sources")
    if key_mask is not None:
        if key_mask.shape != (sources, length) or key_mask.dtype != torch.bool or key_mask.device != q.device:
            raise ValueError(
                f"key_mask must be bool {(sources, length)} on {q.device}, "
                f"not {key_mask.dtype} {tuple(key_mask.shape)} on {key_mask.device}"
            )
        if key_mask.stride(1) != 1 and length > 1:
            raise ValueError(f"a row of key_mask must be contiguous, its stride is {key_mask.stride(1)}")
        key_mask = key_mask.view(torch.uint8)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0 or length == 0:
        return out.zero_()
    beams = rows // sources
    launch = tuning.cross_decode_attention(
        tuning.architecture(q.device), sources * heads, length, beams, width, q.element_size()
    )
    places, chunks = sources * heads * -(-beams // launch.tiles["BLOCK_W"]), launch.tiles["CHUNKS"]
    sums, mixes, arrivals = _shared(q, places, chunks, beams, arrivals)
    _cross_decode_attention_kernel[(places, chunks)](
        q,
        k,
        v,
        key_mask,
        out,
        sums,
        mixes,
        arrivals,
        length,
        beams,
        heads,
        LOG2_E / math.sqrt(width),
        *q.stride()[:2],
        *k.stride()[:3],
        *v.stride()[:3],
        0 if key_mask is None else key_mask.stride(0),
        D=width,
        BLOCK_D=max(16, tuning.power_of_2(width)),
        BLOCK_W=launch.tiles["BLOCK_W"],
        BLOCK=launch.tiles["BLOCK"],
        SPLIT=chunks > 1,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return out


def _check(q: torch.Tensor, **others: torch.Tensor) -> None:
    """What the floating tensors of both operators have in common."""
    if q.dim() != 3:
        raise ValueError(f"q must be [rows, heads, head_dim], not {tuple(q.shape)}")
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"q is {q.dtype}; float32, float16 and bfloat16 are supported")
    if q.shape[2] > LARGEST_HEAD:
        raise ValueError(f"head_dim is {q.shape[2]}, at most {LARGEST_HEAD} is supported")
    for name, tensor in {"q": q, **others}.items():
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, q is {q.dtype} on {q.device}")
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"the last dimension of {name} must be contiguous, its stride is {tensor.stride(-1)}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient and decoding has none: call it under torch.no_grad()")


def _check_integers(q: torch.Tensor, name: str, tensor: torch.Tensor, rows: int, dim: int) -> None:
    if tensor.dtype not in (torch.int32, torch.int64) or tensor.device != q.device:
        raise ValueError(f"{name} must be int32 or int64 on {q.device}, not {tensor.dtype} on {tensor.device}")
    if tensor.dim() != dim or tensor.shape[0] != rows:
        raise ValueError(f"{name} must have {dim} dimensions and {rows} rows, not the shape {tuple(tensor.shape)}")


def _shared(
    q: torch.Tensor, places: int, chunks: int, rows: int, arrivals: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Room for the parts of `places` results, each of so many chunks and rows, and counters; nothing for one chunk."""
    if chunks == 1:
        return None, None, None
    if arrivals is None:
        arrivals = torch.zeros(places, dtype=torch.int32, device=q.device)
    elif arrivals.dtype != torch.int32 or arrivals.device != q.device or not arrivals.is_contiguous():
        raise ValueError(f"arrivals must be contiguous int32 on {q.device}, not {arrivals.dtype} on {arrivals.device}")
    elif arrivals.numel() < places:
        raise ValueError(f"arrivals holds {arrivals.numel()} counters, {places} are needed")
    sums = torch.empty((places, chunks, 2, rows), dtype=torch.float32, device=q.device)
    mixes = torch.empty((places, chunks, rows, q.shape[2]), dtype=torch.float32, device=q.device)
    return sums, mixes, arrivals
