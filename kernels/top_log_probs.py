"""top_log_probs: log-softmax, and the best of each row, or of the rows (beams) of each source.

    values, indices = the `count` largest of log_softmax(scores)[row, token] + offsets[row] in each `group` of rows

Shapes: scores [R, V], offsets [R], values and indices [R / group, count].

The best of a row lie in those of its blocks that have the largest maxima. So one pass reads the scores and leaves a
maximum for each block, and the few best blocks are read once more; a last kernel takes the best of a group's rows.

Limits on an H200: the scores are read once, V * itemsize bytes a row, and there is time for 31 instructions an element
in float32 and 15 in 16 bits at 4.3 TB/s; it takes 27 and 21 to 23 (torch's log-softmax and top-k read or write the
scores at least four times).
"""

from __future__ import annotations

import torch

from . import tuning
from .best import best_reference
from .language import tl, triton
from .scores import (
    FLOATS,
    LOG2_E,
    NO_KEY,
    check_argument,
    check_kernel,
    check_scores,
    compute_dtype,
    index_of,
    key_of,
    number_of,
    order_of,
    real_dtypes,
)

MAX_COUNT, MAX_GROUP, MAX_VOCABULARY = 64, 16, 1 << 18


def top_log_probs_reference(
    scores: torch.Tensor, count: int, offsets: torch.Tensor | None = None, group: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of largest log-probability in each `group` of rows, best first.

    A value is log_softmax(scores)[row, token] + offsets[row]. Within a row the larger score comes first, and of equal
    ones that of the lower token; between rows the larger value, and of equal ones that of the earlier row. NaN is more
    than any number; it and +inf make the values of their rows NaN. But -inf has a value of -inf, whatever its row has.

    Args:
        scores: float32, float16 or bfloat16 [R, V] (float64: all is computed in it).
        count: 1 to MAX_COUNT, at most group * V.
        offsets: float32 [R], say the scores of beams.
        group: 1 to MAX_GROUP rows that follow each other and share one answer, say the beams of a source.

    Returns:
        Values float32 [R / group, count], and indices int64 [R / group, count]: row in the group * V + token.

    Raises:
        ValueError: a count, shape, dtype or device that does not fit.
    """
    _check_top(scores, count, offsets, group)
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


def _check_top(scores: torch.Tensor, count: int, offsets: torch.Tensor | None, group: int) -> None:
    check_scores(scores, FLOATS)
    rows, vocabulary = scores.shape
    if vocabulary > MAX_VOCABULARY:
        raise ValueError(f"scores have {vocabulary} columns, at most {MAX_VOCABULARY} are supported")
    if not 1 <= group <= MAX_GROUP:
        raise ValueError(f"group is {group}, it must be from 1 to {MAX_GROUP}")
    if rows % group:
        raise ValueError(f"the {rows} rows of scores are no multiple of the group, {group}")
    if not 1 <= count <= min(MAX_COUNT, group * vocabulary):
        raise ValueError(f"count is {count}, it must be from 1 to {min(MAX_COUNT, group * vocabulary)}")
    if offsets is not None:
        check_argument(scores, "offsets", offsets, real_dtypes(scores))


@triton.jit
def _top(keys, COUNT: tl.constexpr, ROOM: tl.constexpr):
    """The COUNT largest of different keys, falling, in a tensor [ROOM]."""
    place = tl.arange(0, ROOM)
    if COUNT == 1:
        top = tl.where(place == 0, tl.max(keys, 0), NO_KEY)
    else:
        top = tl.full((ROOM,), NO_KEY, tl.int64)
        for i in range(COUNT):
            best = tl.max(keys, 0)
            top = tl.where(place == i, best, top)
            keys = tl.where(keys == best, NO_KEY, keys)
    return top


@triton.jit
def _shift(top):
    """What is subtracted before an exponential: the largest score, where there is any."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def _maxima_kernel(
    scores,  # [R, V], rows STRIDE apart
    maxima,  # int32 [R, blocks], by their `order_of`
    sums,  # float32 [R, tiles, 2]: of each tile the largest score, and the sum of exp(score - it)
    blocks,  # in a row
    tiles,  # in a row
    STRIDE: tl.constexpr,
    V: tl.constexpr,
    BLOCKS: tl.constexpr,  # in a tile
    BLOCK: tl.constexpr,
):
    """One program for each tile and row."""
    program = tl.program_id(0).to(tl.int64)
    row, tile = program // tiles, (program % tiles).to(tl.int32)
    block = tile * BLOCKS + tl.arange(0, BLOCKS)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(scores + row * STRIDE + column, mask=column < V, other=float("-inf")).to(tl.float32)
    best = tl.max(order_of(x), 1)
    tl.store(maxima + row * blocks + block, best, mask=block < blocks)
    top = number_of(tl.max(best, 0))
    total = tl.sum(tl.sum(tl.exp2((x - _shift(top)) * LOG2_E), 1), 0)
    at = sums + program * 2
    tl.store(at, top)
    tl.store(at + 1, total)


