"""best: the largest scores of each row, searched through the maxima of blocks.

The `count` largest scores lie in the `count` blocks with the largest maxima. So the scores are read once for the block
maxima, and only a few blocks of each row are searched. On a CPU this is faster than torch's `topk` and `argmax`.
"""

from __future__ import annotations

import torch

BLOCK = 256


def best_reference(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest scores of each row and their indices; of equal scores, the lower index first.

    Args:
        scores: [R, V] of any floating dtype; NaN is above every number.
        count: 1 to V.

    Returns:
        Scores [R, count], descending, and indices int64 [R, count].
    """
    rows, vocabulary = scores.shape
    num_blocks = vocabulary // BLOCK
    if num_blocks < 4 * count or rows == 0:
        values, index, tied = _top(scores, count)
    else:
        body_size = num_blocks * BLOCK
        body, tail = scores[:, :body_size].unflatten(1, (num_blocks, BLOCK)), scores[:, body_size:]
        maxima = body.amax(-1)
        chosen = maxima.topk(count).indices.sort().values  # ascending, so candidates are in the order of their indices
        candidates = body.gather(1, chosen[..., None].expand(-1, -1, BLOCK)).flatten(1)
        values, position, tied = _top(torch.cat((candidates, tail), 1) if tail.shape[1] else candidates, count)
        tail_position = position - count * BLOCK  # >= 0 in the tail, which is not a whole block
        index = chosen.gather(1, (position // BLOCK).clamp(max=count - 1)) * BLOCK + position % BLOCK
        index = torch.where(tail_position < 0, index, body_size + tail_position)
        least = values[:, -1:]  # a block that was left out may hold an equal score
        tied |= (maxima >= least).sum(-1) > (maxima.gather(1, chosen) >= least).sum(-1)
    if bool(tied.any()):
        part = scores[tied]
        order = part.argmax(-1, keepdim=True) if count == 1 else part.sort(dim=-1, descending=True, stable=True).indices
        index[tied] = order[:, :count]
        values = scores.gather(1, index)
    return values, index


def _top(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest scores of each row, their indices, and bool [R]: whether topk's own order of ties affects the result.

    topk orders equal scores arbitrarily. NaN counts as a tie: it compares unequal to itself.
    """
    values, index = scores.topk(count)
    tied = ((scores >= values[:, -1:]).sum(-1) != count) | (values[:, 1:] == values[:, :-1]).any(-1)
    return values, index, tied
