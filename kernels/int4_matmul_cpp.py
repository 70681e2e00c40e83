"""int4_matmul of the C++ extension, for a CPU in float32; kernels/int4_matmul.py has the definition.

Up to CPU_ROWS rows of x, `csrc/int4_cpu.cpp` reads the packed weight once and multiplies. Above, it only unpacks, a
block of rows of the weight at a time, and torch multiplies; the whole weight is never in memory as floats. With `int8`,
`csrc/int4_int8_cpu.cpp` multiplies any number of rows. `bench/int4.py` measures both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from . import cpp
from .int4_matmul import dequantize_reference, round_rows

CPU_ROWS = 128  # up to so many rows of x int4_matmul_cpp multiplies itself; above, torch is faster (bench/int4.py)
CPU_ELEMENTS = 2**19  # of a weight, unpacked at a time for torch: 2 MB

# packed, scale, zero and bias of a layer.
Weight = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]


def dequantize_cpp(
    packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, codebook: torch.Tensor | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """As dequantize_reference, bit for bit; into `out` where it is not None, since new memory is slow.

    Args:
        packed, scale, zero, codebook: contiguous; all but packed float32.

    Raises:
        RuntimeError: any other argument.
    """
    out = scale.new_empty(packed.shape[0], 2 * packed.shape[1]) if out is None else out
    cpp.int4_dequantize(packed, scale, zero, codebook, out)
    return out


def int4_matmul_cpp(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    codebook: torch.Tensor | None = None,
    int8: bool = False,
) -> torch.Tensor:
    """As int4_matmul_reference, where why_not_int4_matmul_cpp is None and the extension is loaded.

    Where scales are not float32, weights are rounded as the definition rounds them, by torch, a block of rows at a
    time. With int8 and float32 scales each row of the result is bit-identical for any number of rows.

    Raises:
        RuntimeError: shapes that do not fit.
    """
    x, packed, scale, bias = _contiguous(x), _contiguous(packed), _contiguous(scale), _contiguous(bias, torch.float32)
    is_float32 = scale.dtype == torch.float32
    if int8 and is_float32:
        return _int4_matmul(x, packed, scale, _contiguous(zero, torch.float32), bias, None, True)
    x = round_rows(x) if int8 else x
    if is_float32:
        codebook = _contiguous(codebook, torch.float32)
        zero = None if codebook is not None else _contiguous(zero, torch.float32)
        if x.shape[0] <= CPU_ROWS:
            return _int4_matmul(x, packed, scale, zero, bias, codebook, False)
    for name, tensor in (("scale", scale), ("zero", zero), ("bias", bias)):
        if tensor is not None and len(tensor) != len(packed):
            raise RuntimeError(f"{name} has {len(tensor)} rows, the weight {len(packed)}")
    return _unpacked_matmuls(x, [(packed, scale, zero, bias)], codebook)


def _int4_matmul(x: torch.Tensor, packed: torch.Tensor, *rest: Any) -> torch.Tensor:
    out = x.new_empty(len(x), len(packed))
    cpp.int4_matmul(x, packed, *rest, out)
    return out


def int4_matmuls_cpp(
    x: torch.Tensor, weights: Sequence[Weight], codebook: torch.Tensor | None, int8: bool
) -> torch.Tensor:
    """Products of x [M, K] with weights [N, K], side by side: [M, len(weights) * N].

    For arguments where why_not_int4_matmuls_cpp is None. Bit-identical to int4_matmul_cpp of each weight.
    """
    if not int8 and x.shape[0] > CPU_ROWS:
        return _unpacked_matmuls(x, weights, codebook)
    packed, scales, zeros, biases = ([] if parts[0] is None else parts for parts in zip(*weights, strict=True))
    if codebook is not None:
        zeros = []
    out = x.new_empty(len(x), len(packed) * len(packed[0]))
    cpp.int4_matmuls(x, packed, scales, zeros, biases, codebook, int8, out)
    return out


def _unpacked_matmuls(x: torch.Tensor, weights: Sequence[Weight], codebook: torch.Tensor | None) -> torch.Tensor:
    """Products side by side: unpack a block of rows, which may span several weights, and multiply it by torch."""
    features, columns = len(weights[0][0]), x.shape[-1]
    total, is_float32 = len(weights) * features, weights[0][1].dtype == torch.float32
    bias = None if weights[0][3] is None else torch.cat([weight[3] for weight in weights])
    block = min(total, max(1, CPU_ELEMENTS // max(1, columns)))
    y, unpacked = x.new_empty(x.shape[0], total), x.new_empty(block, columns)
    for first in range(0, total, max(1, block)):
        last = min(total, first + block)
        for i in range(first // features, (last - 1) // features + 1):
            packed, scale, zero, _ = weights[i]
            start, end = max(first, i * features), min(last, (i + 1) * features)
            rows, out = slice(start - i * features, end - i * features), unpacked[start - first : end - first]
            part = packed[rows], scale[rows], None if zero is None else zero[rows], codebook
            if is_float32:
                dequantize_cpp(*part, out)
            else:
                out.copy_(dequantize_reference(*part))
        y[:, first:last] = F.linear(x, unpacked[: last - first], None if bias is None else bias[first:last])
    return y


def _contiguous(tensor: torch.Tensor | None, dtype: torch.dtype | None = None) -> torch.Tensor | None:
    """Contiguous, and of `dtype` where it is not None. Avoids calls without effect: a step has many such products."""
    if tensor is None:
        return None
    if dtype is not None and tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def why_not_int4_matmul_cpp(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    codebook: torch.Tensor | None = None,
    int8: bool = False,
) -> str | None:
    """Why int4_matmul_cpp does not take these arguments, as one clause; None where it does."""
    if int8 and codebook is not None:
        return "products of integers have no codebook"
    if x.dtype != torch.float32:
        return f"{x.dtype} is not float32"
    if x.dim() != 2 or scale.dim() != 2 or not scale.is_floating_point():
        return f"x has {x.dim()} dimensions, and scale is {scale.dtype} with {scale.dim()}"
    columns, groups = x.shape[1], scale.shape[1]
    if columns not in (32 * groups, 64 * groups, 128 * groups):
        return f"{columns} columns in {groups} groups: a group is 32, 64 or 128"
    tensors = (x, scale, zero, bias, codebook) if torch.is_grad_enabled() else ()
    if any(t is not None and t.requires_grad for t in tensors):
        return "a gradient is required, and it has no backward"
    return "autocast chooses other dtypes" if torch.is_autocast_enabled("cpu") else None


def why_not_int4_matmuls_cpp(
    x: torch.Tensor, weights: Sequence[Weight], codebook: torch.Tensor | None, int8: bool
) -> str | None:
    """Why int4_matmuls_cpp does not take these arguments, as one clause; None where it does.

    It takes what int4_matmul_cpp takes, where all tensors are contiguous, all but packed float32, and the weights agree
    in shape and in whether they have zero points and biases.
    """
    reason = why_not_int4_matmul_cpp(x, *weights[0], codebook, int8)
    if reason is not None:
        return reason
    for dtype, *tensors in zip((torch.uint8, *[torch.float32] * 3), *weights, strict=True):
        if len({None if t is None else t.shape for t in tensors}) > 1:
            return "the weights differ in shape, or only some have zero points or a bias"
        if any(t is not None and (t.dtype != dtype or not t.is_contiguous()) for t in tensors):
            return "a tensor of a weight is not contiguous or not float32"
    return None if x.is_contiguous() else "x is not contiguous"
