"""From logits to an update: loss, schedule, parameter groups, averaging."""

from __future__ import annotations

import math

import torch
from torch import nn

from .options import TrainingConfig


class _SmoothedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy against (1 - e) * one-hot + e / V, computed in the memory of the logits.

    loss = lse - (1 - e) * logit[target] - e * mean(logits); its gradient is softmax - (1 - e) * one-hot - e / V.
    The logits of a batch are by far its largest tensor: a plain cross_entropy writes four more of that size.
    """

    @staticmethod
    def forward(
        ctx, logits: torch.Tensor, targets: torch.Tensor, smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        values = logits.float()  # the logits themselves where they are float32 already
        values -= values.amax(dim=-1, keepdim=True)
        chosen = values.gather(1, targets[:, None]).squeeze(1)
        mean = values.mean(dim=-1) if smoothing else chosen
        total = values.exp_().sum(dim=-1)
        likelihood = (total.log() - chosen).sum()
        ctx.mark_dirty(logits)
        ctx.mark_non_differentiable(likelihood)
        ctx.save_for_backward(values, total, targets)
        ctx.smoothing, ctx.dtype = smoothing, logits.dtype
        return likelihood + smoothing * (chosen - mean).sum(), likelihood, logits

    @staticmethod
    def backward(ctx, scale: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient, total, targets = ctx.saved_tensors
        gradient.mul_((scale / total)[:, None])
        if ctx.smoothing:
            gradient -= scale * ctx.smoothing / gradient.shape[1]
        gradient.scatter_add_(1, targets[:, None], (scale * (ctx.smoothing - 1)).expand(len(targets), 1))
        return gradient.to(ctx.dtype), None, None


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed smoothed loss, which has a gradient, and the summed loss without smoothing, which has none.

    Args:
        logits: [N, V], any float type; computed in float32. Overwritten.
        targets: int64 [N].
        smoothing: probability given to the uniform distribution, in [0, 1).
    """
    return _SmoothedCrossEntropy.apply(logits, targets, smoothing)[:2]


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the rate of update number `step` (from 1): a linear rise to the peak, then the schedule's fall."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if step < warmup:
        return peak * step / warmup
    if config.schedule == "inverse-sqrt":
        return peak * math.sqrt(warmup / step)
    left = max(0.0, (config.decay_steps - step) / max(1, config.decay_steps - warmup))
    return peak * (left if config.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: biases and LayerNorm weights are vectors."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-9, fused=True)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move `average` towards `model`; the decay rises with the steps so that the random start is soon forgotten."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, weight)
