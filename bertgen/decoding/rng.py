"""Random number generators of a search."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from .. import ops


class RngKeys(NamedTuple):
    """Keys of random draws, int64 [n] each: the seed, the number of the request (and row), the step."""

    seed: torch.Tensor
    number: torch.Tensor
    step: torch.Tensor


class Rng(Protocol):
    """Chooses tokens by their scores, with or without random numbers."""

    def choose(self, scores: torch.Tensor, count: int, sample: bool, keys: RngKeys) -> torch.Tensor:
        """The best `count` of scores float32 [n, m], or distinct ones sampled by their softmax: int64 [n, count]."""


class TorchRng:
    """Samples with a generator of torch, in the order of transformers."""

    def __init__(self, generator: torch.Generator | None = None):
        self.generator = generator

    def choose(self, scores: torch.Tensor, count: int, sample: bool, keys: RngKeys) -> torch.Tensor:
        """As `Rng.choose`; the keys are not used."""
        return ops.select(scores, count, sample, self.generator)


class KeyedRng:
    """Samples that depend on the keys alone: a request gets the same tokens in any batch."""

    def choose(self, scores: torch.Tensor, count: int, sample: bool, keys: RngKeys) -> torch.Tensor:
        """As `Rng.choose`; several tokens are the largest after Gumbel noise (Kool et al. 2019, arXiv 1903.06059)."""
        if not sample:
            return ops.select(scores, count, False, None)
        if count > 1:
            return ops.perturb(scores, *keys).topk(count).indices
        ones = torch.ones(len(scores), dtype=torch.float32, device=scores.device)
        tokens, _ = ops.sample(scores, *keys, ones, torch.zeros_like(keys.step), ones, torch.zeros_like(ones))
        return tokens[:, None]
