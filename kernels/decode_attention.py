"""decode_attention: one new token per row against the keys and values of its past.

    out[r, h] = sum_t p[t] v[t, h],  p = softmax_t(q[r, h] . k[t, h] / sqrt(D))

Self-attention: row r writes its key and value to slot `slots[r]` of the pools and attends to its own past, lengths[r]
positions, and to itself; `table[r, t]` says in which slot position t lies, so that a beam reorder permutes the table
and moves no keys or values.

Cross-attention: the rows of one source (its beams, cu_rows[b] .. cu_rows[b + 1]) attend as one tile to the keys and
values of that source, lengths[b] of them in the slots table[b], which exist once.

Rows of different lengths, sources of different lengths and different numbers of beams make one batch. All that says so
lies on the device and the host reads none of it: the grid depends on the shapes (and on `max_rows`) only, so that a
captured graph replays a step for whatever the tensors hold then.

Fused: the append (the new key and value come from the arguments, so that the row need not wait for its own write),
the gather through the table (plain torch copies the whole history of every row first: three times the bytes) and the
merge of the parts where several programs share the keys of one row.

Limits on an H200: bytes, at 4.3 TB/s. Self 2 H D for each position of each row, cross 2 H D for each key of each
source, times itemsize; nothing else is of that size. FLOPs are 4 per score and element, so self does 2 FLOP per byte
in bfloat16 and cross 2 W with W beams: far below the 184 at which the tensor cores would be the limit. Instructions:
at 4.3 TB/s each SM receives 8 elements of 2 bytes per clock and issues 128, so there are 15 instructions per element;
docs/kernels/decode_attention.md counts what is used.
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
    table: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """Write one position of each row and attend to all of its history.

    Args:
        q, k, v: [R, H, D], the new position of each row.
        key_pool, value_pool: [N, H, D], written in place at `slots`.
        slots: int32 or int64 [R], the slot each row writes. Rows that nobody reads again may share one, and what is
            left there is the key and value of one of them. No history holds a slot that is written in the same call.
        table: int32 [R, C], the slot of each position before the new one. What is behind a row's length means nothing.
        lengths: int32 [R], positions before the new one; below 0 counts as 0 and above C as C.

    Returns:
        [R, H, D]
    """
    slots = slots.long()
    key_pool.index_copy_(0, slots, k)
    value_pool.index_copy_(0, slots, v)
    if q.shape[0] == 0:
        return torch.empty_like(q)
    counts = _counts(lengths, table)
    longest = max(counts)
    seen = None if min(counts) == longest else F.pad(_below(counts, longest, q.device), (0, 1), value=True)
    index = torch.cat((table[:, :longest], slots[:, None]), 1)
    keys, values = _gathered((key_pool, value_pool), index, seen)
    keys[:, -1], values[:, -1] = k, v  # whatever a slot that rows share holds by now
    mask = None if seen is None else seen[:, None, None]
    out = F.scaled_dot_product_attention(q[:, :, None], keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask)
    return out.squeeze(2)


def cross_decode_attention_reference(
    q: torch.Tensor,
    key_pool: torch.Tensor,
    value_pool: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    cu_rows: torch.Tensor,
    max_rows: int,
) -> torch.Tensor:
    """Attend from the rows of each source to that source.

    Args:
        q: [R, H, D], the rows of a source adjacent.
        key_pool, value_pool: [N, H, D].
        table: int32 [B, S], the slot of each key. What is behind a source's length means nothing.
        lengths: int32 [B], keys of each source; below 0 counts as 0 and above S as S.
        cu_rows: int32 [B + 1], ascending from 0 to at most R: source b is attended to by rows cu_rows[b] ..
            cu_rows[b + 1], which may be none.
        max_rows: no source has more rows than that.

    Returns:
        [R, H, D]; 0 where a source has no key, and in the rows behind cu_rows[B], which have no source.
    """
    counts, starts = _counts(lengths, table), cu_rows.tolist()
    longest, end = max(counts, default=0), starts[-1]
    if longest == 0 or q.shape[0] == 0:
        return torch.zeros_like(q)
    seen = None if min(counts) == longest else _below(counts, longest, q.device)
    keys, values = _gathered((key_pool, value_pool), table[:, :longest], seen)
    beams = cu_rows.diff().tolist()
    even = end == q.shape[0] and len({*beams}) == 1
    if even:
        tiles = q.unflatten(0, (len(beams), -1))
    else:  # as many rows as a source may have
        rows = _below(beams, max_rows, q.device)
        tiles = q.new_zeros(*rows.shape, *q.shape[1:])
        tiles[rows] = q[:end]
    mask = None if seen is None else seen[:, None, None]
    mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (tiles, keys, values)), attn_mask=mask)
    mixed = mixed.transpose(1, 2)
    if even:
        return mixed.reshape(q.shape)
    out = torch.zeros_like(q)
    out[:end] = mixed[rows]
    return out


def _counts(lengths: torch.Tensor, table: torch.Tensor) -> list[int]:
    """How many entries of each row of a table count."""
    return [min(max(n, 0), table.shape[1]) for n in lengths.tolist()]


def _below(counts: list[int], columns: int, device: torch.device) -> torch.Tensor:
    """bool [R, columns], True in as many columns of each row."""
    return torch.arange(columns, device=device) < torch.tensor(counts, dtype=torch.int64, device=device)[:, None]


def _gathered(
    pools: tuple[torch.Tensor, torch.Tensor], index: torch.Tensor, seen: torch.Tensor | None
) -> list[torch.Tensor]:
    """What both pools hold in the slots [R, T], [R, T, H, D] each: a view where the slots lie in order.

    Args:
        seen: bool [R, T], False gives 0; None where all is seen.
    """
    if seen is not None:
        index = index.where(seen, 0)
        return [_picked(pool, index).masked_fill_(~seen[..., None, None], 0) for pool in pools]
    rows, columns = index.shape
    first, *others = index[:2, 0].tolist()
    step = others[0] - first if others else columns
    if columns <= step and first + rows * step <= len(pools[0]):
        expected = torch.arange(first, first + rows * step, dtype=index.dtype, device=index.device).view(rows, step)
        if torch.equal(index, expected[:, :columns]):
            return [pool[first : first + rows * step].unflatten(0, (rows, step))[:, :columns] for pool in pools]
    return [_picked(pool, index) for pool in pools]


def _picked(pool: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return pool.index_select(0, index.flatten()).unflatten(0, index.shape)


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
def _publish(sums, mixes, arrivals, part, top, total, mixed, w, there, dims, W: tl.constexpr, D: tl.constexpr):
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
    sums, mixes, arrivals, part, chunks, w, there, dims, W: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Fold what `_publish` left, from part `part` on, read past L1; leaves the counter at zero for the next launch."""
    top, total, mixed = _empty(W, BLOCK_D)
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
def _length(lengths, row, capacity):
    """How many entries of a row of the table count, never more than there are; no position is below a negative one."""
    return tl.minimum(tl.load(lengths + row), capacity)


