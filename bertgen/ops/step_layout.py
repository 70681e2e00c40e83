"""The arguments of `kernels.cpp.decoder_step` except its `out`, by name and in their order; the kinds of processors.

csrc/bindings/decoder_step_layout.h names the same tensors, csrc/processors_cpu.h the same kinds. `extension` compares
both sides when it loads the extension, and does not use an extension that differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

Part = Sequence[torch.Tensor]


class LayerParts(NamedTuple):
    """The parameters of one layer.

    A dense part is weight and bias, or in 4 bits packed, scale, zero and bias; an empty tensor stands for an absent
    zero or bias. A norm is weight and bias. The parts of cross-attention are empty where a step has no sources.
    """

    query: Part
    key: Part
    value: Part
    attention_output: Part
    attention_norm: Part
    cross_query: Part
    cross_output: Part
    cross_norm: Part
    intermediate: Part
    output: Part
    output_norm: Part


class StepTables(NamedTuple):
    """Where rows and sources have their slots, int32; those of sources are absent together.

    slots [R], table [R, positions] and lengths [R] are those of `ops.decode_attention`. source_table
    [sources, source positions], source_lengths [sources] and cu_rows [sources + 1] are those of
    `ops.cross_decode_attention`.
    """

    slots: torch.Tensor
    table: torch.Tensor
    lengths: torch.Tensor
    source_table: torch.Tensor | None = None
    source_lengths: torch.Tensor | None = None
    cu_rows: torch.Tensor | None = None


class LayerPools(NamedTuple):
    """The pools of all layers [slots, heads, head_dim]; the operator takes the keys of each layer, then the values."""

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]


class StepArguments(NamedTuple):
    """x [R, hidden] and all that a step of a decoder reads; each list is in the order of its class above.

    parameters: of each layer, the tensors of its LayerParts.
    pools, source_pools: the tensors of LayerPools, of the rows and of the sources.
    tables: the tensors of StepTables.
    codebook: [16] of all weights in 4 bits. heads, eps: of all layers.
    int8: products with weights in 4 bits are those of integers.
    """

    x: torch.Tensor
    parameters: Sequence[torch.Tensor]
    pools: Sequence[torch.Tensor]
    source_pools: Sequence[torch.Tensor]
    tables: Sequence[torch.Tensor]
    codebook: torch.Tensor | None
    heads: int
    eps: float
    int8: bool


# The kinds of logits processors by their numbers in C++; csrc/processors_cpu.h describes their arguments.
PROCESSORS = ("bias", "repetition", "ngram", "suppress", "force", "decay", "finite", "normalize")

# Attribute of `bertgen._C` -> the names it must have.
LAYOUT = {
    "LAYER_PARTS": LayerParts._fields,
    "STEP_TABLES": StepTables._fields,
    "LAYER_POOLS": LayerPools._fields,
    "PROCESSORS": PROCESSORS,
}
