"""Int4Linear, a linear layer with 4-bit weights, and the products that blocks compute of either kind of layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from .. import ops
from ..config import Int4Config
from ..config.quantization import GROUP_SIZES
from ..errors import InputError, UnsupportedError, quoted
from ..kernels.int4_matmul import dequantize_reference
from ..kernels.int4_matmul_cpp import Weight
from ..quantization.int4 import codebook, dequantize, quantize, why_not_int4_weight
from .inspection import is_plain
from .meta_init import init_empty_weights


class Int4Linear(nn.Module):
    """`nn.Linear` with 4-bit weights, for inference: a quarter of the bytes of 16-bit weights.

    Args:
        packed: uint8 [N, K / 2]. scale, zero: [N, K / group], zero None where levels are symmetric.
        bias: [N] or None.
        config: their format; None is int4, with the group size that follows from the shapes.

    Raises:
        InputError: tensors that do not fit together.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(
        self,
        packed: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        config: Int4Config | None = None,
    ):
        super().__init__()
        if not all(isinstance(t, torch.Tensor) and t.dim() == 2 for t in (packed, scale)):
            raise InputError(f"packed and scale must be tensors [N, ..], got {quoted(packed)} and {quoted(scale)}")
        if config is not None and not isinstance(config, Int4Config):
            raise InputError(f"config must be an Int4Config, got {quoted(config)}")
        rows, columns = packed.shape[0], 2 * packed.shape[-1]
        if config is None:
            group = columns // max(1, scale.shape[-1])
            config = Int4Config(group_size=group if group in GROUP_SIZES else 64, symmetric=zero is None)
        reason = why_not_int4_weight(rows, columns, packed, scale, zero, config)
        if reason is None and bias is not None and getattr(bias, "shape", None) != (rows,):
            reason = f"bias must be a tensor {(rows,)}, got {quoted(bias)}"
        if reason is not None:
            raise InputError(reason)
        self.out_features, self.in_features, self.config = rows, columns, config
        for name, tensor in (("packed", packed), ("scale", scale), ("zero", zero), ("bias", bias)):
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: Int4Config | None = None) -> Int4Linear:
        """Quantize the weights of a Linear to 4 bits; raises the errors of `bertgen.quantization.quantize`."""
        if isinstance(linear, Int4Linear):
            raise InputError(f"the layer is in 4 bits already ({linear.config.format})")
        if not isinstance(linear, nn.Linear):
            raise InputError(f"linear must be an nn.Linear, got {quoted(linear)}")
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(*quantize(linear.weight, config), bias=bias, config=config)

    def to_linear(self) -> nn.Linear:
        """A Linear with the dequantized weights, in the dtype of the scales."""
        with init_empty_weights():
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.weight = nn.Parameter(dequantize(self.packed, self.scale, self.zero, self.config))
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach())
        return linear

    def requires_grad_(self, requires_grad: bool = True) -> Int4Linear:
        if requires_grad:
            raise UnsupportedError("weights in 4 bits have no gradient; dequantize() makes them floats to train")
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., K] -> [.., N]"""
        return self.product(x)

    def product(self, x: torch.Tensor, activation: str | None = None) -> torch.Tensor:
        """The output without hooks, then the named activation: x [.., K] -> [.., N]."""
        if activation is None:
            return int4_linears(x, self.config, [self.parts])[0]
        y = int4_linears(x, self.config, [(self.packed, self.scale, self.zero, None)])[0]
        return ops.bias_gelu(y, self.bias, activation)

    @property
    def parts(self) -> Weight:
        """The tensors packed, scale, zero and bias, in the order of `ops.int4_matmul`."""
        return self.packed, self.scale, self.zero, self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, format={self.config.format}"


def int4_linears(x: torch.Tensor, config: Int4Config, weights: Sequence[Weight]) -> tuple[torch.Tensor, ...]:
    """x [.., K] times weights in 4 bits [N, K], plus bias [N] each -> [.., N] each in the dtype of x.

    Args:
        weights: packed, scale, zero and bias of each, in the format of `config`.

    Gradients flow to x and biases; the rounding of x to 8 bits counts as the identity. InputError: x does not fit.
    """
    packed = weights[0][0]
    columns = 2 * packed.shape[1]
    if not isinstance(x, torch.Tensor):
        raise InputError(f"x must be a tensor, got {quoted(x)}")
    if x.dim() == 0 or not x.is_floating_point():
        raise InputError(f"the input is {x.dtype} {tuple(x.shape)}, expected floats [.., {columns}]")
    if x.shape[-1] != columns:
        raise InputError(f"the input has {x.shape[-1]} columns, the weight {columns}")
    if x.device != packed.device:
        raise InputError(f"the input is on {x.device}, the weight on {packed.device}")
    int8 = config.compute_dtype == "int8" and x.is_cpu
    dtype = torch.float32 if int8 else x.dtype
    if config.compute_dtype not in (None, "int8"):
        dtype = getattr(torch, config.compute_dtype)
    flat = x if x.dim() == 2 else x.reshape(prod(x.shape[:-1]), columns)
    if dtype != flat.dtype:
        flat = flat.to(dtype)
    weights = [(*rest, bias if bias is None or bias.dtype == dtype else bias.to(dtype)) for *rest, bias in weights]
    options = codebook(config.format, x.device), int8
    biases = [bias for *_, bias in weights if bias is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (flat, *biases)):
        products: Sequence[torch.Tensor] = [_Int4Matmul.apply(flat, *weight, *options) for weight in weights]
    else:
        products = ops.int4_matmuls(flat, weights, *options)
    products = [y if y.dtype == x.dtype else y.to(x.dtype) for y in products]
    return tuple(y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[1]) for y in products)


class _Int4Matmul(torch.autograd.Function):
    """`ops.int4_matmul` with gradients for x and bias. The backward dequantizes the weight again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        packed, scale, zero, _, codebook, _ = rest
        ctx.save_for_backward(packed, scale, zero, codebook)
        return ops.int4_matmul(x, *rest)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight = dequantize_reference(*ctx.saved_tensors).to(grad.dtype)
        x_grad = grad @ weight if ctx.needs_input_grad[0] else None
        bias_grad = grad.sum(0) if ctx.needs_input_grad[4] else None
        return x_grad, None, None, None, bias_grad, None, None


def check_dtype(x: torch.Tensor, layer: nn.Module, name: str) -> None:
    """Raise InputError where x, the argument `name`, has another dtype than the weight of a plain layer.

    A layer that is not plain may convert its input itself, and autocast does.
    """
    if is_plain(layer, nn.Linear, nn.Embedding) and x.dtype != layer.weight.dtype:
        if not torch.is_autocast_enabled(x.device.type):
            raise InputError(f"{name} must be {layer.weight.dtype}, as the weights of the model, got {x.dtype}")


def apply(layer: Any, x: torch.Tensor, activation: str | None = None) -> torch.Tensor:
    """A Linear, an Int4Linear or a replacement of one, then the named activation: x [.., K] -> [.., N]."""
    if not is_plain(layer, nn.Linear, Int4Linear):
        return layer(x) if activation is None else ops.bias_gelu(layer(x), None, activation)
    if not isinstance(layer, Int4Linear):
        return ops.linear(x, layer.weight, layer.bias, activation)
    return layer.product(x, activation)
