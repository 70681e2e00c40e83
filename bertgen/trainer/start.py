"""What a run starts from: tokenizer and model."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config import BertGenerationConfig, EncoderDecoderConfig, GenerationConfig
from ..errors import ConfigError, UnsupportedError
from ..model import EncoderDecoderModel
from ..outline import outlined
from ..tokenizer import AutoTokenizer, BertGenerationTokenizer, Tokenizer
from . import state
from .data import train_vocabulary
from .options import TrainingConfig


def write_tokenizer(config: TrainingConfig, pairs: list[tuple[str, str]], output: Path) -> None:
    """Put the tokenizer into the output folder: the one given, else the given model's, else a new one."""
    given = config.tokenizer or config.model
    if given:
        AutoTokenizer.from_pretrained(given).save_pretrained(output)
        return
    vocabulary = output / "spiece.model"
    state.write_file(vocabulary, lambda path: train_vocabulary(pairs, config.vocab_size, path))
    BertGenerationTokenizer(vocab_file=str(vocabulary)).save_pretrained(output)


def make_model(config: TrainingConfig, tokenizer: Tokenizer) -> EncoderDecoderModel:
    """Load the given model, or make one with random weights, in float32 and in training mode.

    Raises:
        ConfigError: the given model is too small for the tokenizer's ids or for `max_length`.
        UnsupportedError: its weights are in 4 bits.
    """
    if not config.model:
        return _new_model(config, tokenizer).train()
    model = EncoderDecoderModel.from_pretrained(config.model, dtype=torch.float32)
    if model.quantization is not None:
        raise UnsupportedError(
            f"{config.model} has weights in 4 bits ({model.quantization.format}), which have no gradient; train the "
            "model they were made from, or what dequantize() makes of it"
        )
    for half in (model.config.encoder, model.config.decoder):
        if len(tokenizer) > half.vocab_size:
            raise ConfigError(f"the tokenizer has {len(tokenizer)} pieces, the model's vocabulary {half.vocab_size}")
        if config.max_length > half.max_tokens:
            raise ConfigError(f"max_length={config.max_length}: the model has {half.max_tokens} positions")
    return model.train()


def _new_model(config: TrainingConfig, tokenizer: Tokenizer) -> EncoderDecoderModel:
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate,
        "max_position_embeddings": config.positions,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }
    start = {**special, "decoder_start_token_id": tokenizer.bos_token_id}
    halves = EncoderDecoderConfig(
        encoder=BertGenerationConfig(**shape, **special),
        decoder=BertGenerationConfig(**shape, **special, is_decoder=True, add_cross_attention=True),
        tie_encoder_decoder=config.tie_encoder_decoder,
        **start,
    )
    with outlined():
        model = EncoderDecoderModel(config=halves)
    model.initialize_missing(like=torch.empty(0, dtype=torch.float32, device="cpu"))
    model.generation_config = GenerationConfig(max_length=config.max_length, **start)
    return model
