"""Converts a model to a safetensors checkpoint with current names, to a BART for transformers, or to CTranslate2.

A bert-generation encoder-decoder has the architecture of BART (Lewis et al. 2019, arXiv 1910.13461): layers with
LayerNorm after the residual, learned positions (of which BART never reads two rows), a LayerNorm on the embeddings, erf
GELU, unscaled embeddings, a bias on the logits. Two things differ: the names, and the epsilon of LayerNorm, which is
always 1e-5 in BART.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from . import checkpoint
from .config import BertGenerationConfig, EncoderDecoderConfig, Int4Config, read_json, write_json
from .errors import ConfigError, UnsupportedError
from .model import EncoderDecoderModel
from .optional_imports import load_ctranslate2, load_transformers, silence
from .tokenizer import AutoTokenizer, Tokenizer

BART_EPSILON = 1e-5
BART_UNREAD_POSITIONS = 2

# Module of a layer -> module of a BART layer.
_BART_MODULES = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "crossattention.self.query": "encoder_attn.q_proj",
    "crossattention.self.key": "encoder_attn.k_proj",
    "crossattention.self.value": "encoder_attn.v_proj",
    "crossattention.output.dense": "encoder_attn.out_proj",
    "crossattention.output.LayerNorm": "encoder_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}


@dataclass(frozen=True)
class Drift:
    """The effect of another epsilon on a model's logits, on random tokens.

    Attributes:
        logit: largest difference of a logit.
        relative: this difference divided by the largest logit.
        positions: number of positions compared.
        turned: number of positions at which another token has the largest logit.
    """

    logit: float
    relative: float
    positions: int
    turned: int


def convert(
    path_or_id: str | os.PathLike,
    directory: str | os.PathLike,
    to: str = "bertgen",
    *,
    tokenizer: str | os.PathLike | None = None,
    dtype: torch.dtype | str | None = None,
    int4: Int4Config | None = None,
) -> Drift | None:
    """Write a model and its tokenizer into a new directory, which appears when it is complete.

    Args:
        path_or_id: an encoder-decoder in any layout that `from_pretrained` reads.
        directory: must not exist, or be empty.
        to: "bertgen": safetensors with current names, which transformers loads as well. "bart": a BART for
            transformers. "ct2": a CTranslate2 model; this needs the packages ctranslate2 and transformers.
        tokenizer: directory or hub id of the tokenizer; None takes the model's.
        dtype: dtype of the weights; None takes the checkpoint's.
        int4: hold the weights of linear layers in 4 bits, and the other ones in 16 bits; for "bertgen" only.
            transformers loads the result after `register_with_transformers()`. Weights that both halves share are
            written once.

    Returns:
        The effect of BART's epsilon; None for "bertgen", and for "ct2", which keeps the model's epsilon.

    Raises:
        ConfigError: an unknown format, a directory that is not empty, or a 4-bit checkpoint to be rounded again.
        UnsupportedError: the model cannot be a BART; the message names the difference.
        BackendError: a package is missing.
        CheckpointError: as `EncoderDecoderModel.from_pretrained`.
    """
    if to not in ("bertgen", "bart", "ct2"):
        raise ConfigError(f"to must be bertgen, bart or ct2, got {to!r}")
    if int4 is not None and to != "bertgen":
        raise ConfigError(f"weights in 4 bits are for bertgen, not for {to}")
    target = Path(directory)
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"{target} exists and is not empty; a conversion needs a new folder")
    packages = None
    if to == "ct2":
        purpose = "conversion to CTranslate2"
        packages = _Packages(load_ctranslate2(purpose), load_transformers(purpose))
    if to != "bertgen":
        check_bart(EncoderDecoderConfig.from_pretrained(path_or_id))
    model = EncoderDecoderModel.from_pretrained(path_or_id, dtype=dtype, quantization_config=int4)
    if to != "bertgen":
        model.dequantize()
    text_tokenizer = AutoTokenizer.from_pretrained(path_or_id if tokenizer is None else tokenizer)
    if packages is not None:
        _check_ctranslate2(model, text_tokenizer)
    with checkpoint.new_directory(target) as path:
        if packages is not None:
            _write_ctranslate2(model, text_tokenizer, path, packages)
        elif to == "bart":
            _write_bart(model, text_tokenizer, path)
        else:
            half = "float16" if int4 is not None and model.dtype == torch.float32 else None
            model.save_pretrained(path, deduplicate=int4 is not None, stored_dtype=half)
            text_tokenizer.save_pretrained(path)
    return epsilon_drift(model.float()) if to == "bart" else None


class _Packages(NamedTuple):
    """The packages that a conversion to CTranslate2 needs."""

    ctranslate2: Any
    transformers: Any


def check_bart(config: EncoderDecoderConfig) -> None:
    """UnsupportedError unless a model of this configuration can be a BART."""
    halves = {"encoder": config.encoder, "decoder": config.decoder}
    for name, half in halves.items():
        if type(half) is not BertGenerationConfig:
            raise UnsupportedError(f"the {name} is of kind {half.model_type!r}; a BART needs bert-generation")
        if half.hidden_act != "gelu":
            raise UnsupportedError(f"the {name} has hidden_act {half.hidden_act!r}; only 'gelu' is converted")
    for field in ("hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings"):
        one, other = (getattr(half, field) for half in halves.values())
        if one != other:
            raise UnsupportedError(f"{field} is {one} in the encoder and {other} in the decoder; a BART has one value")


def _check_ctranslate2(model: EncoderDecoderModel, tokenizer: Tokenizer) -> None:
    encoder, decoder = model.config.encoder, model.config.decoder
    if encoder.layer_norm_eps != decoder.layer_norm_eps:
        raise UnsupportedError(
            f"layer_norm_eps is {encoder.layer_norm_eps} in the encoder and {decoder.layer_norm_eps} in the decoder; "
            "CTranslate2 has one value for both"
        )
    if len(tokenizer) < decoder.vocab_size:
        raise UnsupportedError(
            f"the tokenizer has {len(tokenizer)} tokens, the model a vocabulary of {decoder.vocab_size}; for "
            "CTranslate2 each id needs a token"
        )


def bart_config(model: EncoderDecoderModel) -> dict[str, Any]:
    """The config.json of the model as a BART."""
    config, (encoder, decoder) = model.config, (model.config.encoder, model.config.decoder)
    options = model.generation_config
    start = options.bos_token_id if options.decoder_start_token_id is None else options.decoder_start_token_id
    if start is None:
        raise ConfigError("a BART needs the model's decoder_start_token_id or bos_token_id")
    ids = {name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        "is_encoder_decoder": True,
        "vocab_size": decoder.vocab_size,
        "d_model": decoder.hidden_size,
        "encoder_layers": encoder.num_hidden_layers,
        "decoder_layers": decoder.num_hidden_layers,
        "encoder_attention_heads": encoder.num_attention_heads,
        "decoder_attention_heads": decoder.num_attention_heads,
        "encoder_ffn_dim": encoder.intermediate_size,
        "decoder_ffn_dim": decoder.intermediate_size,
        "max_position_embeddings": decoder.max_position_embeddings,
        "activation_function": decoder.hidden_act,
        "dropout": decoder.hidden_dropout_prob,
        "attention_dropout": decoder.attention_probs_dropout_prob,
        "activation_dropout": 0.0,
        "init_std": decoder.initializer_range,
        "scale_embedding": False,
        "use_cache": config.use_cache,
        **{name: getattr(decoder, name) if value is None else value for name, value in ids.items()},
        "decoder_start_token_id": start,
        "forced_eos_token_id": None,  # BART's own default would force one
        "tie_word_embeddings": _has_one_table(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        # CTranslate2 reads these, transformers does not.
        "normalize_before": False,
        "normalize_embedding": True,
        "static_position_embeddings": False,
    }


def bart_state(model: EncoderDecoderModel) -> dict[str, torch.Tensor]:
    """The model's tensors with BART's names; one word embedding if all three are equal, else each of them."""
    tables, state = _tables(model), {}
    if _has_one_table(model):
        state["model.shared.weight"] = tables[0]
    else:
        state["model.shared.weight"] = tables[1]  # never read, but it must exist
        names = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
        state.update(zip(names, tables, strict=True))
    for half, stack in (("encoder", model.encoder), ("decoder", model.decoder.body)):
        table, norm = stack.embeddings.position_embeddings.weight, stack.embeddings.LayerNorm
        unread = table.new_zeros(BART_UNREAD_POSITIONS, table.shape[1])
        state[f"model.{half}.embed_positions.weight"] = torch.cat([unread, table])
        state[f"model.{half}.layernorm_embedding.weight"] = norm.weight
        state[f"model.{half}.layernorm_embedding.bias"] = norm.bias
        for index, layer in enumerate(stack.encoder.layer):
            for name, tensor in layer.state_dict().items():
                part, _, kind = name.rpartition(".")
                state[f"model.{half}.layers.{index}.{_BART_MODULES[part]}.{kind}"] = tensor
    state["final_logits_bias"] = model.decoder.head.decoder.bias[None]
    return {name: tensor.detach() for name, tensor in state.items()}


@torch.no_grad()
def epsilon_drift(model: EncoderDecoderModel, epsilon: float = BART_EPSILON) -> Drift:
    """The effect of another LayerNorm epsilon, on 8 random texts of at most 32 tokens; the model is not changed."""
    draw = torch.Generator("cpu").manual_seed(0)
    config = model.config.decoder
    shape = 8, min(32, config.max_tokens, model.config.encoder.max_tokens)
    halves = (model.config.encoder, config)
    ids, inputs = (
        torch.randint(half.vocab_size, shape, generator=draw, device="cpu").to(model.device) for half in halves
    )
    mask = torch.ones_like(inputs, dtype=torch.bool)

    def logits() -> torch.Tensor:
        return model.decoder.head(model.target_states(ids, None, inputs, mask)[0]).float()

    own = logits()
    with _epsilon(model, epsilon):
        other = logits()
    largest = float((own - other).abs().max())
    turned = int((own.argmax(1) != other.argmax(1)).sum())
    return Drift(largest, largest / float(own.abs().max()), len(own), turned)


@contextmanager
def _epsilon(model: nn.Module, epsilon: float) -> Iterator[None]:
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    own = [norm.eps for norm in norms]
    for norm in norms:
        norm.eps = epsilon
    try:
        yield
    finally:
        for norm, value in zip(norms, own, strict=True):
            norm.eps = value


def _tables(model: EncoderDecoderModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Word embeddings of the encoder, of the decoder, and the weight of the head."""
    encoder, decoder = model.encoder.get_input_embeddings(), model.decoder.get_input_embeddings()
    return encoder.weight, decoder.weight, model.decoder.head.decoder.weight


def _has_one_table(model: EncoderDecoderModel) -> bool:
    first, *others = _tables(model)
    return all(torch.equal(first, other) for other in others)


def _write_bart(model: EncoderDecoderModel, tokenizer: Tokenizer, directory: Path) -> None:
    write_json(directory / "config.json", bart_config(model))
    model.generation_config.save_pretrained(directory)
    checkpoint.save_state(directory, bart_state(model), safe_serialization=True, max_shard_size="5GB")
    tokenizer.save_pretrained(directory)


def _write_ctranslate2(model: EncoderDecoderModel, tokenizer: Tokenizer, directory: Path, packages: _Packages) -> None:
    """Write a BART, let CTranslate2's loader convert it, and set the model's epsilon."""
    with tempfile.TemporaryDirectory(dir=directory.parent) as bart:
        _write_bart(model, tokenizer, Path(bart))
        with silence(packages.transformers):
            packages.ctranslate2.converters.TransformersConverter(bart).convert(str(directory), force=True)
    config = read_json(directory / "config.json")
    write_json(directory / "config.json", {**config, "layer_norm_epsilon": model.config.decoder.layer_norm_eps})
    tokenizer.save_pretrained(directory)
