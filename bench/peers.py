"""Kernels of other packages for the same operators; all packages are optional.

Each function returns a call without arguments, or raises: ImportError where the package is not installed, any other
error where it does not take the case. `bertgen bench ops` reports the reason instead of a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn

Call = Callable[[], torch.Tensor]


def varlen_attention(arguments: dict[str, Any]) -> Call:
    """torch's packed attention (FlashAttention 2)."""
    from torch.nn.attention.varlen import varlen_attn

    named = {}
    if arguments["causal"]:  # the name changed between releases
        by_window = "window_size" in inspect.signature(varlen_attn).parameters
        named = {"window_size": (-1, 0)} if by_window else {"is_causal": True}
    packed = [arguments[name] for name in ("q", "k", "v", "cu_q", "cu_k", "max_q", "max_k")]
    return lambda: varlen_attn(*packed, **named)


def liger_layer_norm(
    x: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float
) -> Call:
    """Liger's LayerNorm after torch's additions, which it does not fuse."""
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return lambda: LigerLayerNormFunction.apply(x + bias + residual, weight, shift, eps)


MAX_ROWS_CPU = 4  # rows up to which torch's slow 4-bit product on a CPU is run


def tinygemm(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> Call:
    """torch's 4-bit product of the same weights, repacked: it has even columns in the high nibbles."""
    if x.is_cpu:
        return _tinygemm_cpu(x, packed, scale)
    swapped = (packed << 4) | (packed >> 4)
    tiled = torch.ops.aten._convert_weight_to_int4pack(swapped.contiguous(), 8)
    scales = torch.stack((scale, torch.zeros_like(scale)), -1).transpose(0, 1).contiguous()
    group = 2 * packed.shape[1] // scale.shape[1]
    return lambda: torch.ops.aten._weight_int4pack_mm(x, tiled, group, scales)


def _tinygemm_cpu(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> Call:
    if len(x) > MAX_ROWS_CPU:
        raise ValueError(f"so slow on a CPU that it is asked for at most {MAX_ROWS_CPU} rows")
    nibbles = torch.stack((packed & 15, packed >> 4), -1).view(len(packed), -1).int()
    tiled = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1)
    scales = torch.stack((scale, torch.zeros_like(scale)), -1).transpose(0, 1).contiguous()
    group = 2 * packed.shape[1] // scale.shape[1]
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, tiled, group, scales)


def bitsandbytes_nf4(x: torch.Tensor, weight: torch.Tensor, group: int) -> Call:
    """bitsandbytes' product with NF4 weights, which it rounds itself."""
    import bitsandbytes

    packed, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=group, quant_type="nf4")
    return lambda: bitsandbytes.matmul_4bit(x, packed.t(), quant_state=state)


def torchao_int4(x: torch.Tensor, weight: torch.Tensor, group: int) -> Call:
    """torchao's int4 linear layer with weights, which it rounds itself."""
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    model = nn.Sequential(layer)
    quantize_(model, Int4WeightOnlyConfig(group_size=group, int4_packing_format="tile_packed_to_4d"))
    return lambda: model(x)


def gemlite_int4(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> Call:
    """gemlite's product of the same weights, after its autotuning."""
    from gemlite.core import DType, GemLiteLinear

    (features, half), groups = packed.shape, scale.shape[1]
    kind = {torch.float16: DType.FP16, torch.bfloat16: DType.BF16}[x.dtype]
    layer = GemLiteLinear(4, 2 * half // groups, 2 * half, features, input_dtype=kind, output_dtype=kind)
    nibbles = torch.stack((packed & 15, packed >> 4), -1).view(features, -1)
    layer.pack(nibbles, scale, torch.full_like(scale, 8), None)
    return lambda: layer(x)