@triton.jit
def _row_kernel(
    scores,  # as above, to `blocks`
    maxima,
    sums,
    offsets,  # float32 [R] or None
    values,  # float32 [R, COUNT]
    indices,  # int64 [R, COUNT]
    blocks,
    tiles,
    group,
    STRIDE: tl.constexpr,
    V: tl.constexpr,
    COUNT: tl.constexpr,
    ROOM: tl.constexpr,  # powers of two: for COUNT,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,  # for the blocks of a row,
    TILES: tl.constexpr,  # and for its tiles
):
    """One program for each row."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, ROOM)
    block = tl.arange(0, BLOCKS)
    there = block < blocks
    best = tl.load(maxima + row * blocks + block, mask=there, other=0)
    chosen = _top(tl.where(there, key_of(best, block), NO_KEY), COUNT, ROOM)
    tile = tl.arange(0, TILES)
    at = sums + (row * tiles + tile) * 2
    tops = tl.load(at, mask=tile < tiles, other=float("-inf"))
    totals = tl.load(at + 1, mask=tile < tiles, other=0.0)
    shift = _shift(tl.max(tops, 0))
    log_sum = tl.log(tl.sum(totals * tl.exp(tops - shift), 0))

    column = index_of(chosen)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (chosen != NO_KEY)[:, None] & (column < V)
    x = tl.load(scores + row * STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    keys = tl.where(inside, key_of(order_of(x), column), NO_KEY)
    keys = _top(tl.reshape(keys, (ROOM * BLOCK,)), COUNT, ROOM)
    score = number_of((keys >> 32).to(tl.int32))
    value = score - shift - log_sum
    if offsets is not None:
        value += tl.load(offsets + row)
    value = tl.where(score == float("-inf"), score, value)
    at = row * COUNT + place
    tl.store(values + at, value, mask=place < COUNT)
    tl.store(indices + at, row % group * V + index_of(keys).to(tl.int64), mask=place < COUNT)


@triton.jit
def _group_kernel(
    values,  # float32 [R, EACH]: the best of each row
    indices,  # int64 [R, EACH]
    best,  # float32 [R / GROUP, COUNT]
    best_indices,  # int64 [R / GROUP, COUNT]
    EACH: tl.constexpr,
    COUNT: tl.constexpr,
    GROUP: tl.constexpr,
    ROOM: tl.constexpr,
    ALL: tl.constexpr,  # a power of two that has room for GROUP * EACH
):
    """One program for each group."""
    group = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, ALL)
    there = at < GROUP * EACH
    first = group * GROUP * EACH
    value = tl.load(values + first + at, mask=there, other=0.0)
    keys = _top(tl.where(there, key_of(order_of(value), at), NO_KEY), COUNT, ROOM)
    place = tl.arange(0, ROOM)
    inside = place < COUNT
    tl.store(best + group * COUNT + place, number_of((keys >> 32).to(tl.int32)), mask=inside)
    index = tl.load(indices + first + index_of(keys), mask=inside, other=0)
    tl.store(best_indices + group * COUNT + place, index, mask=inside)


def top_log_probs_triton(
    scores: torch.Tensor, count: int, offsets: torch.Tensor | None = None, group: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """`top_log_probs_reference` in two launches, with a group in three; scores may have any stride between rows.

    Raises:
        ValueError: as the reference; float64, or a last dimension that is not contiguous.
    """
    _check_top(scores, count, offsets, group)
    check_kernel(scores, offsets=offsets)
    rows, vocabulary = scores.shape
    device, each = scores.device, min(count, vocabulary)
    values = torch.empty((rows, each), dtype=torch.float32, device=device)
    indices = torch.empty((rows, each), dtype=torch.int64, device=device)
    best, best_indices = values, indices
    if group > 1:
        best = torch.empty((rows // group, count), dtype=torch.float32, device=device)
        best_indices = torch.empty((rows // group, count), dtype=torch.int64, device=device)
    if rows == 0:
        return best, best_indices
    launch, row_launch = tuning.top_log_probs(tuning.architecture(device), vocabulary, each)
    block, blocks = launch.tiles["BLOCK"], -(-vocabulary // launch.tiles["BLOCK"])
    tiles = -(-blocks // launch.tiles["BLOCKS"])
    maxima = torch.empty((rows, blocks), dtype=torch.int32, device=device)
    sums = torch.empty((rows, tiles, 2), dtype=torch.float32, device=device)
    stride = scores.stride(0)
    _maxima_kernel[(rows * tiles,)](
        scores, maxima, sums, blocks, tiles, stride, vocabulary, **launch.tiles, num_warps=launch.num_warps
    )
    _row_kernel[(rows,)](
        scores, maxima, sums, offsets, values, indices, blocks, tiles, group, stride, vocabulary, each,
        tuning.power_of_2(each), block, **row_launch.tiles, num_warps=row_launch.num_warps,
    )  # fmt: skip
    if group > 1:
        _group_kernel[(rows // group,)](
            values, indices, best, best_indices, each, count, group,
            tuning.power_of_2(count), tuning.power_of_2(group * each),
        )  # fmt: skip
    return best, best_indices
