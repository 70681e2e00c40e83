"""A small encoder-decoder of bertgen and of transformers, in floats and in 4 bits, and inputs for it."""

from __future__ import annotations

import torch
import torch.distributed.optim
import transformers

import bertgen
from bertgen import EncoderDecoderConfig, EncoderDecoderModel, Int4Config

HALF = dict(
    vocab_size=60, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
    max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1,
)  # fmt: skip
SPECIAL = dict(pad_token_id=0, decoder_start_token_id=2, eos_token_id=1)
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
MASK = (IDS != 0).long()


def own() -> EncoderDecoderModel:
    torch.manual_seed(0)
    decoder = dict(HALF, is_decoder=True, add_cross_attention=True)
    return EncoderDecoderModel(EncoderDecoderConfig(encoder=HALF, decoder=decoder, **SPECIAL)).eval()


def theirs(kind: str = "bert-generation") -> transformers.EncoderDecoderModel:
    torch.manual_seed(0)
    decoder = dict(HALF, model_type=kind, is_decoder=True, add_cross_attention=True)
    config = transformers.EncoderDecoderConfig(encoder=dict(HALF, model_type=kind), decoder=decoder, **SPECIAL)
    model = transformers.EncoderDecoderModel(config).eval()
    for name, value in SPECIAL.items():
        setattr(model.generation_config, name, value)
    return model


def own_in_4_bits(folder):
    own().save_pretrained(folder)
    return EncoderDecoderModel.from_pretrained(folder, quantization_config=Int4Config(symmetric=False))


def theirs_in_4_bits(folder):
    bertgen.register_with_transformers()
    theirs().save_pretrained(folder)
    return bertgen.accelerate(
        transformers.EncoderDecoderModel.from_pretrained(folder, quantization_config=Int4Config())
    )