@triton.jit
def _gather(keys, values, table, first, length, keys_slot, values_slot, dims, D: tl.constexpr, BLOCK: tl.constexpr):
    """Keys and values [BLOCK, D] of the positions first .. first + BLOCK, and which of these are below `length`.

    Elements that are not there are neither read nor counted: 0 * NaN would be NaN.
    """
    position = first + tl.arange(0, BLOCK)
    seen = position < length
    slot = tl.load(table + position, mask=seen, other=0).to(tl.int64)
    there = seen[:, None] & (dims < D)[None, :]
    k = tl.load(keys + slot[:, None] * keys_slot + dims[None, :], mask=there, other=0.0)
    v = tl.load(values + slot[:, None] * values_slot + dims[None, :], mask=there, other=0.0)
    return k, v, seen


@triton.jit
def _row_chunk(query, k, v, seen):
    """Sums of one query [D] over the keys of a chunk that are seen: [1], [1], [1, D]."""
    scores = tl.where(seen, tl.sum(k.to(tl.float32) * query[None, :], 1), float("-inf"))
    top = tl.max(scores, 0, keep_dims=True)
    p = _weights(scores, top)
    return top, tl.sum(p, 0, keep_dims=True), tl.sum(p[:, None] * v.to(tl.float32), 0, keep_dims=True)


