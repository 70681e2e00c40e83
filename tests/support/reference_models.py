"""Pairs of a transformers model (the oracle) and a bertgen model, with the same random configuration and weights."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import transformers
import transformers.activations

from bertgen import EncoderDecoderConfig, EncoderDecoderModel

START, PAD = 2, 0
ACTIVATIONS = sorted({"gelu", "relu", "silu", "gelu_new"} | set(transformers.activations.ACT2FN))


@dataclass
class ModelPair:
    """Both models of a random configuration in evaluation mode, and a random generator for inputs."""

    oracle: transformers.EncoderDecoderModel
    model: EncoderDecoderModel
    random: random.Random

    def batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids and mask [B, S] and labels [B, T]; half of the batches are padded on the right."""
        r, config = self.random, self.model.config
        rows, length, targets = r.randint(1, 4), r.randint(1, 12), r.randint(1, 9)
        seed = torch.Generator().manual_seed(r.randrange(2**31))
        ids = torch.randint(3, config.encoder.vocab_size, (rows, length), generator=seed)
        labels = torch.randint(3, config.decoder.vocab_size, (rows, targets), generator=seed)
        mask = torch.ones_like(ids)
        if r.random() < 0.5:
            for row in range(rows):
                end = r.randint(1, length)
                ids[row, end:], mask[row, end:] = PAD, 0
                labels[row, r.randint(1, targets) :] = -100
        return ids, mask, labels


def random_halves(r: random.Random, dropout: float = 0.0) -> tuple[dict, dict]:
    """Options of a small random encoder and decoder of any kinds, some of two hidden sizes."""
    kinds = r.choices(["bert-generation", "bert", "roberta"], weights=[4, 1, 1], k=2)
    if r.random() < 0.5:
        kinds[1] = kinds[0]
    heads, width = r.choice([1, 2, 3, 4]), r.choice([8, 16, 24])

    def half(kind: str, hidden: int) -> dict:
        options = dict(
            model_type=kind,
            vocab_size=r.choice([37, 64, 101]),
            hidden_size=hidden,
            num_attention_heads=heads,
            num_hidden_layers=r.choice([1, 2, 3]),
            intermediate_size=r.choice([32, 56, 96]),
            max_position_embeddings=r.choice([24, 40]),
            hidden_act=r.choice(ACTIVATIONS),
            layer_norm_eps=r.choice([1e-12, 1e-5]),
            initializer_range=0.15,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            pad_token_id=PAD,
        )
        return options if kind == "bert-generation" else options | dict(type_vocab_size=r.choice([1, 2, 3]))

    encoder = half(kinds[0], heads * width)
    decoder = half(kinds[1], heads * (width if r.random() < 0.8 else 32))
    if decoder["hidden_size"] == encoder["hidden_size"] and r.random() < 0.2:
        decoder["cross_attention_hidden_size"] = encoder["hidden_size"]
    decoder |= dict(is_decoder=True, add_cross_attention=True, tie_word_embeddings=r.random() < 0.7)
    return encoder, decoder


def make_model_pair(seed: int) -> ModelPair:
    """The two models of a random configuration; biases and LayerNorms are random as well."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    encoder, decoder = random_halves(r)
    special = dict(pad_token_id=PAD, decoder_start_token_id=START)
    halves = dict(encoder=dict(encoder), decoder=dict(decoder))  # transformers takes entries out of them
    oracle = transformers.EncoderDecoderModel(transformers.EncoderDecoderConfig(**halves, **special))
    oracle = oracle.eval().float()
    oracle.set_attn_implementation("eager")
    for name, p in oracle.named_parameters():
        if p.dim() == 1:
            p.data += 0.1 * torch.randn_like(p)
            if name.endswith(("alpha_p", "alpha_n")):  # xielu's are bfloat16 in transformers
                p.data = p.data.bfloat16().float()
    model = EncoderDecoderModel(EncoderDecoderConfig(encoder=encoder, decoder=decoder, **special)).eval()
    result = model.load_state_dict(oracle.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(name.endswith(("decoder.weight", "decoder.bias")) for name in result.missing_keys)
    return ModelPair(oracle, model, r)
