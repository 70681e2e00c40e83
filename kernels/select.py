"""select: choose the next token of each row from the scores of one step.

Shapes: scores [R, V] float32. `warp` shapes the distribution: temperature, top-h (Potraghloo et al. 2025, arXiv
2509.02510), top-k, top-p (Holtzman et al. 2019, arXiv 1904.09751), min-p (Nguyen et al. 2024, arXiv 2407.01082),
locally typical sampling (Meister et al. 2022, arXiv 2202.00666), epsilon and eta sampling (Hewitt et al. 2022, arXiv
2210.15191). `select` takes the best tokens or samples.
"""

from __future__ import annotations

import torch

from .best import best_reference
from .sample import any_of_four, gumbel_reference, philox_reference

TOP_H_TOKENS = 100  # top-h considers only so many of the best tokens


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
    """Shape the distribution that is sampled; scores of removed tokens become -inf.

    Each limit applies to the tokens that the previous ones kept, in the order temperature, top_h, top_k, top_p, min_p,
    typical_p, epsilon_cutoff, eta_cutoff.

    Args:
        scores: float32 [R, V].
        temperature: divides the scores.
        top_h: keeps the most probable tokens while their part of the entropy is at most this share of it.
        top_k: keeps this many of the best tokens, and ties with the last one; 0 keeps all.
        top_p: keeps the smallest set of best tokens with at least this total probability.
        min_p: keeps tokens with at least this share of the best token's probability.
        typical_p: keeps the smallest set of this total probability whose surprise is nearest to the entropy.
        epsilon_cutoff: keeps tokens with at least this probability.
        eta_cutoff: the same with the limit min(eta, sqrt(eta) * exp(-entropy)).
        keep: every limit keeps at least this many tokens (top_h: one).

    Returns:
        float32 [R, V], a new tensor where anything changes.
    """
    if temperature != 1.0:
        scores = scores / temperature
    if top_h is not None:
        best, order = scores.topk(min(TOP_H_TOKENS, scores.shape[-1]))
        probability, entropy = _entropy(best)
        kept = (-probability * probability.log()).cumsum(-1) <= top_h * entropy
        kept[:, 0] = True
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, kept)
        scores = scores.masked_fill(~mask, -torch.inf)
    if top_k > 0:
        scores = scores.masked_fill(_below_best(scores, max(top_k, keep)), -torch.inf)
    if top_p < 1.0:
        ascending, order = scores.sort(dim=-1)
        removed = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        removed[:, -keep:] = False
        scores = scores.masked_fill(removed.scatter(1, order, removed), -torch.inf)
    if min_p is not None:
        probability = scores.softmax(-1)
        removed = probability < min_p * probability.amax(-1, keepdim=True)
        best = probability.topk(min(keep, scores.shape[-1])).indices
        scores = scores.masked_fill(removed.scatter(1, best, False), -torch.inf)
    if typical_p < 1.0:
        surprise = -scores.log_softmax(-1)
        entropy = (surprise * (-surprise).exp()).nansum(-1, keepdim=True)
        distance, order = (surprise - entropy).abs().sort(dim=-1)
        mass = scores.gather(1, order).softmax(-1).cumsum(-1)
        last = (mass < typical_p).sum(1, keepdim=True).clamp(max=scores.shape[-1] - 1)
        removed = distance > distance.gather(1, last)
        removed[:, :keep] = False
        scores = scores.masked_fill(removed.scatter(1, order, removed), -torch.inf)
    if epsilon_cutoff > 0.0:
        removed = scores.softmax(-1) < epsilon_cutoff
        scores = scores.masked_fill(removed & _below_best(scores, keep), -torch.inf)
    if eta_cutoff > 0.0:
        limit = scores.new_tensor(eta_cutoff)
        limit = torch.minimum(limit, limit.sqrt() * (-_entropy(scores)[1]).exp())
        removed = scores.softmax(-1) < limit
        scores = scores.masked_fill(removed & _below_best(scores, keep), -torch.inf)
    return scores


def select_reference(
    scores: torch.Tensor, count: int = 1, sample: bool = False, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Indices [R, count]: the best of each row, best first, or samples from softmax(scores) without replacement.

    With count 1 and equal best scores, the lowest index.
    """
    if sample:
        return torch.multinomial(scores.softmax(-1), count, generator=generator)
    return best_reference(scores, 1)[1] if count == 1 else scores.topk(count).indices


def perturb_reference(
    scores: torch.Tensor, seed: torch.Tensor, request: torch.Tensor, step: torch.Tensor
) -> torch.Tensor:
    """Scores with Gumbel noise, float32 [R, V]: their top k are k samples from softmax(scores) without replacement.

    Args:
        seed, request, step: int64 [R], the keys of the noise, as in `sample_reference`.
    """
    vocabulary = scores.shape[1]
    row, block = any_of_four(scores > -torch.inf).nonzero(as_tuple=True)
    bits = philox_reference(seed[row], block, step[row], request[row])
    noise = scores.new_zeros(len(scores), -(-vocabulary // 4), 4)
    noise[row, block] = gumbel_reference(bits, scores.dtype)
    return scores + noise.flatten(1)[:, :vocabulary]


def _below_best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """bool [R, V]: whether a score is below the count-th best of its row."""
    return scores < scores.topk(min(count, scores.shape[-1])).values[:, -1:]


def _entropy(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [R, V] of scores, and their entropy [R, 1] in nats."""
    surprise = scores.logsumexp(-1, keepdim=True) - scores
    probability = (-surprise).softmax(-1)
    return probability, (probability * surprise.clamp(max=torch.finfo(scores.dtype).max)).sum(-1, keepdim=True)
