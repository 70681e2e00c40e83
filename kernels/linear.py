"""linear: y = act(x W^T + b), the only matrix product that layers call.

Shapes: x [M, K], W [N, K] (checkpoint layout), b [N], y [M, N]. Bytes: (M K + N K + M N) * itemsize; FLOPs: 2 M N K.

On a CPU, oneDNN (which torch carries) multiplies few rows by a large matrix faster than the library behind `F.linear`,
and takes the weight as it lies: `bench/linear.py` has the figures. From two rows on it is faster still with a second
copy of the weight in an order of its own, a packing. `bertgen/prepacked.py` says where packings live.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from .layernorm_gelu import activation_function


def linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """x [.., K] @ weight [N, K]^T + bias [N], then the named activation; dtype of x."""
    y = F.linear(x, weight, bias)
    return y if activation is None else activation_function(activation)(y)


ONEDNN_ELEMENTS = 2**18  # of a weight; for smaller ones the call costs more than it saves


def linear_onednn(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """As linear_reference, for what onednn_takes: no gradient."""
    y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "none")
    return y if activation is None else activation_function(activation)(y)


def onednn_takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether linear_onednn can and should do this product: inference in float32 on a CPU with a large weight."""
    return (
        weight.numel() >= ONEDNN_ELEMENTS
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and x.numel() > 0
        and x.is_contiguous()
        and weight.is_contiguous()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and _has_onednn()
    )


PACKED_ROWS = range(2, 129)  # for one row the packing is no faster than the weight as it lies, beyond nor than F.linear


def linear_packed(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """As linear_onednn, with what pack_weight made of the weight."""
    return linear_onednn(x, packed, bias, activation)


def pack_weight(weight: torch.Tensor) -> torch.Tensor | None:
    """A copy of a weight [N, K], of those that onednn_takes, in oneDNN's order; None where that cannot be had.

    It can be neither copied nor pickled nor read. One serves any number of rows: oneDNN asks how many there will be,
    and chooses the same order for 4 as for 256.
    """
    if not can_pack():
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight, 16)
    except (RuntimeError, MemoryError):  # the weight as it lies will do
        return None


def packed_bytes(packed: torch.Tensor) -> int:
    """Memory that a packing takes."""
    return torch.ops.mkldnn._nbytes(packed)


def can_pack() -> bool:
    """Whether this torch has the operators, none of them public."""
    return (
        _has_onednn() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_nbytes")
    )


@functools.cache
def _has_onednn() -> bool:
    """The operator is torch's own but not public: it may be missing from a build, or go."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
