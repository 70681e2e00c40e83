"""The one registry of operators: name -> backends, the choice between them, and why.

A layer calls `ops.<name>(...)`. The call goes straight to the chosen backend's function. `explain()` says which
backend each operator takes on a device and why the others do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .kernels.attention import attention_reference, masked_attention_reference
from .kernels.decode_attention import cross_decode_attention_reference, decode_attention_reference
from .kernels.int4_matmul import int4_matmul_reference
from .kernels.layernorm_gelu import (
    add_layer_norm_reference,
    bias_gelu_reference,
    gelu_layer_norm_reference,
    layer_norm_gelu_reference,
)
from .kernels.linear import ONEDNN_ELEMENTS, linear_onednn, linear_reference, onednn_takes
from .kernels.select import select_reference, warp_reference


@dataclass(frozen=True)
class Op:
    """One operator: what it computes, its reference in plain torch, and what else honours the same contract, when."""

    name: str
    meaning: str
    reference: Callable[..., Any]
    cpu: str | None = None


OPS = {
    op.name: op
    for op in (
        Op(
            "linear",
            "x W^T + b, with an activation as epilogue",
            linear_reference,
            cpu=f"onednn in float32 inference with weights of at least {ONEDNN_ELEMENTS} elements, else reference",
        ),
        Op("attention", "packed self, cross and causal attention", attention_reference),
        Op("masked_attention", "a padded batch under any mask, with its weights", masked_attention_reference),
        Op("decode_attention", "one query per row over slot-table keys and values", decode_attention_reference),
        Op("cross_decode_attention", "the rows of a source over its shared keys", cross_decode_attention_reference),
        Op("add_layer_norm", "LayerNorm(dropout(x + bias) + residual)", add_layer_norm_reference),
        Op("bias_gelu", "gelu(x + bias)", bias_gelu_reference),
        Op("layer_norm_gelu", "gelu(LayerNorm(x))", layer_norm_gelu_reference),
        Op("gelu_layer_norm", "LayerNorm(gelu(x))", gelu_layer_norm_reference),
        Op("int4_matmul", "x dequant(W)^T + b, 4-bit groups or codebooks", int4_matmul_reference),
        Op("warp", "temperature and the limits of sampling", warp_reference),
        Op("select", "best or drawn tokens of each row", select_reference),
    )
}

attention = attention_reference
masked_attention = masked_attention_reference
decode_attention = decode_attention_reference
cross_decode_attention = cross_decode_attention_reference
add_layer_norm = add_layer_norm_reference
bias_gelu = bias_gelu_reference
layer_norm_gelu = layer_norm_gelu_reference
gelu_layer_norm = gelu_layer_norm_reference
int4_matmul = int4_matmul_reference
warp = warp_reference
select = select_reference


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    """x [M, K] @ weight [N, K]^T + bias [N], then the named activation, by the backend that suits the arguments."""
    chosen = linear_onednn if onednn_takes(x, weight) else linear_reference
    return chosen(x, weight, bias, activation)


def explain(device: str = "cpu") -> list[tuple[str, str]]:
    """For each operator: its name, and which backend it takes on `device` ("cpu" or "cuda") and why."""
    only = f"reference: plain torch, the only backend for {device} so far"
    return [(op.name, (op.cpu if device == "cpu" else None) or only) for op in OPS.values()]
