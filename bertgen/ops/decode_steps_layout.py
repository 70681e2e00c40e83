"""The tensors of `kernels.cpp.decode_steps` and `decoder_weights`, by name and in their order.

csrc/bindings/decode_steps_layout.h names the same tensors. `extension` compares both sides when it loads the extension,
and does not use an extension that differs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .step_layout import Part


class DecoderParts(NamedTuple):
    """The parameters of a decoder before those of its layers; dense parts and norms are as in `LayerParts`.

    words [vocabulary, hidden] and positions [rows, hidden] are tables; type [hidden] is the row of token type 0, or
    empty. transform and transform_norm are those before the head: one empty tensor and none where there are none.
    """

    words: Part
    positions: Part
    type: Part
    embedding_norm: Part
    head: Part
    transform: Part
    transform_norm: Part


class StaticTables(NamedTuple):
    """The tables of all units and rows; `model.static_decoder` describes them."""

    over: torch.Tensor
    tokens: torch.Tensor
    parents: torch.Tensor
    own_slots: torch.Tensor
    slot_table: torch.Tensor
    lengths: torch.Tensor
    source_table: torch.Tensor
    source_lengths: torch.Tensor
    cu_rows: torch.Tensor


# Names in the state of a static search. Greedy search has none from temperature on.
SAMPLING_STATE = (
    "sequences", "lengths", "limits", "seeds", "numbers", "log_probs", "temperature", "top_k", "top_p", "min_p",
)  # fmt: skip
BEAM_STATE = (
    "running_sequences", "finished_sequences", "running_scores", "finished_scores", "finished_lengths", "is_finished",
    "can_improve", "lengths", "limits",
)  # fmt: skip

# Attribute of `bertgen._C` -> the names it must have.
LAYOUT = {
    "DECODER_PARTS": DecoderParts._fields,
    "STATIC_TABLES": StaticTables._fields,
    "SAMPLING_STATE": SAMPLING_STATE,
    "BEAM_STATE": BEAM_STATE,
}
