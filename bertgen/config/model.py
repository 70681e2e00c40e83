"""Configurations of encoders, decoders and encoder-decoders."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..arguments import directory_aliases, path_aliases
from ..errors import ConfigError, UnsupportedError, quoted
from ..hub import as_path, check_file, resolve_file, split_hub_options
from .base import Config, make_directory, read_json, write_json
from .validators import check_flag, check_integer, check_kind, check_number, check_special_ids, check_token_id

_SIZES = frozenset(
    "vocab_size hidden_size num_attention_heads intermediate_size max_position_embeddings type_vocab_size".split()
)


class _ModelConfig(Config):
    """Base of the model configurations."""

    model_type: ClassVar[str]

    @property
    def use_return_dict(self) -> bool:
        """Another name of `return_dict` in transformers."""
        return self.return_dict

    def update(self, values: dict[str, Any]) -> None:
        """Set options; ConfigError for an unknown one."""
        for name, value in values.items():
            setattr(self, name, value)

    @classmethod
    def of_argument(cls, value: Any) -> Any:
        """The configuration for an argument: one of this class, or one of transformers of the same kind.

        Raises:
            ConfigError: an argument of another type.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, (type, dict)) and getattr(value, "model_type", None) == cls.model_type:
            return cls.from_dict(value.to_dict())
        raise ConfigError(f"config must be of the class {cls.__name__}, got {quoted(value)}")

    @classmethod
    @path_aliases
    def get_config_dict(
        cls, path_or_id: str | os.PathLike, *, hub: dict[str, Any] | None = None, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of the `config.json` of a directory or hub id, or of another `.json` file.

        Returns:
            The content, and those of `options` that are no options of the download.
        """
        options, own = split_hub_options(options)
        path = as_path(path_or_id)
        if path.suffix != ".json" or not path.is_file():
            return read_json(resolve_file(path_or_id, "config.json", {**own, **(hub or {})})), options
        return read_json(check_file(path)), options

    @directory_aliases
    def save_pretrained(self, directory: str | os.PathLike, push_to_hub: bool = False) -> None:
        """Write `config.json` into `directory`, which is created if needed."""
        write_json(make_directory(directory, push_to_hub) / "config.json", self.to_dict())


@dataclass(init=False)
class BertGenerationConfig(_ModelConfig):
    """Shape and options of a BertGeneration encoder or decoder (Rothe et al. 2020, arXiv 1907.12461).

    Names and defaults are those of transformers' `BertGenerationConfig`.
    """

    model_type: ClassVar[str] = "bert-generation"

    vocab_size: int = 50358
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 1
    use_cache: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    cross_attention_hidden_size: int | None = None
    return_dict: bool = True
    output_hidden_states: bool = False
    output_attentions: bool = False

    def _checked(self, name: str, value: Any) -> Any:
        if name in _SIZES:
            return check_integer(1, value, name)
        if name == "num_hidden_layers":
            return check_integer(0, value, name)
        if name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            return check_number(0.0, 1.0, value, name)
        if name in ("initializer_range", "layer_norm_eps"):
            return check_number(0.0, float("inf"), value, name)
        if name == "cross_attention_hidden_size":
            return check_token_id(value, name)
        if name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            return check_special_ids(value, name)
        if name == "hidden_act":
            if not isinstance(value, str):
                raise ConfigError(f"hidden_act must be the name of an activation, got {quoted(value)}")
            return value
        if name == "model_type":
            return check_kind(self.model_type, value, name)
        return check_flag(value, name)

    @property
    def head_dim(self) -> int:
        """Columns of one attention head; ConfigError where the heads do not divide the hidden size."""
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self.hidden_size // self.num_attention_heads

    @property
    def first_position(self) -> int:
        """Row of the position table for the first token of a text."""
        return 0

    @property
    def max_tokens(self) -> int:
        """Maximum length of a text in tokens: the rows of the position table for tokens."""
        return self.max_position_embeddings - self.first_position

    def to_dict(self) -> dict[str, Any]:
        """Content of config.json, as transformers reads it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**self.extra, **own, "model_type": self.model_type}

    @classmethod
    @path_aliases
    def from_pretrained(cls, path_or_id: str | os.PathLike, *, hub: dict[str, Any] | None = None, **overrides: Any):
        """Read `config.json` of a directory or hub id; `overrides` replace single options.

        Args:
            path_or_id: directory, hub id, or a file of a configuration.
            hub: `revision`, `cache_dir`, `token`, `local_files_only`, .. (see `bertgen.hub.resolve_file`), which may
                be among the overrides, too.
            overrides: options, and return_unused_kwargs as of `from_dict`.
        """
        values, overrides = cls.get_config_dict(path_or_id, hub=hub, **overrides)
        if isinstance(values.get("encoder"), dict) and isinstance(values.get("decoder"), dict):
            raise UnsupportedError(
                f"{path_or_id} is an encoder-decoder; load an EncoderDecoderModel and take its .encoder or .decoder"
            )
        return cls.from_dict(values, **overrides)


