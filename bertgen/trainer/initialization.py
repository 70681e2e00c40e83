"""Initialization of a run: its tokenizer and its model."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ..config import HALVES, BertGenerationConfig, EncoderDecoderConfig, GenerationConfig, read_json
from ..errors import ConfigError, UnsupportedError
from ..hub import resolve_file
from ..layers.meta_init import init_empty_weights
from ..model import EncoderDecoderModel
from ..tokenizer import AutoTokenizer, BertGenerationTokenizer, Tokenizer
from ..tokenizer.special_tokens import target_end_token
from .data import train_vocabulary
from .options import TrainingConfig

logger = logging.getLogger(__name__)


def write_tokenizer(config: TrainingConfig, pairs: list[tuple[str, str]], output: Path) -> None:
    """Save the tokenizer in the output folder: that of `config.tokenizer`, else the model's, else a new one."""
    source = config.tokenizer or config.model
    if source:
        AutoTokenizer.from_pretrained(source).save_pretrained(output)
        return
    vocabulary = output / "spiece.model"
    train_vocabulary(pairs, config.vocab_size, vocabulary)
    BertGenerationTokenizer(vocab_file=str(vocabulary)).save_pretrained(output)


def make_model(config: TrainingConfig, tokenizer: Tokenizer) -> EncoderDecoderModel:
    """Load `config.model`, or make a model with random weights, in float32 and in training mode.

    A BERT, a RoBERTa or a half of kind bert-generation becomes both halves of an encoder-decoder, whose cross-attention
    is new (Rothe et al. 2020).

    Raises:
        ConfigError: the loaded model is too small for the tokenizer's ids or for `max_length`.
        UnsupportedError: its weights are in 4 bits, or it is of another kind.
    """
    if not config.model:
        return _new_model(config, tokenizer).train()
    if read_json(resolve_file(config.model, "config.json")).get("model_type") in tuple(HALVES):
        model = EncoderDecoderModel.from_encoder_decoder_pretrained(
            config.model, config.model, encoder_dtype=torch.float32, decoder_dtype=torch.float32
        )
        _set_start_and_end_ids(model, tokenizer)
        model.generation_config.max_length = config.max_length
    else:
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
    set_special_ids(model, tokenizer)
    return model.train()


def _set_start_and_end_ids(model: EncoderDecoderModel, tokenizer: Tokenizer) -> None:
    """Give an untrained model the special ids of its tokenizer, whatever ids its halves have."""
    starts, ends = (tokenizer.bos_token_id, tokenizer.cls_token_id), (tokenizer.eos_token_id, tokenizer.sep_token_id)
    model.config.decoder_start_token_id = next((one for one in starts if one is not None), None)
    model.config.eos_token_id = next((one for one in ends if one is not None), None)
    model.config.pad_token_id = tokenizer.pad_token_id


def set_special_ids(model: EncoderDecoderModel, tokenizer: Tokenizer) -> None:
    """Write the ids by which training begins, ends and pads targets into the configurations that are saved.

    What the model generates with comes first, then its configuration, then the tokenizer.

    Raises:
        ConfigError: no token to begin or to end with is configured.
    """
    config, options = model.config, model.generation_config
    end = target_end_token(config, tokenizer, options)
    starts = (
        options.decoder_start_token_id, config.decoder_start_token_id, options.bos_token_id,
        tokenizer.bos_token_id, tokenizer.cls_token_id,
    )  # fmt: skip
    start = next((one for one in starts if one is not None), None)
    if start is None:
        raise ConfigError("neither the model nor its tokenizer has a token that begins a text (bos_token or cls_token)")
    pads = (options.pad_token_id, config.pad_token_id, tokenizer.pad_token_id, end)
    pad = next(one for one in pads if one is not None)
    config.decoder_start_token_id, config.pad_token_id = start, pad
    options.decoder_start_token_id, options.pad_token_id = start, pad
    if end not in options.end_tokens:
        options.eos_token_id = end
    config.eos_token_id = options.eos_token_id
    if end not in tokenizer.all_special_ids:
        logger.warning(
            "targets end with id %s, the model's end token, which is no special token of its tokenizer (those are %s): "
            "decoded texts will contain it. model.config.eos_token_id sets the end token",
            end,
            tokenizer.all_special_ids,
        )


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
    with init_empty_weights():
        model = EncoderDecoderModel(config=halves)
    model.initialize_missing(like=torch.empty(0, dtype=torch.float32, device="cpu"))
    model.generation_config = GenerationConfig(max_length=config.max_length, **start)
    return model