@triton.jit
def _tile_chunk(query, k, v, seen, scale):
    """Sums of the queries [W, D] over the keys of a chunk that are seen: [W], [W], [W, D]."""
    scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where(seen[None, :], scores, float("-inf"))
    top = tl.max(scores, 1)
    p = _weights(scores, top[:, None])
    return top, tl.sum(p, 1), tl.dot(p.to(v.dtype), v, input_precision="ieee")


@triton.jit(do_not_specialize=["capacity", "table_row", "slots_row"])
def _decode_attention_kernel(
    q,  # [R, H, D]; k and v likewise
    k,
    v,
    key_pool,  # [N, H, D], written at slots; value_pool likewise
    value_pool,
    slots,  # [R]
    table,  # int32 [R, capacity]
    lengths,  # int32 [R]
    out,  # [R, H, D], contiguous
    sums,  # float32 [R * H, chunks, 2]: the largest score of a chunk and its sum of weights; None without SPLIT
    mixes,  # float32 [R * H, chunks, D]: its weighted sum of values
    arrivals,  # int32 [R * H], zeros: how many chunks of the pair are done
    capacity,
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
    table_row,
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
    length = _length(lengths, row, capacity)
    chunks = tl.maximum(tl.cdiv(length, BLOCK), 1)
    if chunk >= chunks:  # the grid is as long as the table
        return
    dims = tl.arange(0, BLOCK_D)
    real = dims < D
    query = tl.load(q + row * q_row + head * q_head + dims, mask=real, other=0.0).to(tl.float32) * scale
    new_key = tl.load(k + row * k_row + head * k_head + dims, mask=real, other=0.0)
    new_value = tl.load(v + row * v_row + head * v_head + dims, mask=real, other=0.0)
    keys, values = key_pool + head * keys_head, value_pool + head * values_head
    table += row * table_row
    at = pair * D + dims[None, :]
    begin, end = 0, chunks
    if SPLIT:
        begin, end = chunk, chunk + 1
    top, total, mixed = _empty(1, BLOCK_D)
    for i in tl.range(begin, end, num_stages=STAGES):
        some_keys, some_values, seen = _gather(
            keys, values, table, i * BLOCK, length, keys_slot, values_slot, dims, D, BLOCK
        )
        next_top, next_total, next_mixed = _row_chunk(query, some_keys, some_values, seen)
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
        if chunks > 1:
            arrived = _publish(sums, mixes, arrivals + pair, part + chunk, top, total, mixed, one, one < 1, dims, 1, D)
        if arrived == chunks - 1:
            if chunks > 1:
                top, total, mixed = _collect(
                    sums, mixes, arrivals + pair, part, chunks, one, one < 1, dims, 1, D, BLOCK_D
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
    table: torch.Tensor,
    lengths: torch.Tensor,
    arrivals: torch.Tensor | None = None,
) -> torch.Tensor:
    """`decode_attention_reference` in one launch; the host reads nothing that `slots`, `table` and `lengths` hold.

    Args:
        arrivals: int32 [>= R * H] of zeros, which the kernel leaves zero: a caller that gives the same ones to every
            launch of a stream saves their filling, a launch of its own, where few rows share their keys' work out.

    Raises:
        ValueError: shapes, dtypes, devices or strides that do not fit, or an input that wants gradients.
    """
    _check(q, k=k, v=v, key_pool=key_pool, value_pool=value_pool)
    rows, heads, width = q.shape
    if k.shape != q.shape or v.shape != q.shape:
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} must have the shape of q, {tuple(q.shape)}")
    _check_pools(q, key_pool, value_pool)
    _check_integers(q, "slots", slots, (rows,), torch.int64)
    _check_integers(q, "table", table, (rows, -1))
    _check_integers(q, "lengths", lengths, (rows,))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    capacity = table.shape[1]
    launch = tuning.decode_attention(tuning.architecture(q.device), rows * heads, capacity, width, q.element_size())
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
        lengths,
        out,
        sums,
        mixes,
        arrivals,
        capacity,
        heads,
        LOG2_E / math.sqrt(width),
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *key_pool.stride()[:2],
        *value_pool.stride()[:2],
        table.stride(0),
        slots.stride(0),
        D=width,
        BLOCK_D=max(16, tuning.power_of_2(width)),
        BLOCK=launch.tiles["BLOCK"],
        SPLIT=chunks > 1,
        STAGES=launch.num_stages,
        num_warps=launch.num_warps,
    )
    return out


