"""LayerNorm and GELU with their neighbours, the element-wise half of a post-LN transformer layer.

    add_layer_norm:  y = LayerNorm(dropout(x + bias) + residual) * weight + shift      (x, residual [M, N])
    bias_gelu:       y = act(x + bias)
    layer_norm_gelu: y = act(LayerNorm(x))          gelu_layer_norm: y = LayerNorm(act(x))

LayerNorm: Ba et al. 2016, arXiv 1607.06450; statistics and eps in float32. GELU: Hendrycks and Gimpel 2016,
arXiv 1606.08415; "gelu" is the exact form with erf, the tanh forms go by their own names.
All are memory-bound: (2 or 3) * M * N * itemsize bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_10": lambda x: F.gelu(x).clamp(-10, 10),
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "hardswish": F.hardswish,
    "laplace": lambda x: 0.5 * (1 + torch.erf((x - math.sqrt(0.5)) / (math.sqrt(0.25 / math.pi) * math.sqrt(2)))),
    "leaky_relu": F.leaky_relu,
    "linear": lambda x: x,
    "mish": F.mish,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(),
    "tanh": torch.tanh,
}
ACTIVATIONS = tuple(_ACTIVATIONS)


def activation_function(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of an activation name of ACTIVATIONS; KeyError for any other."""
    return _ACTIVATIONS[name]


def add_layer_norm_reference(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """LayerNorm(dropout(x + bias) + residual); x and residual [M, N], bias, weight and shift [N]; dtype of x."""
    if bias is not None:
        x = x + bias
    if dropout:
        x = F.dropout(x, dropout)
    if residual is not None:
        x = x + residual
    return F.layer_norm(x, x.shape[-1:], weight, shift, eps)


def bias_gelu_reference(x: torch.Tensor, bias: torch.Tensor | None, activation: str = "gelu") -> torch.Tensor:
    """act(x + bias); x [M, N], bias [N]."""
    return activation_function(activation)(x if bias is None else x + bias)


def layer_norm_gelu_reference(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> torch.Tensor:
    """act(LayerNorm(x)); x [M, N], weight and shift [N]."""
    return activation_function(activation)(F.layer_norm(x, x.shape[-1:], weight, shift, eps))


def gelu_layer_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> torch.Tensor:
    """LayerNorm(act(x)), the order of BERT's own prediction head; shapes as layer_norm_gelu_reference."""
    return F.layer_norm(activation_function(activation)(x), x.shape[-1:], weight, shift, eps)
