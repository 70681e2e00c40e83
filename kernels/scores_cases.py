"""Shared by the cases and variants of operators on scores of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from . import tuning
from .checks import Variant, arg_names

Arguments = dict[str, Any]
Fill = Callable[[torch.Tensor], torch.Tensor]
INF, NAN = math.inf, math.nan


def rows_apart(scores: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """The same scores, rows apart and the first `offset` elements into memory; between them nan, the best there is."""
    rows, vocabulary = scores.shape
    wide = torch.full((rows, vocabulary + 9 + offset), NAN, dtype=scores.dtype, device=scores.device)
    wide[:, offset : offset + vocabulary] = scores
    return wide[:, offset : offset + vocabulary]


def aligned(scores: torch.Tensor) -> torch.Tensor:
    """The same scores in rows of a multiple of 128."""
    rows, vocabulary = scores.shape
    wide = torch.full((rows, -(-vocabulary // 128) * 128), NAN, dtype=scores.dtype, device=scores.device)
    wide[:, :vocabulary] = scores
    return wide[:, :vocabulary]


def levels(scores: torch.Tensor) -> torch.Tensor:
    """Five different values, so that nearly all scores are ties."""
    return scores.round().clamp(-2, 2)


def zeros(scores: torch.Tensor) -> torch.Tensor:
    """0 and -0, which are equal."""
    return torch.where(scores > 0, 0.0, -0.0).to(scores.dtype)


def special(scores: torch.Tensor) -> torch.Tensor:
    """Rows with nan of both signs, with infinities, with nothing but -inf, and with one number among them."""
    scores[0, scores.shape[1] // 2 :: 5] = NAN
    scores[0, scores.shape[1] // 2] = scores[0, -1] = torch.tensor(NAN).copysign(torch.tensor(-1.0))
    scores[1, 3], scores[1, -2], scores[1, 5] = INF, INF, -INF
    scores[2] = -INF
    scores[3] = -INF
    scores[3, -3] = 2.0
    scores[4, 2], scores[4, -4] = NAN, INF
    return scores


def variant(
    name: str, kernel: Any, launch: tuning.Launch, types: dict[str, str], per: str | None = None, **constants: Any
) -> Variant:
    """Integers are multiples of 16 nowhere: counts of blocks and tiles."""
    constants = {**launch.tiles, **constants}
    signature = {name: kind for name, kind in types.items() if name in arg_names(kernel) and name not in constants}
    return Variant(
        name, kernel, signature, constants, launch.num_warps,
        unaligned=tuple(n for n, kind in signature.items() if kind == "i32"),
        per=None if per is None else (per, math.prod(launch.tiles.values())),
    )  # fmt: skip
