"""decode_attention: attention of one new token per row over the cached keys and values.

    out[r, h] = sum_t p[t] v[t, h],  p = softmax_t(q[r, h] . k[t, h] / sqrt(D))

Self-attention: row r writes its key and value to slot `slots[r]` of the pools, and attends to its lengths[r] cached
positions and to the new one. `table[r, t]` is the slot of position t, so a beam reorder permutes the table and moves no
keys or values.

Cross-attention: the rows of a source (its beams, cu_rows[b] .. cu_rows[b + 1]) attend as one tile to the lengths[b]
keys and values of that source, which are stored once, in the slots table[b].

Rows and sources of different lengths, and different numbers of beams, form one batch. These sizes are on the device and
the host does not read them: the grid depends only on the shapes (and on `max_rows`), so a captured CUDA graph can
replay a step with other contents.

Fused: the append (the new key and value come from the arguments, so a row does not wait for its own write), the gather
through the table (plain torch first copies the whole history of every row: three times the bytes), and the merge of
partial results where several programs share the keys of a row (split-KV, as in Flash-Decoding).

Limits on an H200: bytes, at 4.3 TB/s. Self-attention reads 2 H D elements per position of each row, cross-attention
2 H D per key of each source; all else is small. FLOPs are 4 per score and element: 2 FLOP per byte in bfloat16, or 2 W
for cross-attention with W beams, far below the 184 at which the tensor cores would be the limit. Instructions: at 4.3
TB/s each SM receives 8 elements of 2 bytes per clock and issues 128, which leaves 15 instructions per element;
docs/kernels/decode_attention.md counts those used.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from . import tuning
from .language import tl, triton

MAX_HEAD_DIM = 128
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
    arrivals: torch.Tensor | None = None,
) -> torch.Tensor:
    """Append one position to each row, and attend to all positions of the row.

    Args:
        q, k, v: [R, H, D], the new position of each row.
        key_pool, value_pool: [N, H, D], written in place at `slots`.
        slots: int32 or int64 [R], the slot that each row writes. Finished rows may share a slot, which then holds the
            key and value of any of them. No slot in the table may be written in the same call.
        table: int32 [R, C], the slot of each cached position. Entries after a row's length are ignored.
        lengths: int32 [R], number of cached positions; below 0 counts as 0 and above C as C.
        arrivals: unused here: counters of the kernel.

    Returns:
        [R, H, D]
    """
    slots = slots.long()
    key_pool.index_copy_(0, slots, k)
    value_pool.index_copy_(0, slots, v)
    if q.shape[0] == 0:
        return torch.empty_like(q)
    counts = _valid_counts(lengths, table)
    max_seqlen = max(counts)
    visible = (
        None if min(counts) == max_seqlen else F.pad(_valid_mask(counts, max_seqlen, q.device), (0, 1), value=True)
    )
    index = torch.cat((table[:, :max_seqlen], slots[:, None]), 1)
    keys, values = _gather((key_pool, value_pool), index, visible)
    keys[:, -1], values[:, -1] = k, v  # a slot that rows share may hold another row's
    mask = None if visible is None else visible[:, None, None]
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
    arrivals: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the rows of each source over the keys and values of that source.

    Args:
        q: [R, H, D], the rows of a source adjacent.
        key_pool, value_pool: [N, H, D].
        table: int32 [B, S], the slot of each key. Entries after a source's length are ignored.
        lengths: int32 [B], number of keys of each source; below 0 counts as 0 and above S as S.
        cu_rows: int32 [B + 1], ascending from 0 to at most R: source b has the rows cu_rows[b] .. cu_rows[b + 1],
            possibly none.
        max_rows: upper bound of the number of rows of a source.
        arrivals: unused here: counters of the kernel.

    Returns:
        [R, H, D]; 0 where a source has no key, and in the rows from cu_rows[B] on, which have no source.
    """
    counts, starts = _valid_counts(lengths, table), cu_rows.tolist()
    max_seqlen, end = max(counts, default=0), starts[-1]
    if max_seqlen == 0 or q.shape[0] == 0:
        return torch.zeros_like(q)
    visible = None if min(counts) == max_seqlen else _valid_mask(counts, max_seqlen, q.device)
    keys, values = _gather((key_pool, value_pool), table[:, :max_seqlen], visible)
    row_counts = cu_rows.diff().tolist()
    is_even = end == q.shape[0] and len({*row_counts}) == 1
    if is_even:
        tiles = q.unflatten(0, (len(row_counts), -1))
    else:  # pad to max_rows rows per source
        row_mask = _valid_mask(row_counts, max_rows, q.device)
        tiles = q.new_zeros(*row_mask.shape, *q.shape[1:])
        tiles[row_mask] = q[:end]
    mask = None if visible is None else visible[:, None, None]
    attended = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (tiles, keys, values)), attn_mask=mask)
    attended = attended.transpose(1, 2)
    if is_even:
        return attended.reshape(q.shape)
    out = torch.zeros_like(q)
    out[:end] = attended[row_mask]
    return out


