"""Small encoders and decoders of each kind, in bertgen and in transformers."""

from __future__ import annotations

import random

import torch
import transformers

from bertgen import (
    BertConfig,
    BertGenerationConfig,
    BertGenerationDecoder,
    BertGenerationEncoder,
    BertLMHeadModel,
    BertModel,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaModel,
)
from tests.support.reference_models import PAD

TINY = dict(
    vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=20, pad_token_id=0, initializer_range=0.15,
)  # fmt: skip
HALVES = {
    "bert-generation": (BertGenerationConfig, BertGenerationEncoder, BertGenerationDecoder),
    "bert": (BertConfig, BertModel, BertLMHeadModel),
    "roberta": (RobertaConfig, RobertaModel, RobertaForCausalLM),
}
THEIRS = {
    "bert-generation": (
        transformers.BertGenerationConfig, transformers.BertGenerationEncoder, transformers.BertGenerationDecoder
    ),
    "bert": (transformers.BertConfig, transformers.BertModel, transformers.BertLMHeadModel),
    "roberta": (transformers.RobertaConfig, transformers.RobertaModel, transformers.RobertaForCausalLM),
}  # fmt: skip
KINDS = list(HALVES)


def alone(kind: str, part: int, seed: int = 0, **options):
    """(ours, theirs): an encoder (part 1) or decoder (part 2) of a kind, on its own, with the same weights."""
    torch.manual_seed(seed)
    theirs = THEIRS[kind][part](THEIRS[kind][0](**TINY, **options, attn_implementation="eager")).eval()
    ours = HALVES[kind][part](HALVES[kind][0](**TINY, **options)).eval()
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not result.unexpected_keys and not [k for k in result.missing_keys if "decoder." not in k]
    return ours, theirs


def ids_and_mask(r: random.Random, rows: int, length: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[r.randrange(3, 37) for _ in range(length)] for _ in range(rows)])
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        padding = r.randrange(length)
        where = slice(length - padding, length) if side == "right" else slice(0, padding)
        ids[row, where], mask[row, where] = PAD, 0
    return ids, mask
