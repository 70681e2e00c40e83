"""Configurations: what a model is, and how it generates. Unknown names raise; values are checked when they are set."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from .errors import (  # noqa: F401  (the errors are part of this module's face)
    BackendError,
    BertgenError,
    CheckpointError,
    ConfigError,
    InputError,
    UnsupportedError,
)
from .hub import resolve_file

# Keys that transformers writes or wrote into config.json and that change nothing here: read, kept, written back.
INERT_KEYS = frozenset(
    "architectures attn_implementation chunk_size_feed_forward classifier_dropout directionality dtype finetuning_task "
    "gradient_checkpointing id2label is_encoder_decoder label2id name_or_path output_attentions "
    "position_embedding_type problem_type pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
    "pooler_size_per_head pooler_type prefix sep_token_id task_specific_params tokenizer_class torch_dtype "
    "transformers_version type_vocab_size xla_device".split()
)


@dataclass(init=False)
class _Config:
    """A set of named options with checked values; keys without a meaning here are kept in `extra`."""

    extra: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __init__(self, **options: Any):
        object.__setattr__(self, "extra", {})
        known = {f.name: f for f in fields(self) if f.name != "extra"}
        for name in options:
            if name not in known and name not in INERT_KEYS:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"{type(self).__name__} has no option {name!r}{hint}")
        for name, f in known.items():
            setattr(self, name, options.get(name, f.default))
        self.extra.update((name, options[name]) for name in options if name not in known)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dataclass_fields__:
            if name not in INERT_KEYS:
                raise ConfigError(f"{type(self).__name__} has no option {name!r}")
            self.extra[name] = value
            return
        object.__setattr__(self, name, self._checked(name, value))

    def _checked(self, name: str, value: Any) -> Any:
        return value

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any):
        """Build from the content of a JSON file, keeping keys that mean nothing here; `overrides` are options."""
        names = {f.name for f in fields(cls)} - {"extra"}
        config = cls(**{**{name: value for name, value in values.items() if name in names}, **overrides})
        config.extra.update((k, v) for k, v in values.items() if k not in names and k != "model_type")
        return config


def _integer(low: int, value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**31:
        raise ConfigError(f"{name} must be an integer from {low} to {2**31 - 1}, got {value!r}")
    return value


def _number(low: float, high: float, value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"{name} must be a number from {low} to {high}, got {value!r}")
    return float(value)


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}")
    return value


def _token_id(value: Any, name: str) -> int | None:
    return None if value is None else _integer(0, value, name)


def _token_ids(value: Any, name: str) -> int | list[int] | None:
    if isinstance(value, (list, tuple)):
        if not value:
            raise ConfigError(f"{name} is an empty list")
        return [_integer(0, v, name) for v in value]
    return _token_id(value, name)


@dataclass(init=False)
class BertGenerationConfig(_Config):
    """Shape and options of one half: a BertGeneration encoder or decoder (Rothe et al. 2020, arXiv 1907.12461).

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

    def _checked(self, name: str, value: Any) -> Any:
        if name in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings"):
            return _integer(1, value, name)
        if name == "num_hidden_layers":
            return _integer(0, value, name)
        if name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            return _number(0.0, 1.0, value, name)
        if name in ("initializer_range", "layer_norm_eps"):
            return _number(0.0, float("inf"), value, name)
        if name in ("pad_token_id", "bos_token_id", "cross_attention_hidden_size"):
            return _token_id(value, name)
        if name == "eos_token_id":
            return _token_ids(value, name)
        if name == "hidden_act":
            if not isinstance(value, str):
                raise ConfigError(f"hidden_act must be the name of an activation, got {value!r}")
            return value
        return _flag(value, name)

    @property
    def head_dim(self) -> int:
        """Columns of one attention head; ConfigError where the heads do not divide the hidden size."""
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self.hidden_size // self.num_attention_heads

    def to_dict(self) -> dict[str, Any]:
        """Content of config.json, in the form transformers reads."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**self.extra, **own, "model_type": self.model_type}

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike, *, hub: dict[str, Any] | None = None, **overrides: Any):
        """Read `config.json` of a directory or hub id; `overrides` replace single options.

        Args:
            path_or_id: directory or hub id.
            hub: `revision`, `cache_dir`, `token`, `local_files_only` (see `bertgen.hub.resolve_file`).
        """
        overrides, hub = _split_hub_options(overrides, hub)
        return cls.from_dict(read_json(resolve_file(path_or_id, "config.json", **hub)), **overrides)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write `config.json` into `directory`."""
        write_json(Path(directory) / "config.json", self.to_dict())


