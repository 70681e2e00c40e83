"""The schemas of operators that are nodes of a compiled graph; imported for its effect, which registers them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from . import torch_library
from .operators import (
    add_layer_norm,
    attention,
    bias_gelu,
    cross_decode_attention,
    decode_attention,
    gelu_layer_norm,
    int4_matmul,
    layer_norm_gelu,
    linear_gelu,
    process,
    sample,
    top_log_probs,
)
from .registry import KernelOp


def _register(op: KernelOp, schema: str, fake: Callable[..., Any], differentiable: bool = False) -> None:
    """Register an operator with torch.library. At run time its node does what a call of `op` does outside a graph."""
    names = [word.split()[-1] for word in schema[1 : schema.index(") ->")].split(", ")]
    parameters = inspect.signature(op.reference).parameters

    def run(*arguments: Any) -> Any:
        return op.run(arguments[0], **dict(zip(names[1:], arguments[1:], strict=True)))

    defaults = {name: parameters[name].default for name in names}
    torch_library.define(op.name, schema, defaults, run, fake, differentiable)


def _empty_like(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _normalized(x: torch.Tensor, weight: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
    """The shape of x; the widest dtype, as of a LayerNorm after a product under autocast."""
    dtype = x.dtype
    for t in (weight, *others):
        dtype = dtype if t is None else torch.promote_types(dtype, t.dtype)
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


# Without dropout: the backward runs the forward again, and would draw other random numbers.
_register(
    attention,
    "(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor cu_k, int max_q, int max_k, bool causal, Tensor? q_start, "
    "Tensor? key_len, Tensor? key_mask) -> Tensor",
    _empty_like,
    differentiable=True,
)
_register(
    decode_attention,
    "(Tensor q, Tensor k, Tensor v, Tensor(a!) key_pool, Tensor(b!) value_pool, Tensor slots, Tensor table, "
    "Tensor lengths, Tensor(c!)? arrivals) -> Tensor",
    _empty_like,
)
_register(
    cross_decode_attention,
    "(Tensor q, Tensor key_pool, Tensor value_pool, Tensor table, Tensor lengths, Tensor cu_rows, int max_rows, "
    "Tensor(a!)? arrivals) -> Tensor",
    _empty_like,
)
_register(
    add_layer_norm,
    "(Tensor x, Tensor? bias, Tensor? residual, Tensor weight, Tensor shift, float eps) -> Tensor",
    lambda x, bias, residual, weight, shift, eps: _normalized(x, weight, bias, residual),
    differentiable=True,
)
_register(bias_gelu, "(Tensor x, Tensor? bias, str activation) -> Tensor", _empty_like, differentiable=True)
for _op in (layer_norm_gelu, gelu_layer_norm):
    _register(
        _op,
        "(Tensor x, Tensor weight, Tensor shift, float eps, str activation) -> Tensor",
        lambda x, weight, *rest: _normalized(x, weight),
        differentiable=True,
    )
_register(
    linear_gelu,
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]),
)
_register(
    process,
    "(Tensor(a!) scores, Tensor tokens, Tensor lengths, Tensor repetition_penalty, Tensor no_repeat_ngram, "
    "Tensor? min_length, Tensor? end_tokens, Tensor? banned) -> ()",
    lambda *arguments: None,
)
_register(
    top_log_probs,
    "(Tensor scores, int count, Tensor? offsets, int group) -> (Tensor, Tensor)",
    lambda scores, count, offsets, group: (
        scores.new_empty(scores.shape[0] // group, count, dtype=torch.float32),
        scores.new_empty(scores.shape[0] // group, count, dtype=torch.int64),
    ),
)
_register(
    sample,
    "(Tensor scores, Tensor seed, Tensor request, Tensor step, Tensor temperature, Tensor top_k, Tensor top_p, "
    "Tensor min_p) -> (Tensor, Tensor)",
    lambda scores, *rest: (
        scores.new_empty(scores.shape[0], dtype=torch.int64),
        scores.new_empty(scores.shape[0], dtype=torch.float32),
    ),
)
_register(
    int4_matmul,
    "(Tensor x, Tensor packed, Tensor scale, Tensor? zero, Tensor? bias, Tensor? codebook, bool int8) -> Tensor",
    lambda x, packed, *rest: x.new_empty(x.shape[0], packed.shape[0]),
)
