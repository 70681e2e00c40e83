"""add_layer_norm and gelu_layer_norm by the C++ extension, in float32 inference on a CPU.

The code is csrc/layernorm_gelu_cpu.cpp, which the decoder's step in one call uses, too. Arguments, shapes and results
are those of `add_layer_norm_reference` and `gelu_layer_norm_reference`. A row does not depend on the others.
"""

from __future__ import annotations

import torch

from . import cpp
from .activations import FUSED_ACTIVATIONS, KERNEL_ACTIVATIONS
from .plain import is_plain_tensor, why_not_gradients


def add_layer_norm_cpp(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """As add_layer_norm_reference, where why_not_add_layer_norm_cpp is None and the extension is loaded."""
    y = x.new_empty(x.shape)
    cpp.add_layer_norm(x, residual, weight, shift, eps, y)
    return y


def why_not_add_layer_norm_cpp(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    dropout: float = 0.0,
) -> str | None:
    """Why add_layer_norm_cpp does not take these arguments, as one clause; None where it does."""
    if dropout or bias is not None:
        return "it has no dropout and no bias"
    return _why_not(x, x if residual is None else residual, weight, shift)


def gelu_layer_norm_cpp(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> torch.Tensor:
    """As gelu_layer_norm_reference, where why_not_gelu_layer_norm_cpp is None and the extension is loaded."""
    y = x.new_empty(x.shape)
    cpp.gelu_layer_norm(x, weight, shift, eps, y)
    return y


def why_not_gelu_layer_norm_cpp(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> str | None:
    """Why gelu_layer_norm_cpp does not take these arguments, as one clause; None where it does."""
    if activation not in FUSED_ACTIVATIONS or KERNEL_ACTIVATIONS[activation] != "gelu":
        return f"its activation is gelu, not {activation}"
    return _why_not(x, x, weight, shift)


def _why_not(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor) -> str | None:
    tensors = (x, residual, weight, shift)
    for t in tensors:
        if t.dtype != torch.float32 or not (t.is_cpu and t.is_contiguous() and is_plain_tensor(t)):
            return f"a {type(t).__name__} of {t.dtype} on {t.device.type} is no contiguous plain float32 on a CPU"
    if x.dim() != 2 or residual.shape != x.shape or not weight.shape == shift.shape == x.shape[1:]:
        return f"the shapes are {', '.join(str(tuple(t.shape)) for t in tensors)}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses other dtypes"
    return why_not_gradients(*tensors)