def _half(value: Any, name: str) -> BertGenerationConfig:
    if isinstance(value, BertGenerationConfig):
        return value
    if hasattr(value, "to_dict"):  # a configuration object of transformers
        value = value.to_dict()
    if not isinstance(value, dict):
        raise ConfigError(f"EncoderDecoderConfig needs {name}= (a dict or a BertGenerationConfig), got {value!r}")
    kind = value.get("model_type", BertGenerationConfig.model_type)
    if kind != BertGenerationConfig.model_type:
        raise UnsupportedError(f"{name} is of kind {kind!r}; bertgen runs halves of kind 'bert-generation'")
    return BertGenerationConfig.from_dict(value)


@dataclass(init=False)
class EncoderDecoderConfig(_Config):
    """Two halves that form a sequence-to-sequence model.

    Args:
        encoder, decoder: `BertGenerationConfig` or a dict of its options.
        tie_encoder_decoder: the decoder's weights serve as the encoder's too (all but cross-attention and LM head).
        pad_token_id, decoder_start_token_id, bos_token_id, eos_token_id: needed to build decoder inputs from labels.
    """

    model_type: ClassVar[str] = "encoder-decoder"

    encoder: BertGenerationConfig = None  # a dict becomes one; None is refused
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

    def _checked(self, name: str, value: Any) -> Any:
        if name in ("encoder", "decoder"):
            return _half(value, name)
        if name in ("pad_token_id", "decoder_start_token_id", "bos_token_id"):
            return _token_id(value, name)
        if name == "eos_token_id":
            return _token_ids(value, name)
        return _flag(value, name)

    @property
    def is_encoder_decoder(self) -> bool:
        return True

    @classmethod
    def from_encoder_decoder_configs(cls, encoder_config, decoder_config, **options: Any) -> EncoderDecoderConfig:
        """Join two halves; the decoder becomes one (causal, with cross-attention)."""
        decoder = _half(decoder_config, "decoder")
        decoder.is_decoder = decoder.add_cross_attention = True
        return cls(encoder=encoder_config, decoder=decoder, **options)

    def to_dict(self) -> dict[str, Any]:
        """Content of config.json, in the form transformers reads."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        own |= {"encoder": self.encoder.to_dict(), "decoder": self.decoder.to_dict()}
        return {**self.extra, **own, "is_encoder_decoder": True, "model_type": self.model_type}

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike, *, hub: dict[str, Any] | None = None, **overrides: Any):
        """Read `config.json` of a directory or hub id, as `BertGenerationConfig.from_pretrained` does."""
        overrides, hub = _split_hub_options(overrides, hub)
        values = read_json(resolve_file(path_or_id, "config.json", **hub))
        kind = values.get("model_type")
        if kind != cls.model_type:
            raise UnsupportedError(f"{path_or_id} is a checkpoint of kind {kind!r}, not 'encoder-decoder'")
        return cls.from_dict(values, **overrides)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write `config.json` into `directory`."""
        write_json(Path(directory) / "config.json", self.to_dict())


