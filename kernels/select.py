"""select: from the scores of one step to the next token of each row.

Shapes: scores [R, V] float32. `warp` shapes the distribution: temperature, top-h (Potraghloo et al. 2025, arXiv
2509.02510), top-k, top-p (Holtzman et al. 2019, arXiv 1904.09751), min-p (Nguyen et al. 2024, arXiv 2407.01082),
locally typical sampling (Meister et al. 2022, arXiv 2202.00666), epsilon and eta sampling (Hewitt et al. 2022, arXiv
2210.15191). `select` takes the best tokens or draws some.
"""

from __future__ import annotations

import torch

from .best import best_reference
from .sample import _blocks, gumbel_reference, philox_reference

TOP_H_TOKENS = 100  # top-h looks at so many of the best tokens


def warp_reference(
    scores: torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float | None = None,
    *,
    top_h: float | None = None,
    typical_p: float = 1.0,
    epsilon_cutoff: float = 0.0,
    eta_cutoff: float = 0.0,
    keep: int = 1,
) -> torch.Tensor:
    """Shape the distribution that is sampled from; scores that fall out become -inf.

    Each limit looks at what the ones before it left, in the order temperature, top_h, top_k, top_p, min_p, typical_p,
    epsilon_cutoff, eta_cutoff.

    Args:
        scores: float32 [R, V].
        temperature: divides the scores.
        top_h: the most probable tokens stay until their part of the entropy exceeds this share of it.
        top_k: as many of the best tokens stay (ties with the last one too); 0 keeps all.
        top_p: the smallest set of best tokens with at least this probability stays.
        min_p: tokens with at least this share of the best token's probability stay.
        typical_p: the smallest set of this probability stays whose surprise is nearest to the entropy.
        epsilon_cutoff: tokens with at least this probability stay.
        eta_cutoff: the same, with a limit that sinks to sqrt(eta) * exp(-entropy) where that is smaller.
        keep: at least so many tokens stay whatever the limits say (but top_h, which keeps one).

    Returns:
        float32 [R, V], a new tensor where anything changes.
    """
    if temperature != 1.0:
        scores = scores / temperature
    if top_h is not None:
        best, order = scores.topk(min(TOP_H_TOKENS, scores.shape[-1]))
        share, entropy = _entropy(best)
        inside = (-share * share.log()).cumsum(-1) <= top_h * entropy
        inside[:, 0] = True
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, inside)
        scores = scores.masked_fill(~kept, -torch.inf)
    if top_k > 0:
        scores = scores.masked_fill(_below_best(scores, max(top_k, keep)), -torch.inf)
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
    if typical_p < 1.0:
        surprise = -scores.log_softmax(-1)
        entropy = (surprise * (-surprise).exp()).nansum(-1, keepdim=True)
        distance, order = (surprise - entropy).abs().sort(dim=-1)
        mass = scores.gather(1, order).softmax(-1).cumsum(-1)
        last = (mass < typical_p).sum(1, keepdim=True).clamp(max=scores.shape[-1] - 1)
        drop = distance > distance.gather(1, last)
        drop[:, :keep] = False
        scores = scores.masked_fill(drop.scatter(1, order, drop), -torch.inf)
    if epsilon_cutoff > 0.0:
        drop = scores.softmax(-1) < epsilon_cutoff
        scores = scores.masked_fill(drop & _below_best(scores, keep), -torch.inf)
    if eta_cutoff > 0.0:
        limit = scores.new_tensor(eta_cutoff)
        limit = torch.minimum(limit, limit.sqrt() * (-_entropy(scores)[1]).exp())
        drop = scores.softmax(-1) < limit
        scores = scores.masked_fill(drop & _below_best(scores, keep), -torch.inf)
    return scores


def select_reference(
    scores: torch.Tensor, count: int = 1, sample: bool = False, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Indices [R, count] of each row: the best ones, best first, or ones drawn from softmax(scores) one after another.

    The single best one is that of the lowest index where several are equal; no index is drawn twice.
    """
    if sample:
        return torch.multinomial(scores.softmax(-1), count, generator=generator)
    return best_reference(scores, 1)[1] if count == 1 else scores.topk(count).indices


def perturb_reference(
    scores: torch.Tensor, seed: torch.Tensor, request: torch.Tensor, step: torch.Tensor
) -> torch.Tensor:
    """Scores float32 [R, V] behind Gumbel noise: the largest so many are draws by softmax(scores), none of them twice.

    Args:
        seed, request, step: int64 [R], the keys of the noise, as `sample_reference` has them.
    """
    vocabulary = scores.shape[1]
    row, block = _blocks(scores > -torch.inf).nonzero(as_tuple=True)
    bits = philox_reference(seed[row], block, step[row], request[row])
    noise = scores.new_zeros(len(scores), -(-vocabulary // 4), 4)
    noise[row, block] = gumbel_reference(bits, scores.dtype)
    return scores + noise.flatten(1)[:, :vocabulary]


def _below_best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """bool [R, V]: under the score of the count-th best token."""
    return scores < scores.topk(min(count, scores.shape[-1])).values[:, -1:]


def _entropy(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [R, V] of scores, and their entropy [R, 1] in nats."""
    surprise = scores.logsumexp(-1, keepdim=True) - scores
    share = (-surprise).softmax(-1)
    return share, (share * surprise.clamp(max=torch.finfo(scores.dtype).max)).sum(-1, keepdim=True)
