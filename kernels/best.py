"""best: the largest scores of each row, found by the maxima of blocks.

The largest `count` lie in the blocks with the largest maxima. So the scores are read once, for the maxima, and what is
searched are a few blocks of each row. On a CPU torch's `topk` and `argmax` take longer.
"""

from __future__ import annotations

import torch

BLOCK = 256


def best_reference(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest scores of each row and where they are; of equal ones, the lower index first.

    Args:
        scores: [R, V] of any floating dtype; nan is more than any number.
        count: 1 to V.

    Returns:
        Scores [R, count], falling, and indices int64 [R, count].
    """
    rows, vocabulary = scores.shape
    blocks = vocabulary // BLOCK
    if blocks < 4 * count or rows == 0:
        values, index, tied = _top(scores, count)
    else:
        body, tail = scores[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK)), scores[:, blocks * BLOCK :]
        peaks = body.amax(-1)
        chosen = peaks.topk(count).indices.sort().values  # ascending, so that places are in the order of indices
        some = body.gather(1, chosen[..., None].expand(-1, -1, BLOCK)).flatten(1)
        values, at, tied = _top(torch.cat((some, tail), 1) if tail.shape[1] else some, count)
        behind = at - count * BLOCK  # in the tail, which is no whole block
        index = chosen.gather(1, (at // BLOCK).clamp(max=count - 1)) * BLOCK + at % BLOCK
        index = torch.where(behind < 0, index, blocks * BLOCK + behind)
        least = values[:, -1:]  # a block that was left out may hold an equal of it
        tied |= (peaks >= least).sum(-1) > (peaks.gather(1, chosen) >= least).sum(-1)
    if bool(tied.any()):
        part = scores[tied]
        order = part.argmax(-1, keepdim=True) if count == 1 else part.sort(dim=-1, descending=True, stable=True).indices
        index[tied] = order[:, :count]
        values = scores.gather(1, index)
    return values, index


def _top(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest scores of each row, where they are, and whether topk's own order of equal scores matters.

    It has one of its own, also for nan, which equals nothing.
    """
    values, index = scores.topk(count)
    tied = ((scores >= values[:, -1:]).sum(-1) != count) | (values[:, 1:] == values[:, :-1]).any(-1)
    return values, index, tied
