"""linear: y = act(x W^T + b), the only matrix product that layers call.

Shapes: x [M, K], W [N, K] (checkpoint layout), b [N], y [M, N]. Bytes: (M K + N K + M N) * itemsize; FLOPs: 2 M N K.

In float32 on a CPU the time of a product of few rows is at best that of reading the weight. `csrc/linear_cpu.cpp` reads
it once, as it lies. There that is faster than the library behind `F.linear`, and than oneDNN (which torch carries) even
with weights that oneDNN has packed, up to some ten rows. For many rows oneDNN is the fastest, with the weight as it
lies. The figures are those of `bertgen bench ops --op linear`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .activations import activation_function
from .plain import is_followed, is_plain_tensor


def linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """x [.., K] @ weight [N, K]^T + bias [N], then the named activation; dtype of x."""
    y = F.linear(x, weight, bias)
    return y if activation is None else activation_function(activation)(y)


ONEDNN_ELEMENTS = 2**18  # of all weights of an input; for fewer the calls cost more than they save


def linear_onednn(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """As linear_reference, for what onednn_takes: no gradient."""
    y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "none")
    return y if activation is None else activation_function(activation)(y)


def onednn_takes(x: torch.Tensor, weight: torch.Tensor, others: int = 0) -> bool:
    """Whether linear_onednn can and should do this product: inference in float32 on a CPU with a large weight.

    Args:
        others: weights of this size that the same x is multiplied with.
    """
    return _is_inference_on_cpu(x, weight) and (1 + others) * weight.numel() >= ONEDNN_ELEMENTS and _has_onednn()


def _is_inference_on_cpu(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.numel() > 0
        and x.is_contiguous()
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and is_plain_tensor(x)
        and is_plain_tensor(weight)
        and not is_followed()
    )


def linears_cpp(x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> torch.Tensor:
    """x [M, K] @ weight [N, K]^T + bias [N] of each, side by side: [M, len(weights) * N], for what linears_cpp_takes.

    To the last bit what linear_cpp computes of each; only the threads' walk is one along all of them.
    """
    return torch.ops.bertgen_C.linears.default(x, weights, biases)


def linears_cpp_takes(x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> bool:
    """Whether linears_cpp can and should do these products: as cpp_takes, of one shape, with a bias each or none."""
    first, *others = weights
    return (
        x.dim() == 2
        and cpp_takes(x, first)
        and all(w.shape == first.shape and w.dtype == first.dtype and w.is_contiguous() for w in others)
        and all(map(is_plain_tensor, others))
        and len({b is None for b in biases}) == 1
        and all(b is None or (b.is_contiguous() and b.dtype == first.dtype and is_plain_tensor(b)) for b in biases)
    )


def linear_cpp(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """As linear_reference, for what cpp_takes, where the extension is: no gradient.

    A row of the result does not depend on how many there are, to the last bit.
    """
    rows = x if x.dim() == 2 else x.view(-1, x.shape[-1])
    y = torch.ops.bertgen_C.linear.default(rows, weight, None if bias is None else bias.contiguous())
    y = y if x.dim() == 2 else y.view(*x.shape[:-1], -1)
    return y if activation is None else activation_function(activation)(y)


def cpp_takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether linear_cpp can and should do this product: inference in float32 on a CPU of at most `few_rows()` rows."""
    return _is_inference_on_cpu(x, weight) and x.numel() <= few_rows() * weight.shape[-1]


@functools.cache
def few_rows() -> int:
    """Up to how many rows linear_cpp is faster than oneDNN, by the vectors of the processor.

    64 was measured with AVX2, and with AVX-512 on a processor that computes with 256 bits at a time (Zen 4); on those
    with wider units oneDNN may be faster from fewer rows on. Elsewhere nothing was measured.
    """
    return {"AVX2": 64, "AVX512": 64}.get(torch.backends.cpu.get_cpu_capability(), 8)


@functools.cache
def _has_onednn() -> bool:
    """The operator is torch's own but not public: it may be missing from a build, or go."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
