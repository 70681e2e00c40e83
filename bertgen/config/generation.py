"""How a model generates."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from ..errors import ConfigError, UnsupportedError
from ..hub import resolve_file
from .base import (
    Config,
    check_flag,
    check_integer,
    check_number,
    check_token_id,
    check_token_ids,
    read_json,
    write_json,
)
from .model import BertGenerationConfig, EncoderDecoderConfig


@dataclass(init=False)
class GenerationConfig(Config):
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
            return check_integer(1, value, name)
        if name in ("min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size"):
            return check_integer(0, value, name)
        if name in ("top_p", "min_p"):
            return check_number(0.0, 1.0, value, name)
        if name in ("temperature", "repetition_penalty"):
            if check_number(0.0, float("inf"), value, name) == 0.0:
                raise ConfigError(f"{name} must be above 0, got {value!r}")
            return float(value)
        if name == "length_penalty":
            return check_number(-float("inf"), float("inf"), value, name)
        if name == "early_stopping":
            if value not in (True, False, "never"):
                raise ConfigError(f"early_stopping must be True, False or 'never', got {value!r}")
            return value
        if name == "eos_token_id":
            return check_token_ids(value, name)
        if name.endswith("_token_id"):
            return check_token_id(value, name)
        return check_flag(value, name)

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
