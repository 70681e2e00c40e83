"""Linear layers whose weights are in 4 bits, and how a layer of either kind is computed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks

from .. import ops
from ..config import Int4Config
from ..config.quantization import GROUP_SIZES
from ..errors import InputError, UnsupportedError, quoted
from ..kernels.int4_matmul import dequantize_reference
from ..kernels.int4_matmul_cpp import Weight
from ..kernels.plain import PLAIN
from ..quantization.int4 import codebook, dequantize, fault, quantize
from .meta_init import outlined


class Int4Linear(nn.Module):
    """`nn.Linear` with 4-bit weights, for inference: a quarter of the bytes of 16 bits.

    Args:
        packed: uint8 [N, K / 2]. scale, zero: [N, K / group], zero None where levels are symmetric.
        bias: [N] or None.
        config: the format they are in; None is int4, in the groups that the shapes say.

    Raises:
        InputError: tensors that do not belong together.
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
        wrong = fault(rows, columns, packed, scale, zero, config)
        if wrong is None and bias is not None and getattr(bias, "shape", None) != (rows,):
            wrong = f"bias must be a tensor {(rows,)}, got {quoted(bias)}"
        if wrong is not None:
            raise InputError(wrong)
        self.out_features, self.in_features, self.config = rows, columns, config
        for name, tensor in (("packed", packed), ("scale", scale), ("zero", zero), ("bias", bias)):
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: Int4Config | None = None) -> Int4Linear:
        """The weights of a Linear, rounded to 4 bits; see `bertgen.quantization.quantize` for the errors."""
        if isinstance(linear, Int4Linear):
            raise InputError(f"the layer is in 4 bits already ({linear.config.format})")
        if not isinstance(linear, nn.Linear):
            raise InputError(f"linear must be an nn.Linear, got {quoted(linear)}")
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(*quantize(linear.weight, config), bias=bias, config=config)

    def to_linear(self) -> nn.Linear:
        """A Linear whose weights are the values that the 4 bits stand for, in the dtype of the scales."""
        with outlined():
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
        """The layer itself, whatever is hung on it, then the named activation: x [.., K] -> [.., N]."""
        if activation is None:
            return int4_linears(x, self.config, [self.parts])[0]
        y = int4_linears(x, self.config, [(self.packed, self.scale, self.zero, None)])[0]
        return ops.bias_gelu(y, self.bias, activation)

    @property
    def parts(self) -> Weight:
        """Its tensors, in the order in which a product takes them."""
        return self.packed, self.scale, self.zero, self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, format={self.config.format}"


def int4_linears(x: torch.Tensor, config: Int4Config, weights: Sequence[Weight]) -> tuple[torch.Tensor, ...]:
    """x [.., K] times weights in 4 bits [N, K], plus bias [N] each -> [.., N] each in the dtype of x.

    Args:
        weights: packed, scale, zero and bias of each, in the format of `config`.

    Gradients go to x and biases, past the rounding of integers. InputError: x that does not fit.
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
    integers = config.compute_dtype == "int8" and x.is_cpu
    dtype = torch.float32 if integers else x.dtype
    if config.compute_dtype not in (None, "int8"):
        dtype = getattr(torch, config.compute_dtype)
    flat = x if x.dim() == 2 else x.reshape(prod(x.shape[:-1]), columns)
    if dtype != flat.dtype:
        flat = flat.to(dtype)
    given = [(*rest, bias if bias is None or bias.dtype == dtype else bias.to(dtype)) for *rest, bias in weights]
    rest = codebook(config.format, x.device), integers
    biases = [bias for *_, bias in given if bias is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (flat, *biases)):
        products: Sequence[torch.Tensor] = [_Product.apply(flat, *weight, *rest) for weight in given]
    else:
        products = ops.int4_matmuls(flat, given, *rest)
    products = [y if y.dtype == x.dtype else y.to(x.dtype) for y in products]
    return tuple(y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[1]) for y in products)


class _Product(torch.autograd.Function):
    """`ops.int4_matmul` with gradients for x and bias. Only the 4 bits are kept for the way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        packed, scale, zero, _, codebook, _ = rest
        ctx.save_for_backward(packed, scale, zero, codebook)
        return ops.int4_matmul(x, *rest)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight = dequantize_reference(*ctx.saved_tensors).to(grad.dtype)
        of_x, of_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[4]
        return grad @ weight if of_x else None, None, None, None, grad.sum(0) if of_bias else None, None, None


def check_dtype(x: torch.Tensor, layer: nn.Module, name: str) -> None:
    """InputError where x, which the caller gave under this name, is of another dtype than the weight of a plain layer.

    A layer on which something hangs may convert its input itself, and autocast does.
    """
    if is_plain(layer, nn.Linear, nn.Embedding) and x.dtype != layer.weight.dtype:
        if not torch.is_autocast_enabled(x.device.type):
            raise InputError(f"{name} must be {layer.weight.dtype}, as the weights of the model, got {x.dtype}")


_FORWARDS: dict[type, Any] = {}  # of classes that were looked at, the forward that their library wrote


def is_plain(module: nn.Module, *kinds: type) -> bool:
    """Whether a module is of exactly one of these kinds (any, where none is named) and nothing is hung on it.

    Its parameters say all that its forward does only then: hooks, adapters, parametrizations and another forward, its
    own or one that somebody has put on its class, are code of their own, and so are parameters of a class of their own
    (a quantizer's, a sharded one).
    """
    kind = type(module)
    if (kinds and kind not in kinds) or not is_untouched(module):
        return False
    for parameter in module.__dict__["_parameters"].values():
        if parameter is not None and type(parameter) not in PLAIN:
            return False
    return has_own_forward(kind)


def is_untouched(module: nn.Module) -> bool:
    """Whether a module has no hooks, and no forward but that of its class: a part of `is_plain`."""
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )


def has_own_forward(*kinds: type) -> bool:
    """Whether classes have the forwards of their library, and no hook is on all modules: a part of `is_plain`."""
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        return False
    if torch.compiler.is_compiling():
        return all(map(_is_written_by_library, kinds))
    return all(_FORWARDS.get(kind) is kind.forward or _is_written_by_library(kind) for kind in kinds)  # type: ignore[attr-defined]


def _is_written_by_library(kind: type) -> bool:
    """Whether the forward of a class was compiled in a module of torch or bertgen, and not put there by somebody."""
    forward: Any = kind.forward  # type: ignore[attr-defined]
    home = getattr(forward, "__globals__", {}).get("__name__", "")
    if home.partition(".")[0] not in ("torch", "bertgen"):
        return False
    if not torch.compiler.is_compiling():  # a graph would hold only until the next class is looked at
        _FORWARDS[kind] = forward
    return True


def is_plain_norm(module: Any) -> bool:
    """Whether a module is a plain LayerNorm over the last dimension, with weight and shift."""
    return is_plain(module, nn.LayerNorm) and module.bias is not None and len(module.normalized_shape) == 1


def apply(layer: Any, x: torch.Tensor, activation: str | None = None) -> torch.Tensor:
    """A Linear, an Int4Linear or what stands in the place of one, then the named activation: x [.., K] -> [.., N]."""
    if not is_plain(layer, nn.Linear, Int4Linear):
        return layer(x) if activation is None else ops.bias_gelu(layer(x), None, activation)
    if not isinstance(layer, Int4Linear):
        return ops.linear(x, layer.weight, layer.bias, activation)
    return layer.product(x, activation)
