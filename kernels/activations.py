"""Activations by name: the torch functions, and the Triton functions that kernels call on float32 tiles.

"gelu" is the exact form with erf (Hendrycks and Gimpel 2016, arXiv 1606.08415); the tanh forms have their own names.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .language import tl, triton


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
    """The torch function of a name in ACTIVATIONS; KeyError for any other name."""
    return _ACTIVATIONS[name]


# Name -> the ACTIVATION constant of kernels; several names mean the same function.
KERNEL_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_10": "gelu_10",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "hardswish": "hardswish",
    "laplace": "laplace",
    "leaky_relu": "leaky_relu",
    "linear": "linear",
    "mish": "mish",
    "relu": "relu",
    "relu2": "relu2",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
}
FUSED_ACTIVATIONS = tuple(KERNEL_ACTIVATIONS)


@triton.jit
def half_erf(x):
    """erf(|x| / sqrt(2)) / 2, so that the normal CDF is 1/2 + sign(x) * half_erf(x); largest error 4.1e-8.

    -log2 of the tail probability is |x| times a polynomial of degree 9 (a minimax fit), followed by one exp2: 13
    instructions, where `tl.erf` takes 35. The result is exactly 1/2 where the tail underflows. The error holds over all
    floats with a correctly rounded exp2 (tests/kernels/test_activations.py); the exp2 of a GPU, with a
    relative error of 2^-22.5, adds at most 5.5e-8.
    """
    a = tl.abs(x)
    p = 5.966569460724713e-08 * a - 1.4468751032836735e-06
    p = p * a + 1.5609317415510304e-05
    p = p * a - 9.60515026235953e-05
    p = p * a + 0.0003273835754953325
    p = p * a - 6.756529910489917e-05
    p = p * a - 0.006893498357385397
    p = p * a + 0.05242001637816429
    p = p * a + 0.4592241942882538
    p = p * a + 1.1511040925979614
    return 0.5 - 0.5 * tl.exp2(-p * a)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of a float32 tile; ACTIVATION is a value of KERNEL_ACTIVATIONS."""
    if ACTIVATION == "gelu":
        y = 0.5 * x + tl.abs(x) * half_erf(x)
    elif ACTIVATION == "gelu_10":
        gelu = 0.5 * x + tl.abs(x) * half_erf(x)
        y = tl.where(gelu > 10, 10.0, gelu)  # GELU is never below -0.17
    elif ACTIVATION == "gelu_tanh":
        y = x * tl.sigmoid(x * (1.5957691216057308 + 0.07135481282553484 * x * x))
    elif ACTIVATION == "quick_gelu":
        y = x * tl.sigmoid(1.702 * x)
    elif ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "sigmoid":
        y = tl.sigmoid(x)
    elif ACTIVATION == "mish":
        e = tl.exp(tl.minimum(x, 20.0))
        e = e * (e + 2)
        y = tl.where(x > 20, x, x * (e / (e + 2)))
    elif ACTIVATION == "laplace":
        z = (x - 0.7071067811865476) * 3.5449077018110318
        y = tl.where(z < 0, 0.5 - half_erf(z), 0.5 + half_erf(z))
    elif ACTIVATION == "hardswish":
        y = tl.where(x <= -3, x * 0.0, tl.where(x >= 3, x, x * (x + 3) * 0.16666666666666666))
    elif ACTIVATION == "leaky_relu":
        y = tl.where(x < 0, 0.01 * x, x)
    elif ACTIVATION == "relu":
        y = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "relu2":
        y = tl.where(x < 0, 0.0, x * x)
    elif ACTIVATION == "relu6":
        y = tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    else:
        tl.static_assert(ACTIVATION == "linear")
        y = x
    return y


@triton.jit
def _sigmoid_and_slope(x):
    """sigmoid(x) and its derivative, both accurate in both tails."""
    e = tl.exp(-tl.abs(x))
    r = 1 / (1 + e)
    return tl.where(x < 0, e * r, r), e * r * r


@triton.jit
def activation_grad(x, ACTIVATION: tl.constexpr):
    """The derivative of `activate`; at kinks, the one-sided derivative that torch takes."""
    if ACTIVATION == "gelu" or ACTIVATION == "gelu_10":
        h = half_erf(x)
        y = tl.where(x < 0, 0.5 - h, 0.5 + h) + x * 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)
        if ACTIVATION == "gelu_10":
            y = tl.where(0.5 * x + tl.abs(x) * h > 10, 0.0, y)
    elif ACTIVATION == "gelu_tanh":
        s, d = _sigmoid_and_slope(x * (1.5957691216057308 + 0.07135481282553484 * x * x))
        y = s + x * d * (1.5957691216057308 + 0.21406443847660452 * x * x)
    elif ACTIVATION == "quick_gelu":
        s, d = _sigmoid_and_slope(1.702 * x)
        y = s + 1.702 * x * d
    elif ACTIVATION == "silu":
        s, d = _sigmoid_and_slope(x)
        y = s + x * d
    elif ACTIVATION == "sigmoid":
        _, y = _sigmoid_and_slope(x)
    elif ACTIVATION == "mish":
        e = tl.exp(tl.minimum(x, 20.0))
        e = e * (e + 2)
        t = e / (e + 2)
        s, _ = _sigmoid_and_slope(x)
        y = tl.where(x > 20, 1.0, t + x * s * (1 - t * t))
    elif ACTIVATION == "laplace":
        z = (x - 0.7071067811865476) * 3.5449077018110318
        y = 1.4142135623730951 * tl.exp2(-0.7213475204444817 * z * z)
    elif ACTIVATION == "hardswish":
        y = tl.where(x <= -3, 0.0, tl.where(x >= 3, 1.0, x * 0.3333333333333333 + 0.5))
    elif ACTIVATION == "leaky_relu":
        y = tl.where(x > 0, 1.0, 0.01)
    elif ACTIVATION == "relu":
        y = tl.where(x > 0, 1.0, 0.0)
    elif ACTIVATION == "relu2":
        y = tl.where(x > 0, 2 * x, 0.0)
    elif ACTIVATION == "relu6":
        y = tl.where((x > 0) & (x < 6), 1.0, 0.0)
    else:
        tl.static_assert(ACTIVATION == "linear")
        y = x * 0.0 + 1.0
    return y