@triton.jit(do_not_specialize=["capacity", "rows", "sources", "table_row"])
def _cross_decode_attention_kernel(
    q,  # [rows, H, D]
    key_pool,  # [N, H, D]; value_pool likewise
    value_pool,
    table,  # int32 [sources, capacity]
    lengths,  # int32 [sources]
    cu_rows,  # int32 [sources + 1]
    out,  # [rows, H, D], contiguous
    sums,  # float32 [sources * H * tiles, chunks, 2, BLOCK_W]; this and the next two as above
    mixes,  # float32 [sources * H * tiles, chunks, BLOCK_W, D]
    arrivals,  # int32 [sources * H * tiles]
    capacity,
    rows,
    sources,
    heads,
    scale,
    q_row,
    q_head,
    keys_slot,
    keys_head,
    values_slot,
    values_head,
    table_row,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One program per source, head and BLOCK_W of its rows; with SPLIT also per chunk of BLOCK keys."""
    place = tl.program_id(0).to(tl.int64)  # the tiles of a source and head side by side: L2 has its keys for the second
    tiles = tl.num_programs(0) // (sources * heads)
    pair, tile = place // tiles, place % tiles
    source, head = pair // heads, pair % heads
    chunk = tl.program_id(1)
    dims = tl.arange(0, BLOCK_D)
    w = tl.arange(0, BLOCK_W)
    if (tile == 0) & (chunk == 0):
        for row in tl.range(tl.load(cu_rows + sources) + source, rows, sources):  # those that have no source
            tl.store(out + (row * heads + head) * D + dims, tl.zeros((BLOCK_D,), tl.float32), mask=dims < D)

    length = _length(lengths, source, capacity)
    chunks = tl.maximum(tl.cdiv(length, BLOCK), 1)
    first = tl.load(cu_rows + source) + tile * BLOCK_W
    last = tl.minimum(tl.load(cu_rows + source + 1), rows)
    if (chunk >= chunks) | (first >= last):
        return
    row = first + w
    there = row < last
    real = there[:, None] & (dims < D)[None, :]
    query = tl.load(q + row[:, None] * q_row + head * q_head + dims[None, :], mask=real, other=0.0)
    keys, values = key_pool + head * keys_head, value_pool + head * values_head
    table += source * table_row
    at = (row[:, None] * heads + head) * D + dims[None, :]
    begin, end = 0, chunks
    if SPLIT:
        begin, end = chunk, chunk + 1
    top, total, mixed = _empty(BLOCK_W, BLOCK_D)
    for i in tl.range(begin, end):
        some_keys, some_values, seen = _gather(
            keys, values, table, i * BLOCK, length, keys_slot, values_slot, dims, D, BLOCK
        )
        next_top, next_total, next_mixed = _tile_chunk(query, some_keys, some_values, seen, scale)
        top, total, mixed = _fold(top, total, mixed, next_top, next_total, next_mixed)
    if SPLIT:
        arrived = chunk
        part = place * tl.num_programs(1)
        if chunks > 1:
            arrived = _publish(
                sums, mixes, arrivals + place, part + chunk, top, total, mixed, w, there, dims, BLOCK_W, D
            )
        if arrived == chunks - 1:
            if chunks > 1:
                top, total, mixed = _collect(
                    sums, mixes, arrivals + place, part, chunks, w, there, dims, BLOCK_W, D, BLOCK_D
                )
            tl.store(out + at, mixed / tl.where(total == 0.0, 1.0, total)[:, None], mask=real)
    else:
        tl.store(out + at, mixed / tl.where(total == 0.0, 1.0, total)[:, None], mask=real)


def cross_decode_attention_triton(
    q: torch.Tensor,
    key_pool: torch.Tensor,
    value_pool: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    cu_rows: torch.Tensor,
    max_rows: int,
    arrivals: torch.Tensor | None = None,
) -> torch.Tensor:
    """`cross_decode_attention_reference` in one launch; the host reads nothing that the integer tensors hold.

    Args:
        arrivals: as `decode_attention_triton` takes them, int32 [>= B * H * tiles of max_rows].

    Raises:
        ValueError: shapes, dtypes, devices or strides that do not fit, or an input that wants gradients.
    """
    _check(q, key_pool=key_pool, value_pool=value_pool)
    rows, heads, width = q.shape
    _check_pools(q, key_pool, value_pool)
    sources = lengths.numel()
    _check_integers(q, "table", table, (sources, -1))
    _check_integers(q, "lengths", lengths, (sources,))
    _check_integers(q, "cu_rows", cu_rows, (sources + 1,))
    if max_rows < 0:
        raise ValueError(f"max_rows is {max_rows}, a source cannot have fewer than 0 rows")
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0 or sources == 0 or max_rows == 0:
        return out.zero_()
    capacity = table.shape[1]
    launch = tuning.cross_decode_attention(
        tuning.architecture(q.device), sources * heads, capacity, max_rows, width, q.element_size()
    )
    block, chunks = launch.tiles["BLOCK_W"], launch.tiles["CHUNKS"]
    places = sources * heads * -(-max_rows // block)
    sums, mixes, arrivals = _shared(q, places, chunks, block, arrivals)
    _cross_decode_attention_kernel[(places, chunks)](
        q,
        key_pool,
        value_pool,
        table,
        lengths,
        cu_rows,
        out,
        sums,
        mixes,
        arrivals,
        capacity,
        rows,
        sources,
        heads,
        LOG2_E / math.sqrt(width),
        *q.stride()[:2],
        *key_pool.stride()[:2],
        *value_pool.stride()[:2],
        table.stride(0),
        D=width,
        BLOCK_D=max(16, tuning.power_of_2(width)),
        BLOCK_W=block,
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


def _check_pools(q: torch.Tensor, key_pool: torch.Tensor, value_pool: torch.Tensor) -> None:
    shape = q.shape[1:]
    if key_pool.dim() != 3 or key_pool.shape != value_pool.shape or key_pool.shape[1:] != shape:
        raise ValueError(f"pools {tuple(key_pool.shape)} and {tuple(value_pool.shape)} must both be [N, {[*shape]}]")


def _check_integers(
    q: torch.Tensor, name: str, tensor: torch.Tensor, shape: tuple[int, ...], *more: torch.dtype
) -> None:
    """A tensor of int32, or of one of `more`, whose rows are contiguous; a -1 in `shape` fits any size."""
    if tensor.dtype not in (torch.int32, *more) or tensor.device != q.device:
        raise ValueError(f"{name} must be int32 on {q.device}, not {tensor.dtype} on {tensor.device}")
    if tensor.dim() != len(shape) or any(n not in (m, -1) for n, m in zip(shape, tensor.shape)):
        raise ValueError(f"{name} must be {list(shape)} (-1: any), not {list(tensor.shape)}")
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1 and not more:
        raise ValueError(f"{name} must be contiguous in its last dimension, its stride is {tensor.stride(-1)}")


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
