"""add_layer_norm and gelu_layer_norm by the C++ extension, of x in float32 in inference on a CPU.

The code is csrc/layernorm_gelu_cpu.cpp, which the decoder's step in one call uses, too. Arguments, shapes and results
are those of `add_layer_norm_reference` and `gelu_layer_norm_reference`. A row does not depend on the others.
"""

from __future__ import annotations

import torch

from . import cpp
from .activations import FUSED_ACTIVATIONS, KERNEL_ACTIVATIONS
from .linear import DTYPES
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
    y = torch.empty_like(x)
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
    return _why_not(x, residual, weight, shift)


def gelu_layer_norm_cpp(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> torch.Tensor:
    """As gelu_layer_norm_reference, where why_not_gelu_layer_norm_cpp is None and the extension is loaded."""
    y = torch.empty_like(x)
    cpp.gelu_layer_norm(x, weight, shift, eps, y)
    return y


def why_not_gelu_layer_norm_cpp(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> str | None:
    """Why gelu_layer_norm_cpp does not take these arguments, as one clause; None where it does."""
    if activation not in FUSED_ACTIVATIONS or KERNEL_ACTIVATIONS[activation] != "gelu":
        return f"its activation is gelu, not {activation}"
    return _why_not(x, None, weight, shift)


def _why_not(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, shift: torch.Tensor) -> str | None:
    # The registry has checked the device and the type of x. Few checks: a row takes no longer than they do.
    if x.dtype is not torch.float32 or x.dim() != 2 or not x.is_contiguous():
        return f"x is {x.dtype} {tuple(x.shape)}, and not contiguous rows in float32"
    if weight.dtype not in DTYPES or shift.dtype != weight.dtype:
        return f"the weight is {weight.dtype}, the shift {shift.dtype}, and not both float32, bfloat16 or float16"
    if residual is not None and residual.dtype is not torch.float32:
        return f"the residual is {residual.dtype}, not float32"
    others = (weight, shift) if residual is None else (weight, shift, residual)
    for t in others:
        if not (t.is_contiguous() and is_plain_tensor(t)):
            return f"a {type(t).__name__} is no contiguous plain tensor"
    if residual is not None and residual.shape != x.shape:
        return f"x is {tuple(x.shape)}, residual {tuple(residual.shape)}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses other dtypes"
    return why_not_gradients(x, *others)
