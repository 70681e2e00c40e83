"""A tiny encoder-decoder, and the distance of two tensors."""

from __future__ import annotations

import torch

from bertgen import (
    EncoderDecoderConfig,
    EncoderDecoderModel,
)
from tests.support.reference_models import PAD, START

TINY = dict(
    vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=16,
)  # fmt: skip


def tiny(**options) -> EncoderDecoderModel:
    torch.manual_seed(0)
    decoder = dict(TINY, is_decoder=True, add_cross_attention=True)
    config = EncoderDecoderConfig(encoder=TINY, decoder=decoder, pad_token_id=PAD, decoder_start_token_id=START)
    for name, value in options.items():
        setattr(config, name, value)
    return EncoderDecoderModel(config)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())