def _valid_counts(lengths: torch.Tensor, table: torch.Tensor) -> list[int]:
    """Number of valid entries in each row of a table."""
    return [min(max(n, 0), table.shape[1]) for n in lengths.tolist()]


def _valid_mask(counts: list[int], columns: int, device: torch.device) -> torch.Tensor:
    """bool [R, columns], True in the first counts[r] columns of row r."""
    return torch.arange(columns, device=device) < torch.tensor(counts, dtype=torch.int64, device=device)[:, None]


def _gather(
    pools: tuple[torch.Tensor, torch.Tensor], index: torch.Tensor, visible: torch.Tensor | None
) -> list[torch.Tensor]:
    """The contents of both pools at slots index [R, T], each [R, T, H, D]: a view where the slots are in order.

    Args:
        visible: bool [R, T], False gives 0; None: all True.
    """
    if visible is not None:
        index = index.where(visible, 0)
        return [_select(pool, index).masked_fill_(~visible[..., None, None], 0) for pool in pools]
    rows, columns = index.shape
    first, *rest = index[:2, 0].tolist()
    step = rest[0] - first if rest else columns
    if columns <= step and first + rows * step <= len(pools[0]):
        expected = torch.arange(first, first + rows * step, dtype=index.dtype, device=index.device).view(rows, step)
        if torch.equal(index, expected[:, :columns]):
            return [pool[first : first + rows * step].unflatten(0, (rows, step))[:, :columns] for pool in pools]
    return [_select(pool, index) for pool in pools]


