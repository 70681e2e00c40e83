"""One token of every row through the layers of a decoder in one call of the C++ extension, where that is possible.

On a CPU a step of few rows is short: a product takes some ten microseconds, as long as a call of an operator from
Python. csrc/decoder_step_cpu.cpp calls the same functions one after the other. A mask, hooks, layers of another kind
and the like go through the modules, which stay the definition.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .. import ops
from ..kernels.linear import DTYPES, few_rows
from ..kernels.plain import PLAIN
from ..ops.step_layout import LayerParts, LayerPools, Part, StepArguments, StepTables
from ..quantization.int4 import codebook
from .add_norm import AddNorm
from .attention import Attention, AttentionContext, Projections
from .block import Intermediate, Layer
from .embeddings import Embeddings
from .heads import BertPredictions, LMHead, RobertaLMHead, Transform
from .inspection import has_library_forward, is_plain, is_unpatched
from .linear import Int4Linear

KINDS = (Layer, Attention, Projections, AddNorm, Intermediate, nn.LayerNorm, nn.Linear, Int4Linear)
_HEAD_KINDS = (LMHead, BertPredictions, RobertaLMHead, Transform, nn.LayerNorm, nn.Linear)
_NO_CROSS: tuple[Part, Part, Part] = ((), (), ())  # query, output and norm of a layer without cross-attention
ABSENT = torch.empty(0, dtype=torch.float32, device="cpu")  # in place of a tensor that a layer lacks


class Unsupported(Exception):
    """A module is not of the kind that the call computes; the reason, as one clause."""


def decoder_step(layers: Iterable[nn.Module], x: torch.Tensor, context: AttentionContext) -> torch.Tensor | None:
    """x [R, hidden], the newest token of each row of `context.cache` -> [R, hidden], the output of the last layer.

    None, with nothing done, where the call does not cover the step. It covers inference on a CPU on at most
    `kernels.linear.few_rows` rows, without masks, attention weights, hooks, other layers or activations, in float32,
    bfloat16 or float16. In 16 bits it computes in float32 between x and the result, which has the dtype of x: that of
    the layers, or float32.
    """
    cache = context.cache
    if cache is None or why_not_decoder_step(x, context) is not None:
        return None
    collector = Collector(cache.has_cross)
    try:
        for layer in layers:
            collector.add(layer)
    except Unsupported:
        return None
    dtype = collector.dtype
    if dtype is None or x.dtype not in (dtype, torch.float32) or len(x) > few_rows(dtype):  # None: there are no layers
        return None
    pools, source_pools = LayerPools(cache.pool.keys, cache.pool.values), LayerPools([], [])
    tables = StepTables(cache.slot_mapping, cache.slot_table, cache.lengths)
    if cache.has_cross and (source := cache.cross_metadata) is not None:
        source_pools = LayerPools(cache.cross_pool.keys, cache.cross_pool.values)
        tables = StepTables(*tables[:3], source.table, source.lengths, source.cu_rows)
    arguments = StepArguments(
        x=x,
        parameters=collector.parameters,
        pools=[*pools.keys, *pools.values],
        source_pools=[*source_pools.keys, *source_pools.values],
        tables=[table for table in tables if table is not None],
        codebook=collector.codebook,
        heads=collector.heads,
        eps=collector.eps,
        int8=collector.int8,
    )
    return ops.decoder_step(arguments)


def why_not_decoder_step(x: torch.Tensor, context: AttentionContext) -> str | None:
    """Why the call does not cover a step of x [R, hidden] in any layers, as one clause; None where it does."""
    if context.cache is None or context.tokens.max_seqlen != 1:
        return "it is not a step of one token of each row of a cache"
    if context.source is not None:
        return "the keys of the sources are not in the cache yet"
    if context.mask is not None or context.key_mask is not None:
        return "attention has a mask"
    if context.attentions is not None:
        return "attention weights are returned"
    reason = ops.decoder_step.why_not(x)
    if reason is None and not has_library_forward(*KINDS):
        reason = "a class of layers has another forward, or all modules have a hook"
    return reason


def is_wide(embeddings: Any, head: Any) -> bool:
    """Whether a step in 16 bits may be in float32 from the embeddings to the logits, as in the C++ runner.

    That is so where both are bertgen's with parameters in 16 bits on a CPU, and the call computes the layers.
    """
    if torch.compiler.is_compiling() or not is_plain(embeddings, Embeddings):
        return False
    parameters = [*head.parameters(), embeddings.position_embeddings.weight]
    return (
        all(t.dtype in DTYPES[1:] and t.is_cpu and t.is_contiguous() for t in parameters)
        and is_plain(embeddings.LayerNorm, nn.LayerNorm)
        and all(is_plain(module, *_HEAD_KINDS) for module in head.modules())
    )


class Collector:
    """Collects the parameters of layers in the order of the operator, and what all layers must have in common.

    Attributes:
        parameters: of each layer, the tensors of its `LayerParts`.
        dtype: of all parameters but packed weights in 4 bits.
        heads: of attention. eps: of all norms.
        codebook: of the format of all weights in 4 bits; None where it has none.
        int8: whether all products with such weights are those of integers.
        modules: all that were looked at.
    """

    def __init__(self, cross: bool):
        self.cross = cross
        self.parameters: list[torch.Tensor] = []
        self.dtype: torch.dtype | None = None
        self.heads = 0
        self.eps: float | None = None
        self.format: str | None = None
        self.codebook: torch.Tensor | None = None
        self.int8 = False
        self.modules: list[nn.Module] = []

    def add(self, layer: nn.Module) -> None:
        """Add the parameters of a layer; Unsupported where it is of another kind."""
        modules = self.children(layer, Layer)
        projections, attention_output, attention_norm = self._attention(modules["attention"])
        cross_query, cross_output, cross_norm = _NO_CROSS
        if self.cross:
            cross, cross_output, cross_norm = self._attention(modules["crossattention"])
            cross_query = self.dense(cross["query"])
        block = modules["intermediate"]
        intermediate = self.children(block, Intermediate)["dense"]
        if block.activation not in ("gelu", "gelu_python") or block.intermediate_act_fn is not None:
            raise Unsupported("the activation of a layer is not GELU")
        output, output_norm = self._add_norm(modules["output"])
        parts = LayerParts(
            query=self.dense(projections["query"]),
            key=self.dense(projections["key"]),
            value=self.dense(projections["value"]),
            attention_output=attention_output,
            attention_norm=attention_norm,
            cross_query=cross_query,
            cross_output=cross_output,
            cross_norm=cross_norm,
            intermediate=self.dense(intermediate),
            output=output,
            output_norm=output_norm,
        )
        for part in parts:
            self.parameters += part

    def _attention(self, attention: Any) -> tuple[dict[str, Any], Part, Part]:
        """The projections of an attention, its output and its norm."""
        modules = self.children(attention, Attention)
        if attention.training:  # it would drop some of its weights
            raise Unsupported("a layer is in training mode")
        self.heads = attention.heads
        return self.children(modules["self"], Projections), *self._add_norm(modules["output"])

    def _add_norm(self, block: Any) -> tuple[Part, Part]:
        modules = self.children(block, AddNorm)
        if block.training:  # it would drop some of what it adds
            raise Unsupported("a layer is in training mode")
        norm = modules["LayerNorm"]
        tensors = self.tensors(norm, nn.LayerNorm, ("weight", "bias"))
        if self.eps is None:
            self.eps = norm.eps
        if norm.eps != self.eps or any(t is ABSENT for t in tensors):
            raise Unsupported("the norms of the layers differ, or one has no bias")
        return self.dense(modules["dense"]), tensors

    def dense(self, layer: Any) -> Part:
        """The parameters of a linear layer."""
        if type(layer) is not Int4Linear:
            return self.tensors(layer, nn.Linear, ("weight", "bias"))
        config = layer.config
        int8 = config.compute_dtype == "int8"
        if self.format is None:
            self.format, self.codebook = config.format, codebook(config.format, torch.device("cpu"))
            self.int8 = int8
        if config.format != self.format or int8 != self.int8:
            raise Unsupported("the weights in 4 bits have several formats")
        if config.compute_dtype not in (None, "float32", "int8"):
            raise Unsupported(f"the products with weights in 4 bits are computed in {config.compute_dtype}")
        return self.tensors(layer, Int4Linear, ("packed", "scale", "zero", "bias"))

    def tensors(self, module: nn.Module, kind: type, names: tuple[str, ...]) -> Part:
        """Parameters of a module of exactly this kind, by their names; ABSENT for None."""
        self.children(module, kind)
        parameters = module.__dict__["_parameters"]
        tensors: list[torch.Tensor] = []
        for name in names:
            t = parameters[name]
            if t is None:
                tensors.append(ABSENT)
                continue
            if type(t) not in PLAIN or not t.is_cpu or not t.is_contiguous():
                raise Unsupported(f"the {name} of a {kind.__name__} is no contiguous tensor on a CPU")
            if name != "packed":
                self._check_dtype(t, name, kind)
            tensors.append(t)
        return tensors

    def _check_dtype(self, t: torch.Tensor, name: str, kind: type) -> None:
        allowed = DTYPES[:1] if kind is Int4Linear else DTYPES
        if self.dtype is None and t.dtype in allowed:
            self.dtype = t.dtype
        if t.dtype not in allowed:
            names = ", ".join(str(dtype)[6:] for dtype in allowed)
            raise Unsupported(f"the {name} of a {kind.__name__} is {t.dtype}, not {names}")
        if t.dtype is not self.dtype:
            raise Unsupported(f"the {name} of a {kind.__name__} is {t.dtype}, another parameter {self.dtype}")

    def children(self, module: nn.Module, kind: type) -> dict[str, Any]:
        """The modules of a module of exactly this kind, without hooks or a patched forward."""
        if type(module) is not kind:
            raise Unsupported(f"a {type(module).__name__} is no {kind.__name__}")
        if not is_unpatched(module):
            raise Unsupported(f"a {kind.__name__} has hooks or a forward of its own")
        self.modules.append(module)
        return module.__dict__["_modules"]
