"""linear: y = act(x W^T + b), the only matrix product that layers call.

Shapes: x [M, K], W [N, K] (checkpoint layout), b [N], y [M, N]. Bytes: (M K + N K + M N) * itemsize; FLOPs: 2 M N K.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .layernorm_gelu import activation_function


def linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """x [.., K] @ weight [N, K]^T + bias [N], then the named activation; dtype of x."""
    y = F.linear(x, weight, bias)
    return y if activation is None else activation_function(activation)(y)
