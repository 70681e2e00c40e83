"""One token of every row through the layers of a decoder in one call of the C++ extension, where that is possible.

On a CPU a step of few rows is short: a product takes some ten microseconds, and so does a call of an operator from
Python. csrc/decoder_cpu.cpp calls the same functions one after the other. Anything out of the ordinary (a mask, hooks,
a layer of another kind) goes through the modules, which stay the definition.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .. import ops
from ..kernels.linear import few_rows, why_not_linear_cpp
from ..kernels.plain import PLAIN
from ..ops import extension
from ..quantization.int4 import codebook
from .add_norm import AddNorm
from .attention import Attention, AttentionContext, Projections
from .block import Intermediate, Layer
from .linear import Int4Linear, has_own_forward, is_untouched

_KINDS = (Layer, Attention, Projections, AddNorm, Intermediate, nn.LayerNorm, nn.Linear, Int4Linear)
_NOTHING = torch.empty(0, dtype=torch.float32, device="cpu")  # in place of a tensor that a layer lacks


class _Other(Exception):
    """A layer is not of the kind that the call computes."""


def decoder_step(layers: Iterable[nn.Module], x: torch.Tensor, context: AttentionContext) -> torch.Tensor | None:
    """x [R, hidden], the newest token of each row of `context.cache` -> [R, hidden] behind the last layer.

    None, and nothing is done, where it takes something that the call does not have: anything but inference in float32
    on a CPU on at most `kernels.linear.few_rows()` rows, masks, attention weights, hooks, other layers or activations.
    """
    cache = context.cache
    if (
        cache is None
        or context.source is not None
        or context.mask is not None
        or context.key_mask is not None
        or context.attentions is not None
        or context.tokens.longest != 1
        or why_not_linear_cpp(x, x) is not None
        or not _has_call()
        or not has_own_forward(*_KINDS)
    ):
        return None
    walk = _Walk(cache.has_cross)
    try:
        for layer in layers:
            walk.layer(layer)
    except _Other:
        return None
    if not walk.found:  # no layers at all
        return None
    own, cross, source = cache.pools, cache.cross_pools, cache.source if cache.has_cross else None
    return torch.ops.bertgen_C.decoder_step.default(
        x, walk.heads, walk.eps, walk.found, walk.codebook, walk.integers, own.keys, own.values, cache.slots,
        cache.table, cache.lengths, *(([], [], None, None, None) if source is None else (
            cross.keys, cross.values, source.table, source.lengths, source.cu_rows)),
    )  # fmt: skip


def _has_call() -> bool:
    """Whether the extension is there and wanted."""
    return ops.uses_cpp() and extension.absence() is None


def explain(device: str = "cpu") -> str:
    """How a step of a decoder runs on `device` ("cpu" or "cuda")."""
    if device == "cpu" and _has_call():
        return f"cpp, all layers in one call, in float32 inference for at most {few_rows()} rows, else layer by layer"
    return "layer by layer"


class _Walk:
    """Collects the parameters of layers, in the order of the operator.

    Attributes:
        found: of each layer query, key, value, output, norm; of its cross-attention query, output, norm; inner layer,
            outer layer, norm. A Linear is weight and bias, an Int4Linear packed, scale, zero and bias.
    """

    def __init__(self, crosses: bool):
        self.crosses = crosses
        self.found: list[torch.Tensor] = []
        self.heads = 0
        self.eps: float | None = None  # of all norms
        self.format: str | None = None  # of all weights in 4 bits, and its codebook
        self.codebook: torch.Tensor | None = None
        self.integers = False  # whether all products with such weights are those of integers

    def layer(self, layer: nn.Module) -> None:
        parts = self._parts(layer, Layer)
        self._attention(parts["attention"])
        if self.crosses:
            self._attention(parts["crossattention"])
        inner = parts["intermediate"]
        dense = self._parts(inner, Intermediate)["dense"]
        if inner.activation not in ("gelu", "gelu_python") or inner.intermediate_act_fn is not None:
            raise _Other
        self._linear(dense)
        self._add_norm(parts["output"])

    def _attention(self, attention: Any) -> None:
        parts = self._parts(attention, Attention)
        projections = self._parts(parts["self"], Projections)
        query, key, value = (projections[name] for name in ("query", "key", "value"))
        self.heads = attention.heads
        self._linear(query)
        if not attention.cross:
            self._linear(key)
            self._linear(value)
        self._add_norm(parts["output"])

    def _add_norm(self, block: Any) -> None:
        parts = self._parts(block, AddNorm)
        if block.training:  # then it drops some of what it adds
            raise _Other
        self._linear(parts["dense"])
        norm = parts["LayerNorm"]
        weights = self._weights(norm, nn.LayerNorm, ("weight", "bias"))
        if self.eps is None:
            self.eps = norm.eps
        if norm.eps != self.eps or any(t is _NOTHING for t in weights):
            raise _Other
        self.found += weights

    def _linear(self, layer: Any) -> None:
        if type(layer) is Int4Linear:
            config = layer.config
            integers = config.compute_dtype == "int8"
            if self.format is None:
                self.format, self.codebook = config.format, codebook(config.format, torch.device("cpu"))
                self.integers = integers
            if config.format != self.format or integers != self.integers:
                raise _Other
            if config.compute_dtype not in (None, "float32", "int8"):
                raise _Other
            self.found += self._weights(layer, Int4Linear, ("packed", "scale", "zero", "bias"))
        else:
            self.found += self._weights(layer, nn.Linear, ("weight", "bias"))

    def _weights(self, module: nn.Module, kind: type, names: tuple[str, ...]) -> list[torch.Tensor]:
        self._parts(module, kind)
        parameters = module.__dict__["_parameters"]
        found: list[torch.Tensor] = []
        for name in names:
            t = parameters[name]
            if t is None:
                found.append(_NOTHING)
                continue
            if type(t) not in PLAIN or not t.is_cpu or not t.is_contiguous():
                raise _Other
            if t.dtype is not torch.float32 and name != "packed":
                raise _Other
            found.append(t)
        return found

    @staticmethod
    def _parts(module: nn.Module, kind: type) -> dict[str, Any]:
        """The modules in one of exactly this kind, on which nothing is hung."""
        if type(module) is not kind or not is_untouched(module):
            raise _Other
        return module.__dict__["_modules"]