@dataclass(init=False)
class BertConfig(BertGenerationConfig):
    """Shape and options of a BERT encoder or decoder (Devlin et al. 2018, arXiv 1810.04805).

    It has token types, and an LM head with a transform. Names and defaults are those of transformers' `BertConfig`.
    """

    model_type: ClassVar[str] = "bert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    type_vocab_size: int = 2


@dataclass(init=False)
class RobertaConfig(BertConfig):
    """Shape and options of a RoBERTa encoder or decoder (Liu et al. 2019, arXiv 1907.11692).

    A BERT with positions that start after the padding id. Names and defaults are those of transformers'
    `RobertaConfig`.
    """

    model_type: ClassVar[str] = "roberta"

    vocab_size: int = 50265
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2

    @property
    def first_position(self) -> int:
        """Row of the position table for the first token of a text; the rows up to the padding id are for padding."""
        if self.pad_token_id is None:
            raise ConfigError("a roberta half needs pad_token_id: its positions start after it")
        return self.pad_token_id + 1


HALVES = {config.model_type: config for config in (BertGenerationConfig, BertConfig, RobertaConfig)}


def half_config(value: Any, name: str = "config") -> BertGenerationConfig:
    """The configuration of an encoder or decoder, from one, a dict, or a configuration of transformers.

    Args:
        name: of the argument, for errors.

    Raises:
        ConfigError: an argument of another type. UnsupportedError: a `model_type` that bertgen does not have.
    """
    if isinstance(value, BertGenerationConfig):
        return value
    if hasattr(value, "to_dict"):  # a configuration object of transformers
        value = value.to_dict()
    if not isinstance(value, dict):
        raise ConfigError(
            f"EncoderDecoderConfig needs {name}= (a dict or a configuration of a half), got {quoted(value)}"
        )
    kind = value.get("model_type", BertGenerationConfig.model_type)
    if kind not in tuple(HALVES):  # a value from a file may not be hashable
        raise UnsupportedError(f"{name} is of kind {kind!r}; bertgen runs halves of the kinds {', '.join(HALVES)}")
    return HALVES[kind].from_dict(value)


@dataclass(init=False)
class EncoderDecoderConfig(_ModelConfig):
    """An encoder and a decoder that form a sequence-to-sequence model.

    Args:
        encoder, decoder: `BertGenerationConfig`, `BertConfig`, `RobertaConfig`, or a dict of options with the
            `model_type` "bert-generation" (the default), "bert" or "roberta".
        tie_encoder_decoder: the encoder shares the weights of the decoder (all but cross-attention and LM head).
        pad_token_id, decoder_start_token_id, bos_token_id, eos_token_id: needed to build decoder inputs from labels.
    """

    model_type: ClassVar[str] = "encoder-decoder"

    encoder: BertGenerationConfig = None  # a dict is converted; None raises ConfigError
    decoder: BertGenerationConfig = None
    pad_token_id: int | None = None
    decoder_start_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_encoder_decoder: bool = False
    tie_word_embeddings: bool = True
    use_cache: bool = True
    return_dict: bool = True
    output_hidden_states: bool = False
    output_attentions: bool = False

    def _checked(self, name: str, value: Any) -> Any:
        if name in ("encoder", "decoder"):
            return half_config(value, name)
        if name in ("pad_token_id", "decoder_start_token_id", "bos_token_id", "eos_token_id"):
            return check_special_ids(value, name)
        if name == "model_type":
            return check_kind(self.model_type, value, name)
        return check_flag(value, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "vocab_size":  # set by tutorials of transformers; kept without an effect
            self.extra[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def is_encoder_decoder(self) -> bool:
        return True

    @classmethod
    def from_encoder_decoder_configs(cls, encoder_config, decoder_config, **options: Any) -> EncoderDecoderConfig:
        """Join an encoder and a decoder, which becomes causal, with cross-attention."""
        decoder = half_config(decoder_config, "decoder")
        if decoder is encoder_config:  # the changes below are not for the encoder
            decoder = copy.deepcopy(decoder)
        decoder.is_decoder = decoder.add_cross_attention = True
        return cls(encoder=encoder_config, decoder=decoder, **options)

    def to_dict(self) -> dict[str, Any]:
        """Content of config.json, as transformers reads it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        own |= {"encoder": self.encoder.to_dict(), "decoder": self.decoder.to_dict()}
        return {**self.extra, **own, "is_encoder_decoder": True, "model_type": self.model_type}

    @classmethod
    @path_aliases
    def from_pretrained(cls, path_or_id: str | os.PathLike, *, hub: dict[str, Any] | None = None, **overrides: Any):
        """Read `config.json` of a directory or hub id, as `BertGenerationConfig.from_pretrained` does."""
        values, overrides = cls.get_config_dict(path_or_id, hub=hub, **overrides)
        kind = values.get("model_type")
        if kind != cls.model_type:
            hint = ""
            if kind in tuple(HALVES):
                hint = (
                    "; `EncoderDecoderModel.from_encoder_decoder_pretrained` or `bertgen train --model` makes one of it"
                )
            raise UnsupportedError(f"{path_or_id} is a checkpoint of kind {kind!r}, not 'encoder-decoder'{hint}")
        return cls.from_dict(values, **overrides)