@dataclass(init=False)
class GenerationConfig(_Config):
    """How to generate. None means "not set": the next lower level decides.

    Levels, highest first, as in transformers: keyword of `generate`, the `generation_config` passed to it, the
    model's own (`generation_config.json`), the defaults of `GenerationConfig.DEFAULTS`.

    Args:
        max_length: length of the output in tokens, the decoder's start token included.
        max_new_tokens: the same without the start token or prefix; wins over `max_length`.
        min_length, min_new_tokens: lengths under which no end token is chosen.
        do_sample: draw tokens instead of taking the best.
        num_beams: width of the beam search; 1 is greedy or sampling.
        num_return_sequences: outputs per input (n-best under beams).
        temperature, top_k, top_p, min_p: shape the distribution that is drawn from.
        repetition_penalty: above 1 makes tokens that occurred already less likely (Keskar et al. 2019).
        no_repeat_ngram_size: no n-gram of this size occurs twice.
        length_penalty: exponent of the length that divides a hypothesis' log-probability.
        early_stopping: True, False or "never": when a beam search gives up looking for better hypotheses.
        pad_token_id, bos_token_id, eos_token_id, decoder_start_token_id: special ids.
        use_cache: accepted as in transformers; keys and values are kept either way, the tokens are the same.
        return_dict_in_generate, output_scores: what `generate` returns.
        infer_attention_mask: where no mask is given, treat pad ids of the input as padding.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    num_beams: int | None = None
    num_return_sequences: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None
    use_cache: bool | None = None
    return_dict_in_generate: bool | None = None
    output_scores: bool | None = None
    infer_attention_mask: bool | None = None

    DEFAULTS: ClassVar[dict[str, Any]] = dict(
        min_length=0,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        length_penalty=1.0,
        early_stopping=False,
        use_cache=True,
        return_dict_in_generate=False,
        output_scores=False,
        infer_attention_mask=True,
    )
    DEFAULT_NEW_TOKENS: ClassVar[int] = 20
    # Options of transformers that bertgen does not have, with the value that switches each of them off.
    UNSUPPORTED: ClassVar[dict[str, Any]] = dict(
        num_beam_groups=1,
        diversity_penalty=0.0,
        guidance_scale=None,
        sequence_bias=None,
        encoder_repetition_penalty=1.0,
        encoder_no_repeat_ngram_size=0,
        bad_words_ids=None,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
        remove_invalid_values=False,
        exponential_decay_length_penalty=None,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        top_h=None,
        typical_p=1.0,
        epsilon_cutoff=0.0,
        eta_cutoff=0.0,
        watermarking_config=None,
        renormalize_logits=False,
        penalty_alpha=None,
        dola_layers=None,
        constraints=None,
        force_words_ids=None,
        max_time=None,
        stop_strings=None,
        output_attentions=False,
        output_hidden_states=False,
        output_logits=None,
        cache_implementation=None,
        prompt_lookup_num_tokens=None,
        token_healing=False,
        low_memory=None,
    )

    def _checked(self, name: str, value: Any) -> Any:
        if value is None:
            return None
        if name in ("max_length", "max_new_tokens", "num_beams", "num_return_sequences"):
            return _integer(1, value, name)
        if name in ("min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size"):
            return _integer(0, value, name)
        if name in ("top_p", "min_p"):
            return _number(0.0, 1.0, value, name)
        if name in ("temperature", "repetition_penalty"):
            if _number(0.0, float("inf"), value, name) == 0.0:
                raise ConfigError(f"{name} must be above 0, got {value!r}")
            return float(value)
        if name == "length_penalty":
            return _number(-float("inf"), float("inf"), value, name)
        if name == "early_stopping":
            if value not in (True, False, "never"):
                raise ConfigError(f"early_stopping must be True, False or 'never', got {value!r}")
            return value
        if name == "eos_token_id":
            return _token_ids(value, name)
        if name.endswith("_token_id"):
            return _token_id(value, name)
        return _flag(value, name)

    @property
    def end_tokens(self) -> list[int]:
        """The ids that end an output: `eos_token_id` as a list, empty where it is not set."""
        end = self.eos_token_id
        return [] if end is None else end if isinstance(end, list) else [end]

    def to_dict(self) -> dict[str, Any]:
        """The options that are set, and the keys that came from a file."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**self.extra, **{name: value for name, value in own.items() if value is not None}}

    def over(self, lower: GenerationConfig | None) -> GenerationConfig:
        """These options, with those of `lower` where they are not set."""
        values = {} if lower is None else lower.to_dict()
        if self.max_length is not None or self.max_new_tokens is not None:  # two names of one option
            values.pop("max_length", None), values.pop("max_new_tokens", None)
        return GenerationConfig.from_dict({**values, **self.to_dict()})

    def check_supported(self) -> None:
        """Raise UnsupportedError where a file or a caller asks for something bertgen would otherwise ignore."""
        for name, off in self.UNSUPPORTED.items():
            value = self.extra.get(name, off)
            if value is not None and value != off:
                raise UnsupportedError(f"generation option {name}={value!r} is not supported")

    @classmethod
    def of_call(cls, options: dict[str, Any]) -> GenerationConfig:
        """The keywords of one `generate` call; unknown names raise ConfigError, unsupported ones UnsupportedError."""
        known = {name: value for name, value in options.items() if name not in cls.UNSUPPORTED}
        config = cls(**known)
        config.extra.update((name, value) for name, value in options.items() if name in cls.UNSUPPORTED)
        config.check_supported()
        return config

    @classmethod
    def from_model_config(cls, config: EncoderDecoderConfig | BertGenerationConfig) -> GenerationConfig:
        """What a model without `generation_config.json` generates with: the special ids of its configuration."""
        names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
        halves = [config, getattr(config, "decoder", None)]
        found = {name: next((v for h in halves if (v := getattr(h, name, None)) is not None), None) for name in names}
        # Checkpoints older than generation_config.json kept these options in config.json.
        legacy = {f.name: config.extra[f.name] for f in fields(cls) if f.name in config.extra}
        return cls.from_dict({**found, **legacy})

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike, **hub: Any) -> GenerationConfig:
        """Read `generation_config.json` of a directory or hub id."""
        return cls.from_dict(read_json(resolve_file(path_or_id, "generation_config.json", **hub)))

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write `generation_config.json` into `directory`."""
        write_json(Path(directory) / "generation_config.json", self.to_dict())


def _split_hub_options(options: dict[str, Any], hub: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    names = ("revision", "cache_dir", "token", "local_files_only")
    return {k: v for k, v in options.items() if k not in names}, {
        **{k: v for k, v in options.items() if k in names},
        **(hub or {}),
    }


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; CheckpointError with the file's name where it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(values).__name__}")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
