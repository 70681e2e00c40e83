"""top_log_probs: log-softmax and top-k, of each row or of each group of rows (the beams of a source).

    values, indices = the `count` largest of log_softmax(scores)[row, token] + offsets[row] in each `group` of rows

Shapes: scores [R, V], offsets [R], values and indices [R / group, count].

The top scores of a row lie in the blocks with the largest maxima. So a first kernel reads the scores once and writes
the maximum of each block, a second one reads the few best blocks again, and a third merges the rows of a group.

Limits on an H200: the scores are read once, V * itemsize bytes per row. At 4.3 TB/s that leaves time for 31
instructions per element in float32 and 15 in 16 bits; the kernel takes 27, and 21 to 23. torch's log-softmax and top-k
read or write the scores at least four times.
"""

from __future__ import annotations

import torch

from . import tuning
from .best import best_reference
from .language import tl, triton
from .scores import (
    EMPTY_KEY,
    FLOATS,
    LOG2_E,
    check_argument,
    check_kernel,
    check_scores,
    compute_dtype,
    float_to_ordered,
    key_index,
    key_score,
    ordered_to_float,
    pack_key,
    real_dtypes,
)

MAX_COUNT, MAX_GROUP, MAX_VOCABULARY = 64, 16, 1 << 18


def top_log_probs_reference(
    scores: torch.Tensor, count: int, offsets: torch.Tensor | None = None, group: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens with the largest log-probabilities in each `group` of rows, best first.

    A value is log_softmax(scores)[row, token] + offsets[row]. Within a row the larger score comes first; of equal
    scores, the lower token. Between rows the larger value comes first; of equal values, the earlier row. NaN is above
    every number; NaN and +inf make the values of their rows NaN. A score of -inf always has the value -inf.

    Args:
        scores: float32, float16 or bfloat16 [R, V], V at most MAX_VOCABULARY; float64 is computed in float64.
        count: 1 to MAX_COUNT, at most group * V.
        offsets: float32 [R], for example the accumulated scores of beams.
        group: 1 to MAX_GROUP adjacent rows that share one result, for example the beams of a source.

    Returns:
        Values float32 [R / group, count], and indices int64 [R / group, count]: row in the group * V + token.

    Raises:
        ValueError: a count, shape, dtype or device that does not fit.
    """
    _check_arguments(scores, count, offsets, group)
    rows, vocabulary = scores.shape
    scores = scores.to(compute_dtype(scores))
    best, index = best_reference(scores, min(count, vocabulary))
    values = scores.log_softmax(-1).gather(1, index)
    if offsets is not None:
        values = values + offsets[:, None]
    values = values.masked_fill(best == -torch.inf, -torch.inf)
    if group > 1:
        index = index + (torch.arange(rows, device=scores.device) % group * vocabulary)[:, None]
        values, order = values.unflatten(0, (-1, group)).flatten(1).sort(dim=-1, descending=True, stable=True)
        values, order = values[:, :count].contiguous(), order[:, :count]
        index = index.unflatten(0, (-1, group)).flatten(1).gather(1, order)
    return values, index


def _check_arguments(scores: torch.Tensor, count: int, offsets: torch.Tensor | None, group: int) -> None:
    check_scores(scores, FLOATS)
    rows, vocabulary = scores.shape
    if vocabulary > MAX_VOCABULARY:
        raise ValueError(f"scores have {vocabulary} columns, at most {MAX_VOCABULARY} are supported")
    if not 1 <= group <= MAX_GROUP:
        raise ValueError(f"group is {group}, it must be from 1 to {MAX_GROUP}")
    if rows % group:
        raise ValueError(f"scores have {rows} rows, which is not a multiple of group {group}")
    if not 1 <= count <= min(MAX_COUNT, group * vocabulary):
        raise ValueError(f"count is {count}, it must be from 1 to {min(MAX_COUNT, group * vocabulary)}")
    if offsets is not None:
        check_argument(scores, "offsets", offsets, real_dtypes(scores))


@triton.jit
def _top_keys(keys, COUNT: tl.constexpr, BLOCK_COUNT: tl.constexpr):
    """The COUNT largest of distinct keys, descending, as [BLOCK_COUNT]."""
    rank = tl.arange(0, BLOCK_COUNT)
    if COUNT == 1:
        top = tl.where(rank == 0, tl.max(keys, 0), EMPTY_KEY)
    else:
        top = tl.full((BLOCK_COUNT,), EMPTY_KEY, tl.int64)
        for i in range(COUNT):
            largest = tl.max(keys, 0)
            top = tl.where(rank == i, largest, top)
            keys = tl.where(keys == largest, EMPTY_KEY, keys)
    return top


@triton.jit
def _finite_max(maximum):
    """What is subtracted before an exponential: the maximum, or 0 where it is -inf, so that exp gives 0 and not NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def _block_max_kernel(
    scores_ptr,  # [R, V], rows STRIDE apart
    block_max_ptr,  # int32 [R, num_blocks], as `float_to_ordered`
    tile_sums_ptr,  # float32 [R, num_tiles, 2]: of each tile the largest score, and the sum of exp(score - it)
    num_blocks,  # of a row
    num_tiles,  # of a row
    STRIDE: tl.constexpr,
    V: tl.constexpr,
    BLOCKS: tl.constexpr,  # of a tile
    BLOCK: tl.constexpr,
):
    """One program per row and tile."""
    program = tl.program_id(0).to(tl.int64)
    row, tile = program // num_tiles, (program % num_tiles).to(tl.int32)
    offs_block = tile * BLOCKS + tl.arange(0, BLOCKS)
    offs_v = offs_block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(scores_ptr + row * STRIDE + offs_v, mask=offs_v < V, other=float("-inf")).to(tl.float32)
    block_max = tl.max(float_to_ordered(x), 1)
    tl.store(block_max_ptr + row * num_blocks + offs_block, block_max, mask=offs_block < num_blocks)
    tile_max = ordered_to_float(tl.max(block_max, 0))
    total = tl.sum(tl.sum(tl.exp2((x - _finite_max(tile_max)) * LOG2_E), 1), 0)
    sums_ptr = tile_sums_ptr + program * 2
    tl.store(sums_ptr, tile_max)
    tl.store(sums_ptr + 1, total)


@triton.jit
def _row_top_kernel(
    scores_ptr,  # these three as in _block_max_kernel
    block_max_ptr,
    tile_sums_ptr,
    offsets_ptr,  # float32 [R] or None
    values_ptr,  # float32 [R, COUNT]
    indices_ptr,  # int64 [R, COUNT]
    num_blocks,
    num_tiles,
    group,
    STRIDE: tl.constexpr,
    V: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_COUNT: tl.constexpr,  # power of two >= COUNT
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,  # power of two >= num_blocks
    TILES: tl.constexpr,  # power of two >= num_tiles
):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    rank = tl.arange(0, BLOCK_COUNT)
    offs_block = tl.arange(0, BLOCKS)
    block_mask = offs_block < num_blocks
    block_max = tl.load(block_max_ptr + row * num_blocks + offs_block, mask=block_mask, other=0)
    chosen = _top_keys(tl.where(block_mask, pack_key(block_max, offs_block), EMPTY_KEY), COUNT, BLOCK_COUNT)
    offs_tile = tl.arange(0, TILES)
    sums_ptr = tile_sums_ptr + (row * num_tiles + offs_tile) * 2
    tile_max = tl.load(sums_ptr, mask=offs_tile < num_tiles, other=float("-inf"))
    tile_sum = tl.load(sums_ptr + 1, mask=offs_tile < num_tiles, other=0.0)
    row_max = _finite_max(tl.max(tile_max, 0))
    log_sum = tl.log(tl.sum(tile_sum * tl.exp(tile_max - row_max), 0))

    offs_v = key_index(chosen)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (chosen != EMPTY_KEY)[:, None] & (offs_v < V)
    x = tl.load(scores_ptr + row * STRIDE + offs_v, mask=mask, other=0.0).to(tl.float32)
    keys = tl.where(mask, pack_key(float_to_ordered(x), offs_v), EMPTY_KEY)
    keys = _top_keys(tl.reshape(keys, (BLOCK_COUNT * BLOCK,)), COUNT, BLOCK_COUNT)
    score = key_score(keys)
    value = score - row_max - log_sum
    if offsets_ptr is not None:
        value += tl.load(offsets_ptr + row)
    value = tl.where(score == float("-inf"), score, value)
    offs_out = row * COUNT + rank
    tl.store(values_ptr + offs_out, value, mask=rank < COUNT)
    tl.store(indices_ptr + offs_out, row % group * V + key_index(keys).to(tl.int64), mask=rank < COUNT)


@triton.jit
def _group_top_kernel(
    values_ptr,  # float32 [R, ROW_COUNT]: the best of each row
    indices_ptr,  # int64 [R, ROW_COUNT]
    out_values_ptr,  # float32 [R / GROUP, COUNT]
    out_indices_ptr,  # int64 [R / GROUP, COUNT]
    ROW_COUNT: tl.constexpr,
    COUNT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_COUNT: tl.constexpr,  # power of two >= COUNT
    BLOCK: tl.constexpr,  # power of two >= GROUP * ROW_COUNT
):
    """One program per group."""
    group = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < GROUP * ROW_COUNT
    first = group * GROUP * ROW_COUNT
    value = tl.load(values_ptr + first + offs, mask=mask, other=0.0)
    keys = _top_keys(tl.where(mask, pack_key(float_to_ordered(value), offs), EMPTY_KEY), COUNT, BLOCK_COUNT)
    rank = tl.arange(0, BLOCK_COUNT)
    rank_mask = rank < COUNT
    tl.store(out_values_ptr + group * COUNT + rank, key_score(keys), mask=rank_mask)
    index = tl.load(indices_ptr + first + key_index(keys), mask=rank_mask, other=0)
    tl.store(out_indices_ptr + group * COUNT + rank, index, mask=rank_mask)


def top_log_probs_triton(
    scores: torch.Tensor, count: int, offsets: torch.Tensor | None = None, group: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """`top_log_probs_reference` in two launches, or three where group > 1; scores may have any stride between rows.

    Raises:
        ValueError: as the reference; also for float64, or a last dimension that is not contiguous.
    """
    _check_arguments(scores, count, offsets, group)
    check_kernel(scores, offsets=offsets)
    rows, vocabulary = scores.shape
    device, row_count = scores.device, min(count, vocabulary)
    values = torch.empty((rows, row_count), dtype=torch.float32, device=device)
    indices = torch.empty((rows, row_count), dtype=torch.int64, device=device)
    out_values, out_indices = values, indices
    if group > 1:
        out_values = torch.empty((rows // group, count), dtype=torch.float32, device=device)
        out_indices = torch.empty((rows // group, count), dtype=torch.int64, device=device)
    if rows == 0:
        return out_values, out_indices
    launch, row_launch = tuning.top_log_probs(tuning.architecture(device), vocabulary, row_count)
    block, num_blocks = launch.tiles["BLOCK"], -(-vocabulary // launch.tiles["BLOCK"])
    num_tiles = -(-num_blocks // launch.tiles["BLOCKS"])
    block_max = torch.empty((rows, num_blocks), dtype=torch.int32, device=device)
    tile_sums = torch.empty((rows, num_tiles, 2), dtype=torch.float32, device=device)
    stride = scores.stride(0)
    _block_max_kernel[(rows * num_tiles,)](
        scores,
        block_max,
        tile_sums,
        num_blocks,
        num_tiles,
        stride,
        vocabulary,
        **launch.tiles,
        num_warps=launch.num_warps,
    )
    _row_top_kernel[(rows,)](
        scores, block_max, tile_sums, offsets, values, indices, num_blocks, num_tiles, group, stride, vocabulary,
        row_count, tuning.power_of_2(row_count), block, **row_launch.tiles, num_warps=row_launch.num_warps,
    )  # fmt: skip
    if group > 1:
        _group_top_kernel[(rows // group,)](
            values, indices, out_values, out_indices, row_count, count, group,
            tuning.power_of_2(count), tuning.power_of_2(group * row_count),
        )  # fmt: skip
    return out_values, out_indices
