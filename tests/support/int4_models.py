"""Small models whose layers can be quantized to 4 bits, and all formats of such layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bertgen import BertGenerationConfig, EncoderDecoderConfig, EncoderDecoderModel, Int4Config

QUERY = "encoder.encoder.layer.0.attention.self.query"
HALF = dict(
    vocab_size=80, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
    max_position_embeddings=24, initializer_range=0.1,
)  # fmt: skip
KINDS = [
    Int4Config(),
    Int4Config(scales="absmax", group_size=32),
    Int4Config(symmetric=False),
    Int4Config("nf4"),
    Int4Config("fp4", scales="absmax"),
    Int4Config("nf4", scales="absmax", double_quant=True),
]
each_kind = pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.format}-{c.scales}-{c.symmetric}")


def make_float_model(**joint) -> EncoderDecoderModel:
    torch.manual_seed(0)
    return EncoderDecoderModel(
        EncoderDecoderConfig(
            encoder=BertGenerationConfig(**HALF),
            decoder=BertGenerationConfig(**HALF, is_decoder=True, add_cross_attention=True),
            pad_token_id=0,
            decoder_start_token_id=2,
            **joint,
        )
    ).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    ids = torch.arange(3, 15).view(2, 6)
    return model(ids, decoder_input_ids=ids).logits


def edit_tensors(folder: Path, change) -> None:
    """Change the tensors of a checkpoint in place."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
