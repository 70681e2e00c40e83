"""The loss of a language model."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, items: int | torch.Tensor | None) -> torch.Tensor:
    """Mean over labels that are not -100, or their sum over `items`; logits [N, V], labels [N]."""
    if items is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / items
