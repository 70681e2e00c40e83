"""select: from the scores of one step to the next token of each row.

Shapes: scores [R, V] float32. Temperature, top-k, top-p (Holtzman et al. 2019, arXiv 1904.09751) and min-p
(Nguyen et al. 2024, arXiv 2407.01082) shape the distribution; the token is the best one or a draw.
"""

from __future__ import annotations

import torch


def warp_reference(
    scores: torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float | None = None,
    keep: int = 1,
) -> torch.Tensor:
    """Shape the distribution that is sampled from; scores that fall out become -inf.

    Args:
        scores: float32 [R, V].
        temperature: divides the scores.
        top_k: as many of the best tokens stay (ties with the last one too); 0 keeps all.
        top_p: the smallest set of best tokens with at least this probability stays.
        min_p: tokens with at least this share of the best token's probability stay.
        keep: at least so many tokens stay whatever the limits say.

    Returns:
        float32 [R, V], a new tensor where anything changes.
    """
    if temperature != 1.0:
        scores = scores / temperature
    if top_k > 0:
        worst = scores.topk(min(max(top_k, keep), scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < worst, -torch.inf)
    if top_p < 1.0:
        ascending, order = scores.sort(dim=-1)
        drop = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[:, -keep:] = False
        scores = scores.masked_fill(drop.scatter(1, order, drop), -torch.inf)
    if min_p is not None:
        probability = scores.softmax(-1)
        drop = probability < min_p * probability.amax(-1, keepdim=True)
        best = probability.topk(min(keep, scores.shape[-1])).indices
        scores = scores.masked_fill(drop.scatter(1, best, False), -torch.inf)
    return scores


def select_reference(
    scores: torch.Tensor, sample: bool = False, generator: torch.Generator | None = None
) -> torch.Tensor:
    """The best token of each row, or one drawn from softmax(scores); int64 [R]. Ties go to the lowest id."""
    if not sample:
        return scores.argmax(-1)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator).squeeze(1)
