"""linear: y = act(x W^T + b), the only matrix product that layers call.

Shapes: x [M, K], W [N, K] (checkpoint layout), b [N], y [M, N]. Bytes: (M K + N K + M N) * itemsize; FLOPs: 2 M N K.

On a CPU a product of few rows takes at least the time of reading the weight. `csrc/linear_cpu.cpp` reads it once, in
the checkpoint's layout and dtype (float32, bfloat16 or float16), with sums in float32. Up to some ten rows that is
faster than `F.linear`, and than oneDNN (which torch includes) even with weights that oneDNN has packed. For many rows
in float32 oneDNN is the fastest, with the weight in the checkpoint's layout. `bertgen bench ops --op linear` prints the
figures.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from . import cpp
from .activations import activation_function
from .plain import is_intercepted, is_plain_tensor


def linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """x [.., K] @ weight [N, K]^T + bias [N], then the named activation; dtype of x."""
    y = F.linear(x, weight, bias)
    return y if activation is None else activation_function(activation)(y)


def why_not_cpu_inference(x: torch.Tensor, weight: torch.Tensor) -> str | None:
    """Why a product is not inference on a CPU with contiguous plain tensors, as one clause; None where it is."""
    if not x.is_cpu:
        return "x is not on a CPU"
    if torch.is_grad_enabled():
        return "gradients are enabled"
    if torch.compiler.is_compiling():
        return "torch.compile traces the call"
    if x.numel() == 0:
        return "x is empty"
    if not (x.is_contiguous() and weight.is_contiguous()):
        return "x or the weight is not contiguous"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses other dtypes"
    if not (is_plain_tensor(x) and is_plain_tensor(weight)):
        return "x or the weight is no plain tensor"
    return "operators are intercepted" if is_intercepted() else None


# oneDNN

ONEDNN_ELEMENTS = 2**18  # of all weights of an input; below, the overhead of the call exceeds what it saves


def linear_onednn(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """As linear_reference, where why_not_linear_onednn is None; without gradient."""
    y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "none")
    return y if activation is None else activation_function(activation)(y)


def why_not_linear_onednn(x: torch.Tensor, weight: torch.Tensor, others: int = 0) -> str | None:
    """Why linear_onednn cannot or should not compute this product, as one clause; None where it should.

    Args:
        others: number of further weights of this size that the same x is multiplied with.
    """
    if not x.dtype == weight.dtype == torch.float32:
        return "x and the weight are not both float32"
    reason = why_not_cpu_inference(x, weight)
    if reason is not None:
        return reason
    if (1 + others) * weight.numel() < ONEDNN_ELEMENTS:
        return "the weight is small"
    return None if has_onednn() else "this torch has no oneDNN"


@functools.cache
def has_onednn() -> bool:
    """Whether torch has its private oneDNN operator: a build or a later release may lack it."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether torch's products of a dtype of 16 bits are those of oneDNN on this processor."""
    names = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    operators = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and bool(getattr(operators, names[dtype], lambda: False)())


# The C++ extension

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of weights; float32 is the first


@functools.cache
def few_rows(dtype: torch.dtype = torch.float32) -> int:
    """Number of rows up to which linear_cpp is faster than what else multiplies, by the vector width of the processor.

    64 was measured with AVX2, and with AVX-512 on a processor that computes with 256 bits at a time (Zen 4). On
    processors with wider units oneDNN may be faster from fewer rows on. 8 is a guess for the others.

    In 16 bits that oneDNN does not multiply, 256 was measured with AVX2: decode steps and products on one thread are
    faster up to there. Products on two threads are up to a quarter slower from 128 rows on, but a row of them has the
    same bits in any batch.

    Args:
        dtype: of the weight.
    """
    rows = {"AVX2": 64, "AVX512": 64}.get(torch.backends.cpu.get_cpu_capability(), 8)
    return 4 * rows if dtype in DTYPES[1:] and not onednn_multiplies(dtype) else rows


def few_rows_by_dtype() -> str:
    """The numbers of few_rows, as text."""
    numbers: dict[int, list[str]] = {}
    for dtype in DTYPES:
        numbers.setdefault(few_rows(dtype), []).append(str(dtype)[6:])
    return " or ".join(f"{rows} rows ({', '.join(names)})" for rows, names in numbers.items())


def linear_cpp(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """As linear_reference, where why_not_linear_cpp is None and the extension is loaded; without gradient.

    x may be float32 beside a weight in 16 bits. Sums and the activation are in float32, and rounded once to the dtype
    of x. Each row of the result is bit-identical for any number of rows.
    """
    rows = x if x.dim() == 2 else x.view(-1, x.shape[-1])
    y = _new_float32(len(rows), len(weight))
    cpp.linear(as_float32(rows), weight, None if bias is None else bias.contiguous(), y)
    if activation is not None:
        y = activation_function(activation)(y)
    y = y if x.dim() == 2 else y.view(*x.shape[:-1], -1)
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _new_float32(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def as_float32(x: torch.Tensor) -> torch.Tensor:
    """x in float32 where it is in 16 bits."""
    return x.float() if x.dtype in DTYPES[1:] else x


def why_not_linear_cpp(x: torch.Tensor, weight: torch.Tensor) -> str | None:
    """Why linear_cpp cannot or should not compute this product, as one clause; None where it should."""
    if weight.dtype not in DTYPES:
        return f"the weight is {weight.dtype}, none of float32, bfloat16 and float16"
    if x.dtype != weight.dtype and x.dtype != torch.float32:
        return f"x is {x.dtype}, the weight {weight.dtype}"
    reason = why_not_cpu_inference(x, weight)
    if reason is None and x.numel() > few_rows(weight.dtype) * weight.shape[-1]:
        reason = "x has too many rows"
    return reason


def linears_cpp(x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> torch.Tensor:
    """x [M, K] @ weight [N, K]^T + bias [N] of each weight, side by side: [M, len(weights) * N].

    For arguments where why_not_linears_cpp is None. Bit-identical to linear_cpp of each weight; one call divides all
    the work among the threads.
    """
    y = _new_float32(len(x), len(weights) * len(weights[0]))
    cpp.linears(as_float32(x), weights, biases, y)
    return y if y.dtype == x.dtype else y.to(x.dtype)


def why_not_linears_cpp(
    x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> str | None:
    """Why linears_cpp cannot or should not compute these products, as one clause; None where it should."""
    if x.dim() != 2:
        return "x is not a matrix"
    first, *others = weights
    reason = why_not_linear_cpp(x, first)
    if reason is not None:
        return reason
    if not all(w.shape == first.shape and w.dtype == first.dtype and w.is_contiguous() for w in others):
        return "the weights differ in shape or dtype, or are not contiguous"
    if not all(map(is_plain_tensor, others)):
        return "a weight is no plain tensor"
    if len({b is None for b in biases}) > 1:
        return "only some weights have a bias"
    if not all(b is None or (b.is_contiguous() and b.dtype == first.dtype and is_plain_tensor(b)) for b in biases):
        return "a bias is not a contiguous plain tensor of the dtype of the weights"
    return None
