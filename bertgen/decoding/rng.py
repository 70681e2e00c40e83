"""Draws: where the random numbers of a search come from."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from .. import ops


class Keys(NamedTuple):
    """What names a draw, int64 [n] each: the seed, the number of the request (and its row), the step."""

    seed: torch.Tensor
    number: torch.Tensor
    step: torch.Tensor


class Draws(Protocol):
    """Chooses among scores."""

    def choose(self, scores: torch.Tensor, count: int, sample: bool, keys: Keys) -> torch.Tensor:
        """int64 [n, count], the best of scores float32 [n, m], or different ones drawn by their softmax."""


class TorchDraws:
    """Draws from one of torch's generators, in the order of transformers."""

    def __init__(self, generator: torch.Generator | None = None):
        self.generator = generator

    def choose(self, scores: torch.Tensor, count: int, sample: bool, keys: Keys) -> torch.Tensor:
        """As `Draws.choose`; the keys are not looked at."""
        return ops.select(scores, count, sample, self.generator)


class KeyedDraws:
    """Draws that depend on their keys alone: whatever else is in the batch, a request draws the same tokens."""

    def choose(self, scores: torch.Tensor, count: int, sample: bool, keys: Keys) -> torch.Tensor:
        """As `Draws.choose`; several are the largest behind Gumbel noise (Kool et al. 2019, arXiv 1903.06059)."""
        if not sample:
            return ops.select(scores, count, False, None)
        if count > 1:
            return ops.perturb(scores, *keys).topk(count).indices
        ones = torch.ones(len(scores), dtype=torch.float32, device=scores.device)
        tokens, _ = ops.sample(scores, *keys, ones, torch.zeros_like(keys.step), ones, torch.zeros_like(ones))
        return tokens[:, None]
