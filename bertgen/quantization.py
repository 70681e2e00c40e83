"""4-bit weights: from floating weights to the packed form that `int4_matmul` reads."""

from __future__ import annotations

import torch

from .errors import ConfigError, InputError

GROUP_SIZES = (32, 64, 128)


def quantize(
    weight: torch.Tensor, group_size: int = 64, symmetric: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Round a weight [N, K] to 4 bits in groups along K, each with the scale its largest value needs.

    Args:
        weight: [N, K], K a multiple of group_size.
        group_size: 32, 64 or 128 weights share a scale.
        symmetric: levels -8 .. 7 times the scale; otherwise 0 .. 15 less a zero point of the group's own, which wastes
            no level where a group's values lie to one side.

    Returns:
        packed uint8 [N, K / 2], scale [N, K / group_size], and zero of the same shape (None where symmetric), both in
        the dtype of the weight: the format of `kernels/int4_matmul.py`.

    Raises:
        ConfigError: another group size. InputError: a weight it does not divide, of another form, or not finite.
    """
    if group_size not in GROUP_SIZES:
        raise ConfigError(f"group_size must be one of {GROUP_SIZES}, got {group_size!r}")
    if weight.dim() != 2 or not weight.is_floating_point():
        raise InputError(f"expected a floating weight [N, K], got {weight.dtype} {tuple(weight.shape)}")
    rows, columns = weight.shape
    if columns % group_size:
        raise InputError(f"a weight of {columns} columns has no groups of {group_size}")
    if not bool(weight.isfinite().all()):
        raise InputError("the weight holds values that are not finite")
    groups = weight.detach().float().view(rows, -1, group_size)
    zero = None
    if symmetric:
        largest = groups.gather(2, groups.abs().argmax(2, keepdim=True)).squeeze(2)
        scale = (largest / -8).to(weight.dtype)  # the largest value becomes -8, the level that has no opposite
        levels = groups / _divisor(scale) + 8
    else:
        low, high = groups.amin(2).clamp(max=0.0), groups.amax(2).clamp(min=0.0)
        scale = ((high - low) / 15).to(weight.dtype)
        zero = (-low / _divisor(scale).squeeze(2)).round().clamp(0, 15).to(weight.dtype)
        levels = groups / _divisor(scale) + zero.float()[..., None]
    nibbles = levels.round().clamp(0, 15).to(torch.uint8).view(rows, -1)
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4, scale, zero


def _divisor(scale: torch.Tensor) -> torch.Tensor:
    """Scales [N, G] to divide by: a group of zeros has a scale of zero, and levels that do not matter."""
    return torch.where(scale == 0, 1.0, scale.float())[..., None]
