"""Random number generators of a search."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from .. import ops
from ..kernels.top_log_probs import MAX_COUNT, MAX_VOCABULARY


class RngKeys(NamedTuple):
    """Keys of random draws, int64 [n] each: the seed, the number of the request (and row), the step."""

    seed: torch.Tensor
    number: torch.Tensor
    step: torch.Tensor


class SampleLimits(NamedTuple):
    """The warpers that `ops.sample` applies to each row: its arguments of these names, [n] each."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor


class Rng(Protocol):
    """Chooses tokens by their scores, with or without random numbers.

    Attributes:
        takes_limits: `choose` applies SampleLimits to one sampled token per row; otherwise a processor has to.
    """

    takes_limits: bool

    def choose(
        self, scores: torch.Tensor, count: int, sample: bool, keys: RngKeys | None, limits: SampleLimits | None = None
    ) -> torch.Tensor:
        """The best `count` of scores float32 [n, m], or distinct ones sampled by their softmax: int64 [n, count].

        Args:
            keys, limits: of each row, for an Rng that takes them; not needed without `sample`.
        """


class TorchRng:
    """Samples with a generator of torch, in the order of transformers."""

    takes_limits = False

    def __init__(self, generator: torch.Generator | None = None):
        self.generator = generator

    def choose(
        self, scores: torch.Tensor, count: int, sample: bool, keys: RngKeys | None, limits: SampleLimits | None = None
    ) -> torch.Tensor:
        """As `Rng.choose`; keys and limits are not used."""
        return ops.select(scores, count, True, self.generator) if sample else best_tokens(scores, count)


class KeyedRng:
    """Samples that depend on the keys alone: a request gets the same tokens in any batch."""

    takes_limits = True

    def choose(
        self, scores: torch.Tensor, count: int, sample: bool, keys: RngKeys | None, limits: SampleLimits | None = None
    ) -> torch.Tensor:
        """As `Rng.choose`; several tokens are the largest after Gumbel noise (Kool et al. 2019, arXiv 1903.06059)."""
        if not sample:
            return best_tokens(scores, count)
        assert keys is not None
        if count > 1:
            return ops.perturb(scores, *keys).topk(count).indices
        assert limits is not None
        return ops.sample(scores, *keys, *limits)[0][:, None]


def best_tokens(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The best `count` of scores [n, m], best first: int64 [n, count].

    Of equal scores, the lower index is first on CUDA and where the count is 1; otherwise the order is that of
    torch.topk, which is that of transformers. On CUDA the host reads nothing, except for a count above MAX_COUNT.
    """
    if count > MAX_COUNT or not ops.top_log_probs.prefers_triton(scores):
        return ops.select(scores, count, False, None)
    width = scores.shape[1]
    if width <= MAX_VOCABULARY:
        return ops.top_log_probs(scores, count)[1]
    # The best of each part, in the order of the parts, so that a stable sort keeps the order of equal scores.
    parts = scores.split(MAX_VOCABULARY, 1)
    indices = [ops.top_log_probs(part, min(count, part.shape[1]))[1] for part in parts]
    index = torch.cat([index + i * MAX_VOCABULARY for i, index in enumerate(indices)], 1)
    order = scores.gather(1, index).sort(dim=1, descending=True, stable=True).indices[:, :count]
    return index.gather(1, order)
