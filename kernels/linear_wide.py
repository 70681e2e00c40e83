"""linear of many rows in 16 bits on CPUs that cannot multiply them: blocks of the weight are widened to float32.

Where oneDNN has no instructions for a dtype of 16 bits, torch multiplies with a loop of its own: 3072 x 768 with 1024
rows takes 7 times as long in bfloat16 as by this way with AVX2, and 1.8 times with 16 rows; with less than 8 rows it is
the faster one. Sums, bias and activation are in float32, and the result is rounded once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .activations import activation_function
from .linear import onednn_multiplies, why_not_cpu_inference

ROWS = 8  # at least; to widen the weight takes as long as to multiply it with some rows
BLOCK = 2**22  # elements of the weight that are widened at a time; fewer were slower from 256 rows on


def linear_wide(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """As linear_reference, where why_not_linear_wide is None; without gradient."""
    rows, outputs = x.reshape(-1, x.shape[-1]).float(), len(weight)
    y = torch.empty((len(rows), outputs), dtype=x.dtype, device=x.device)
    step = max(1, BLOCK // max(1, weight.shape[1]))
    for first in range(0, outputs, step):
        block = slice(first, first + step)
        part = F.linear(rows, weight[block].float(), None if bias is None else bias[block].float())
        y[:, block] = part if activation is None else activation_function(activation)(part)
    return y.view(*x.shape[:-1], outputs)


def why_not_linear_wide(x: torch.Tensor, weight: torch.Tensor) -> str | None:
    """Why linear_wide cannot or should not compute this product, as one clause; None where it should."""
    if x.dtype not in (torch.bfloat16, torch.float16) or weight.dtype != x.dtype:
        return "x and the weight are not both bfloat16 or both float16"
    reason = why_not_cpu_inference(x, weight)
    if reason is not None:
        return reason
    if x.numel() < ROWS * x.shape[-1]:
        return "x has few rows"
    return f"oneDNN multiplies {x.dtype} on this processor" if onednn_multiplies(x.dtype) else None