def _select(pool: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return pool.index_select(0, index.flatten()).unflatten(0, index.shape)


@triton.jit
def _softmax_weights(scores, row_max):
    """2^(scores - row_max); 0 where a score is -inf, also where row_max is -inf (no visible key)."""
    return tl.exp2(scores - tl.where(row_max == float("-inf"), 0.0, row_max))


@triton.jit
def _init_softmax(BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """row_max, row_sum and acc over no keys."""
    zeros = tl.zeros((BLOCK_M,), tl.float32)
    return zeros - float("inf"), zeros, tl.zeros((BLOCK_M, BLOCK_D), tl.float32)


@triton.jit
def _merge_softmax(row_max, row_sum, acc, next_max, next_sum, next_acc):
    """Online softmax: merge row_max [M], row_sum [M] and acc [M, D] over some keys with those over the next keys.

    Chunks are always merged from the first to the last, one at a time, with explicit fused multiply-adds: the result is
    bit-identical whether one program processes all chunks or several share them.
    """
    new_max = tl.maximum(row_max, next_max)
    alpha, beta = _softmax_weights(row_max, new_max), _softmax_weights(next_max, new_max)
    acc = tl.fma(acc, tl.broadcast_to(alpha[:, None], acc.shape), next_acc * beta[:, None])
    return new_max, tl.fma(row_sum, alpha, next_sum * beta), acc


@triton.jit
def _store_partial(
    stats_ptr,
    acc_ptr,
    counter_ptr,
    part,
    row_max,
    row_sum,
    acc,
    offs_m,
    mask_m,
    offs_d,
    BLOCK_M: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Write the partial result of one chunk to the workspace; returns how many chunks were written before it.

    The barrier orders the stores of all threads before the release of the atomic add; its acquire makes the stores of
    earlier programs visible to all threads after it.
    """
    tl.store(stats_ptr + part * 2 * BLOCK_M + offs_m, row_max, mask=mask_m)
    tl.store(stats_ptr + (part * 2 + 1) * BLOCK_M + offs_m, row_sum, mask=mask_m)
    tl.store(
        acc_ptr + (part * BLOCK_M + offs_m)[:, None] * HEAD_DIM + offs_d[None, :],
        acc,
        mask=mask_m[:, None] & (offs_d < HEAD_DIM)[None, :],
    )
    tl.debug_barrier()
    return tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")


@triton.jit
def _merge_partials(
    stats_ptr,
    acc_ptr,
    counter_ptr,
    part,
    chunks,
    offs_m,
    mask_m,
    offs_d,
    BLOCK_M: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Merge `chunks` partial results from index `part` on, read past L1; resets the counter for the next launch."""
    row_max, row_sum, acc = _init_softmax(BLOCK_M, BLOCK_D)
    for _ in tl.range(0, chunks, loop_unroll_factor=4):  # so that the loads of four chunks overlap
        next_max = tl.load(
            stats_ptr + part * 2 * BLOCK_M + offs_m, mask=mask_m, other=float("-inf"), cache_modifier=".cg"
        )
        next_sum = tl.load(stats_ptr + (part * 2 + 1) * BLOCK_M + offs_m, mask=mask_m, other=0.0, cache_modifier=".cg")
        next_acc = tl.load(
            acc_ptr + (part * BLOCK_M + offs_m)[:, None] * HEAD_DIM + offs_d[None, :],
            mask=mask_m[:, None] & (offs_d < HEAD_DIM)[None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        row_max, row_sum, acc = _merge_softmax(row_max, row_sum, acc, next_max, next_sum, next_acc)
        part += 1
    tl.store(counter_ptr, 0)
    return row_max, row_sum, acc


@triton.jit
def _load_length(lengths_ptr, row, capacity):
    """Number of valid entries in a row of the table, at most its capacity; a negative length has no valid entry."""
    return tl.minimum(tl.load(lengths_ptr + row), capacity)


@triton.jit
def _load_chunk(
    keys_ptr,
    values_ptr,
    table_ptr,
    first,
    length,
    stride_key_slot,
    stride_value_slot,
    offs_d,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Keys and values [BLOCK_N, D] of positions first .. first + BLOCK_N, and which positions are below `length`.

    Other positions are loaded as 0 and not read from memory, because 0 * NaN would be NaN.
    """
    position = first + tl.arange(0, BLOCK_N)
    visible = position < length
    slot = tl.load(table_ptr + position, mask=visible, other=0).to(tl.int64)
    mask = visible[:, None] & (offs_d < HEAD_DIM)[None, :]
    k = tl.load(keys_ptr + slot[:, None] * stride_key_slot + offs_d[None, :], mask=mask, other=0.0)
    v = tl.load(values_ptr + slot[:, None] * stride_value_slot + offs_d[None, :], mask=mask, other=0.0)
    return k, v, visible


@triton.jit
def _attend_vector(q, k, v, visible):
    """row_max [1], row_sum [1] and acc [1, D] of one query [D] over the visible keys of a chunk."""
    scores = tl.where(visible, tl.sum(k.to(tl.float32) * q[None, :], 1), float("-inf"))
    row_max = tl.max(scores, 0, keep_dims=True)
    p = _softmax_weights(scores, row_max)
    return row_max, tl.sum(p, 0, keep_dims=True), tl.sum(p[:, None] * v.to(tl.float32), 0, keep_dims=True)


@triton.jit
def _attend_tile(q, k, v, visible, scale):
    """row_max [M], row_sum [M] and acc [M, D] of queries [M, D] over the visible keys of a chunk."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where(visible[None, :], scores, float("-inf"))
    row_max = tl.max(scores, 1)
    p = _softmax_weights(scores, row_max[:, None])
    return row_max, tl.sum(p, 1), tl.dot(p.to(v.dtype), v, input_precision="ieee")


@triton.jit(do_not_specialize=["capacity", "stride_table", "stride_slots"])
def _decode_attention_kernel(
    q_ptr,  # [R, H, D]; k_ptr and v_ptr likewise
    k_ptr,
    v_ptr,
    key_pool_ptr,  # [N, H, D], written at slots; value_pool_ptr likewise
    value_pool_ptr,
    slots_ptr,  # [R]
    table_ptr,  # int32 [R, capacity]
    lengths_ptr,  # int32 [R]
    out_ptr,  # [R, H, D], contiguous
    stats_ptr,  # float32 [R * H, chunks, 2]: row_max and row_sum of each chunk; None without SPLIT
    acc_ptr,  # float32 [R * H, chunks, D]: acc of each chunk
    counters_ptr,  # int32 [R * H], zeros: number of finished chunks
    capacity,
    heads,
    scale,  # log2(e) / sqrt(D): softmax by powers of two
    stride_q_row,
    stride_q_head,
    stride_k_row,
    stride_k_head,
    stride_v_row,
    stride_v_head,
    stride_key_slot,
    stride_key_head,
    stride_value_slot,
    stride_value_head,
    stride_table,
    stride_slots,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program per row and head; with SPLIT per row, head and chunk of BLOCK_N keys, and the last one merges."""
    row_head = tl.program_id(0).to(tl.int64)  # the heads of a row are adjacent in memory and in the grid
    row, head = row_head // heads, row_head % heads
    chunk = tl.program_id(1)
    length = _load_length(lengths_ptr, row, capacity)
    chunks = tl.maximum(tl.cdiv(length, BLOCK_N), 1)
    if chunk >= chunks:  # the grid covers the capacity of the table
        return
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < HEAD_DIM
    q = (
        tl.load(q_ptr + row * stride_q_row + head * stride_q_head + offs_d, mask=mask_d, other=0.0).to(tl.float32)
        * scale
    )
    new_k = tl.load(k_ptr + row * stride_k_row + head * stride_k_head + offs_d, mask=mask_d, other=0.0)
    new_v = tl.load(v_ptr + row * stride_v_row + head * stride_v_head + offs_d, mask=mask_d, other=0.0)
    keys_ptr, values_ptr = key_pool_ptr + head * stride_key_head, value_pool_ptr + head * stride_value_head
    table_ptr += row * stride_table
    offs_out = row_head * HEAD_DIM + offs_d[None, :]
    begin, end = 0, chunks
    if SPLIT:
        begin, end = chunk, chunk + 1
    row_max, row_sum, acc = _init_softmax(1, BLOCK_D)
    for i in tl.range(begin, end, num_stages=STAGES):
        k, v, visible = _load_chunk(
            keys_ptr,
            values_ptr,
            table_ptr,
            i * BLOCK_N,
            length,
            stride_key_slot,
            stride_value_slot,
            offs_d,
            HEAD_DIM,
            BLOCK_N,
        )
        next_max, next_sum, next_acc = _attend_vector(q, k, v, visible)
        row_max, row_sum, acc = _merge_softmax(row_max, row_sum, acc, next_max, next_sum, next_acc)

    # The new position comes last, from the arguments k and v: nothing waits for the writes to the pools.
    if chunk == 0:
        slot = tl.load(slots_ptr + row * stride_slots).to(tl.int64)
        tl.store(keys_ptr + slot * stride_key_slot + offs_d, new_k, mask=mask_d)
        tl.store(values_ptr + slot * stride_value_slot + offs_d, new_v, mask=mask_d)
    new_max = tl.sum(q * new_k.to(tl.float32), 0, keep_dims=True)
    new_sum = tl.full((1,), 1.0, tl.float32)
    new_acc = new_v.to(tl.float32)[None, :]
    if SPLIT:
        finished = chunk
        first_partial = row_head * tl.num_programs(1)
        offs_m = tl.arange(0, 1)
        if chunks > 1:
            finished = _store_partial(
                stats_ptr,
                acc_ptr,
                counters_ptr + row_head,
                first_partial + chunk,
                row_max,
                row_sum,
                acc,
                offs_m,
                offs_m < 1,
                offs_d,
                1,
                HEAD_DIM,
            )
        if finished == chunks - 1:
            if chunks > 1:
                row_max, row_sum, acc = _merge_partials(
                    stats_ptr,
                    acc_ptr,
                    counters_ptr + row_head,
                    first_partial,
                    chunks,
                    offs_m,
                    offs_m < 1,
                    offs_d,
                    1,
                    HEAD_DIM,
                    BLOCK_D,
                )
            row_max, row_sum, acc = _merge_softmax(row_max, row_sum, acc, new_max, new_sum, new_acc)
            tl.store(out_ptr + offs_out, acc / row_sum[:, None], mask=mask_d[None, :])
    else:
        row_max, row_sum, acc = _merge_softmax(row_max, row_sum, acc, new_max, new_sum, new_acc)
        tl.store(out_ptr + offs_out, acc / row_sum[:, None], mask=mask_d[None, :])


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
    """`decode_attention_reference` in one launch; the host does not read the contents of integer tensors.

    Args:
        arrivals: int32 [>= R * H] of zeros: counters of finished chunks, which the kernel resets to zero. A caller that
            passes the same tensor to every launch of a stream saves the launch that fills a new one. It need not hold
            more than `tuning.DECODE_COUNTERS`: with more programs none share the keys of a row.

    Raises:
        ValueError: shapes, dtypes, devices or strides that do not fit, or an input that wants gradients.
    """
    _check(q, k=k, v=v, key_pool=key_pool, value_pool=value_pool)
    rows, heads, head_dim = q.shape
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
    launch = tuning.decode_attention(tuning.architecture(q.device), rows * heads, capacity, head_dim, q.element_size())
    chunks = launch.tiles["CHUNKS"]
    partial_stats, partial_acc, arrivals = _workspace(q, rows * heads, chunks, 1, arrivals)
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
        partial_stats,
        partial_acc,
        arrivals,
        capacity,
        heads,
        LOG2_E / math.sqrt(head_dim),
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *key_pool.stride()[:2],
        *value_pool.stride()[:2],
        table.stride(0),
        slots.stride(0),
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, tuning.power_of_2(head_dim)),
        BLOCK_N=launch.tiles["BLOCK_N"],
        SPLIT=chunks > 1,
        STAGES=launch.num_stages,
        num_warps=launch.num_warps,
    )
    return out


@triton.jit(do_not_specialize=["capacity", "rows", "sources", "stride_table"])
def _cross_decode_attention_kernel(
    q_ptr,  # [rows, H, D]
    key_pool_ptr,  # [N, H, D]; value_pool_ptr likewise
    value_pool_ptr,
    table_ptr,  # int32 [sources, capacity]
    lengths_ptr,  # int32 [sources]
    cu_rows_ptr,  # int32 [sources + 1]
    out_ptr,  # [rows, H, D], contiguous
    stats_ptr,  # float32 [sources * H * tiles, chunks, 2, BLOCK_M]; the three as in _decode_attention_kernel
    acc_ptr,  # float32 [sources * H * tiles, chunks, BLOCK_M, D]
    counters_ptr,  # int32 [sources * H * tiles]
    capacity,
    rows,
    sources,
    heads,
    scale,
    stride_q_row,
    stride_q_head,
    stride_key_slot,
    stride_key_head,
    stride_value_slot,
    stride_value_head,
    stride_table,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One program per source, head and tile of BLOCK_M rows; with SPLIT also per chunk of BLOCK_N keys."""
    program = tl.program_id(0).to(tl.int64)  # tiles of the same source and head are adjacent: they share keys in L2
    tiles = tl.num_programs(0) // (sources * heads)
    source_head, tile = program // tiles, program % tiles
    source, head = source_head // heads, source_head % heads
    chunk = tl.program_id(1)
    offs_d = tl.arange(0, BLOCK_D)
    offs_m = tl.arange(0, BLOCK_M)
    if (tile == 0) & (chunk == 0):
        for row in tl.range(tl.load(cu_rows_ptr + sources) + source, rows, sources):  # rows without a source
            tl.store(
                out_ptr + (row * heads + head) * HEAD_DIM + offs_d,
                tl.zeros((BLOCK_D,), tl.float32),
                mask=offs_d < HEAD_DIM,
            )

    length = _load_length(lengths_ptr, source, capacity)
    chunks = tl.maximum(tl.cdiv(length, BLOCK_N), 1)
    first = tl.load(cu_rows_ptr + source) + tile * BLOCK_M
    last = tl.minimum(tl.load(cu_rows_ptr + source + 1), rows)
    if (chunk >= chunks) | (first >= last):
        return
    row = first + offs_m
    mask_m = row < last
    mask = mask_m[:, None] & (offs_d < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + row[:, None] * stride_q_row + head * stride_q_head + offs_d[None, :], mask=mask, other=0.0)
    keys_ptr, values_ptr = key_pool_ptr + head * stride_key_head, value_pool_ptr + head * stride_value_head
    table_ptr += source * stride_table
    offs_out = (row[:, None] * heads + head) * HEAD_DIM + offs_d[None, :]
    begin, end = 0, chunks
    if SPLIT:
        begin, end = chunk, chunk + 1
    row_max, row_sum, acc = _init_softmax(BLOCK_M, BLOCK_D)
    for i in tl.range(begin, end):
        k, v, visible = _load_chunk(
            keys_ptr,
            values_ptr,
            table_ptr,
            i * BLOCK_N,
            length,
            stride_key_slot,
            stride_value_slot,
            offs_d,
            HEAD_DIM,
            BLOCK_N,
        )
        next_max, next_sum, next_acc = _attend_tile(q, k, v, visible, scale)
        row_max, row_sum, acc = _merge_softmax(row_max, row_sum, acc, next_max, next_sum, next_acc)
    if SPLIT:
        finished = chunk
        first_partial = program * tl.num_programs(1)
        if chunks > 1:
            finished = _store_partial(
                stats_ptr,
                acc_ptr,
                counters_ptr + program,
                first_partial + chunk,
                row_max,
                row_sum,
                acc,
                offs_m,
                mask_m,
                offs_d,
                BLOCK_M,
                HEAD_DIM,
            )
        if finished == chunks - 1:
            if chunks > 1:
                row_max, row_sum, acc = _merge_partials(
                    stats_ptr,
                    acc_ptr,
                    counters_ptr + program,
                    first_partial,
                    chunks,
                    offs_m,
                    mask_m,
                    offs_d,
                    BLOCK_M,
                    HEAD_DIM,
                    BLOCK_D,
                )
            tl.store(out_ptr + offs_out, acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None], mask=mask)
    else:
        tl.store(out_ptr + offs_out, acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None], mask=mask)


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
    """`cross_decode_attention_reference` in one launch; the host does not read the contents of integer tensors.

    Args:
        arrivals: as in `decode_attention_triton`, int32 [>= B * H * tiles of max_rows].

    Raises:
        ValueError: shapes, dtypes, devices or strides that do not fit, or an input that wants gradients.
    """
    _check(q, key_pool=key_pool, value_pool=value_pool)
    rows, heads, head_dim = q.shape
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
        tuning.architecture(q.device), sources * heads, capacity, max_rows, head_dim, q.element_size()
    )
    block_m, chunks = launch.tiles["BLOCK_M"], launch.tiles["CHUNKS"]
    programs = sources * heads * -(-max_rows // block_m)
    partial_stats, partial_acc, arrivals = _workspace(q, programs, chunks, block_m, arrivals)
    _cross_decode_attention_kernel[(programs, chunks)](
        q,
        key_pool,
        value_pool,
        table,
        lengths,
        cu_rows,
        out,
        partial_stats,
        partial_acc,
        arrivals,
        capacity,
        rows,
        sources,
        heads,
        LOG2_E / math.sqrt(head_dim),
        *q.stride()[:2],
        *key_pool.stride()[:2],
        *value_pool.stride()[:2],
        table.stride(0),
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, tuning.power_of_2(head_dim)),
        BLOCK_M=block_m,
        BLOCK_N=launch.tiles["BLOCK_N"],
        SPLIT=chunks > 1,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return out


def _check(q: torch.Tensor, **others: torch.Tensor) -> None:
    """Raise ValueError for floating-point arguments that neither kernel takes."""
    if q.dim() != 3:
        raise ValueError(f"q must be [rows, heads, head_dim], not {tuple(q.shape)}")
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"q is {q.dtype}; float32, float16 and bfloat16 are supported")
    if q.shape[2] > MAX_HEAD_DIM:
        raise ValueError(f"head_dim is {q.shape[2]}, at most {MAX_HEAD_DIM} is supported")
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
    """Raise ValueError unless a tensor is int32 (or of `more`), with contiguous rows; -1 in `shape` fits any size."""
    if tensor.dtype not in (torch.int32, *more) or tensor.device != q.device:
        raise ValueError(f"{name} must be int32 on {q.device}, not {tensor.dtype} on {tensor.device}")
    if tensor.dim() != len(shape) or any(n not in (m, -1) for n, m in zip(shape, tensor.shape)):
        raise ValueError(f"{name} must be {list(shape)} (-1: any), not {list(tensor.shape)}")
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1 and not more:
        raise ValueError(f"{name} must be contiguous in its last dimension, its stride is {tensor.stride(-1)}")


def _workspace(
    q: torch.Tensor, programs: int, chunks: int, rows: int, arrivals: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """partial_stats, partial_acc and counters for `programs` results of so many chunks and rows; None for one chunk."""
    if chunks == 1:
        return None, None, None
    if arrivals is None:
        arrivals = torch.zeros(programs, dtype=torch.int32, device=q.device)
    elif arrivals.dtype != torch.int32 or arrivals.device != q.device or not arrivals.is_contiguous():
        raise ValueError(f"arrivals must be contiguous int32 on {q.device}, not {arrivals.dtype} on {arrivals.device}")
    elif arrivals.numel() < programs:
        raise ValueError(f"arrivals holds {arrivals.numel()} counters, {programs} are needed")
    partial_stats = torch.empty((programs, chunks, 2, rows), dtype=torch.float32, device=q.device)
    partial_acc = torch.empty((programs, chunks, rows, q.shape[2]), dtype=torch.float32, device=q.device)
    return partial_stats, partial_acc, arrivals
