"""GenerationConfig: the options of `generate`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from ..arguments import directory_aliases, path_aliases
from ..errors import ConfigError, UnsupportedError, quoted
from ..hub import resolve_file, split_hub_options
from .base import ELSEWHERE, Config, make_directory, read_json, write_json
from .model import BertGenerationConfig, EncoderDecoderConfig
from .validators import check_flag, check_integer, check_number, check_token_id, check_token_ids

logger = logging.getLogger(__name__)
SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
SAMPLE_OPTIONS = ("temperature", "top_k", "top_p", "min_p")  # those of `ops.sample`, of each row


@dataclass(init=False)
class GenerationConfig(Config):
    """Options of `generate`. None means "not set": the next lower level decides.

    Levels, highest first, as in transformers: the keywords of `generate`, the `generation_config` passed to it, the
    model's own (`generation_config.json`), and `GenerationConfig.DEFAULTS`.

    Args:
        max_length: maximum length of the output in tokens, with the start token or prompt.
        max_new_tokens: the same without them; takes precedence over `max_length`.
        min_length, min_new_tokens: no end token is chosen below these lengths.
        max_time: seconds after which no further step begins.
        stop_strings: a text or texts; an output ends with the token that completes one of them. Needs `tokenizer=`.
        do_sample: sample tokens instead of choosing the best; with beams, sample the candidates of each step.
        num_beams: width of the beam search; 1 is greedy search or sampling.
        num_beam_groups: number of groups of beams, each with num_beams / num_beam_groups beams and its own search
            (Vijayakumar et al. 2016, arXiv 1610.02424).
        diversity_penalty: subtracted from a token's score for each time that earlier groups chose it in the step.
        num_return_sequences: outputs per input (n-best under beams).
        length_penalty: the log-probability of a hypothesis is divided by its length to this power.
        early_stopping: True, False or "never": when a beam search stops looking for better hypotheses.
        sequence_bias: added to the score of the token that completes a sequence: {(ids): bias} or [[ids, bias], ...].
        encoder_repetition_penalty: above 1 makes tokens of the input more likely.
        repetition_penalty: above 1 makes tokens of the output so far less likely (Keskar et al. 2019).
        no_repeat_ngram_size: no n-gram of this size occurs twice.
        encoder_no_repeat_ngram_size: no n-gram of this size in the input occurs in the output.
        bad_words_ids: lists of ids that do not occur in the output.
        forced_bos_token_id: the first token after the start token.
        forced_eos_token_id: the last token (or tokens) of an output of maximum length.
        remove_invalid_values: nan and infinite scores become 0 and the largest and smallest numbers.
        exponential_decay_length_penalty: (start, factor): after `start` new tokens the end token becomes more likely in
            each step.
        suppress_tokens, begin_suppress_tokens: ids that are never chosen, or not as the first new token.
        temperature, top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff: change the distribution that is
            sampled from, in this order; see `bertgen.kernels.select`.
        renormalize_logits: turn scores into log-probabilities after all of the above.
        pad_token_id, bos_token_id, eos_token_id, decoder_start_token_id: special ids.
        use_cache: False returns no cache. Tokens are the same. With returned attentions or hidden states each step
            computes all tokens again and returns those of all; otherwise a cache is used in any case.
        return_dict_in_generate: return a `GenerateOutput`, with the fields that output_scores (processed),
            output_logits (raw), output_attentions and output_hidden_states switch on.
        infer_attention_mask: without a mask, treat pad ids of the input as padding.
    """

    INERT: ClassVar[frozenset[str]] = frozenset(("transformers_version",))

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    max_time: float | None = None
    stop_strings: str | list[str] | None = None
    do_sample: bool | None = None
    num_beams: int | None = None
    num_beam_groups: int | None = None
    diversity_penalty: float | None = None
    num_return_sequences: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    sequence_bias: dict[tuple[int, ...], float] | list[list[Any]] | None = None
    encoder_repetition_penalty: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: list[list[int]] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    remove_invalid_values: bool | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    temperature: float | None = None
    top_h: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    renormalize_logits: bool | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None
    use_cache: bool | None = None
    return_dict_in_generate: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    infer_attention_mask: bool | None = None

    DEFAULTS: ClassVar[dict[str, Any]] = dict(
        min_length=0,
        do_sample=False,
        num_beams=1,
        num_beam_groups=1,
        diversity_penalty=0.0,
        num_return_sequences=1,
        length_penalty=1.0,
        early_stopping=False,
        encoder_repetition_penalty=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        encoder_no_repeat_ngram_size=0,
        remove_invalid_values=False,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        typical_p=1.0,
        epsilon_cutoff=0.0,
        eta_cutoff=0.0,
        renormalize_logits=False,
        use_cache=True,
        return_dict_in_generate=False,
        output_scores=False,
        output_logits=False,
        output_attentions=False,
        output_hidden_states=False,
        infer_attention_mask=True,
    )
    DEFAULT_NEW_TOKENS: ClassVar[int] = 20
    # Options of transformers that bertgen does not have -> the value (besides None) that switches the option off.
    UNSUPPORTED: ClassVar[dict[str, Any]] = dict(
        guidance_scale=1,
        negative_prompt_ids=None,
        negative_prompt_attention_mask=None,
        watermarking_config=None,
        penalty_alpha=0,
        dola_layers=None,
        constraints=None,
        force_words_ids=None,
        assistant_model=None,
        assistant_tokenizer=None,
        assistant_early_exit=None,
        is_assistant=False,
        prompt_lookup_num_tokens=None,
        speculation_type=None,
        use_mtp=False,
        cache_implementation="dynamic",
        cache_config=None,
        low_memory=False,
        token_healing=False,
        custom_generate=None,
        trust_remote_code=False,
        synced_gpus=False,
    )

    def _checked(self, name: str, value: Any) -> Any:
        return None if value is None else _CHECKS[name](value, name)

    def __getattr__(self, name: str) -> Any:
        return None if name in self.UNSUPPORTED and name not in self.extra else super().__getattr__(name)

    @property
    def end_tokens(self) -> list[int]:
        """The ids that end an output: `eos_token_id` as a list, which is empty if it is not set."""
        return as_list(self.eos_token_id)

    def to_dict(self) -> dict[str, Any]:
        """The options that are set and the keys in `extra`, as in a JSON file."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        if isinstance(self.sequence_bias, dict):
            own["sequence_bias"] = [[list(ids), bias] for ids, bias in self.sequence_bias.items()]
        return {**self.extra, **{name: value for name, value in own.items() if value is not None}}

    def over(self, lower: GenerationConfig | None) -> GenerationConfig:
        """These options, with those of `lower` where they are not set."""
        values = {} if lower is None else lower.to_dict()
        if self.max_length is not None or self.max_new_tokens is not None:  # two names of one option
            values.pop("max_length", None), values.pop("max_new_tokens", None)
        return GenerationConfig.from_dict({**values, **self.to_dict()})

    def check_supported(self) -> None:
        """Raise UnsupportedError for an option in `UNSUPPORTED` that is switched on."""
        for name, off in self.UNSUPPORTED.items():
            value = self.extra.get(name)
            if value is not None and not (isinstance(value, (bool, int, float, str)) and value == off):
                raise UnsupportedError(f"generation option {name}={quoted(value)} is not supported")

    @classmethod
    def of_call(
        cls, options: dict[str, Any], passed: GenerationConfig | dict[str, Any] | None, own: GenerationConfig | None
    ) -> GenerationConfig:
        """The merged options of a `generate` call.

        A keyword that is None switches its option off in all levels; `max_length` is then not set.

        Args:
            options: keywords of the call.
            passed: its `generation_config`.
            own: the configuration of the model.

        Raises:
            ConfigError: an unknown name. UnsupportedError: options that bertgen does not have.
        """
        config = cls._of_names(options).over(cls.of_argument(passed)).over(own)
        for name, value in options.items():
            if value is None and name in cls.__dataclass_fields__ and name != "max_length":
                setattr(config, name, 0 if name == "top_k" else None)
        config.check_supported()
        return config

    @classmethod
    def _of_names(cls, options: dict[str, Any]) -> GenerationConfig:
        """A configuration from the options of a caller, which may be in `UNSUPPORTED`."""
        config = cls(**{name: value for name, value in options.items() if name not in cls.UNSUPPORTED})
        config.extra.update((name, value) for name, value in options.items() if name in cls.UNSUPPORTED)
        return config

    @classmethod
    def of_argument(cls, passed: Any) -> GenerationConfig | None:
        """The configuration for `generation_config=`: one of bertgen or of transformers, or a dict of options."""
        if passed is None or isinstance(passed, cls):
            return passed
        if isinstance(passed, dict) and all(isinstance(name, str) for name in passed):
            return cls._of_names(passed)
        values = passed.to_dict() if hasattr(passed, "to_dict") and not isinstance(passed, type) else None
        if not isinstance(values, dict):
            raise ConfigError(
                f"generation_config must be a GenerationConfig or a dict of options, got {quoted(passed)}"
            )
        return cls.from_dict(values)

    @classmethod
    def from_model_config(cls, config: EncoderDecoderConfig | BertGenerationConfig) -> GenerationConfig:
        """The configuration of a model without `generation_config.json`: the special ids of its own."""
        # Checkpoints older than generation_config.json kept these options in config.json.
        legacy = {f.name: config.extra[f.name] for f in fields(cls) if f.name in config.extra}
        return cls.from_dict({**special_ids(config), **legacy})

    @classmethod
    def from_model_files(cls, path: Path, config: EncoderDecoderConfig | BertGenerationConfig) -> GenerationConfig:
        """The configuration of a model with `generation_config.json` at `path`.

        A special id that the file does not have is taken from `config`; null means no such token. transformers marks a
        file that it made from config.json and does not update it, so ids that were set later on an encoder-decoder are
        only in `config`.
        """
        values = read_json(path)
        values |= {name: _real_ids(values[name]) for name in SPECIAL_IDS if name in values}
        copied = values.pop("_from_model_config", False)
        half = special_ids(getattr(config, "decoder", config))
        for name, value in special_ids(config).items():
            if value is not None and (name not in values or (copied and values[name] == half[name])):
                values[name] = value
        return cls.from_dict(values)

    def update(self, defaults_only: bool = False, allow_custom_entries: bool = False, **options: Any) -> dict[str, Any]:
        """Set options; returns those that were not set.

        Args:
            defaults_only: do not change options that are set.
            allow_custom_entries: keep names that are no options in `extra`.
        """
        unused = {}
        for name, value in options.items():
            known = name in self.__dataclass_fields__ and name != "extra"
            if defaults_only and getattr(self, name, None) is not None:
                unused[name] = value
            elif known:
                setattr(self, name, value)
            elif allow_custom_entries:
                self.extra[name] = value
            else:
                unused[name] = value
        return unused

    def validate(self, strict: bool = False) -> None:
        """Check for options that contradict each other; values are checked when they are set.

        Args:
            strict: raise an error for an option without an effect, instead of logging a warning.

        Raises:
            ConfigError: a contradiction. UnsupportedError: options that bertgen does not have.
        """
        self.check_supported()
        beams, outputs = self.num_beams or 1, self.num_return_sequences or 1
        if outputs > 1 and not self.do_sample and outputs > beams:
            raise ConfigError(f"num_return_sequences {outputs} is more than num_beams {beams}, and do_sample is off")
        if beams > 1 and outputs > beams:
            raise ConfigError(f"num_return_sequences {outputs} is more than num_beams {beams}")
        unused = [] if self.do_sample else ["temperature top_h top_k top_p min_p typical_p epsilon_cutoff eta_cutoff"]
        unused += [] if beams > 1 else ["early_stopping length_penalty"]
        names = [n for n in " ".join(unused).split() if getattr(self, n) not in (None, self.DEFAULTS.get(n))]
        if names:
            message = f"{', '.join(names)} will have no effect: do_sample is {self.do_sample}, num_beams {beams}"
            if strict:
                raise ConfigError(message)
            logger.warning(message)

    def get_generation_mode(self) -> str:
        """The kind of search, by its name in transformers."""
        if (self.num_beams or 1) == 1:
            return "sample" if self.do_sample else "greedy_search"
        if (self.num_beam_groups or 1) > 1:
            return "group_beam_search"
        return "beam_sample" if self.do_sample else "beam_search"

    @classmethod
    @path_aliases
    def from_pretrained(cls, path_or_id: str | os.PathLike, config_file_name: str | None = None, **options: Any) -> Any:
        """Read `generation_config.json` of a directory or hub id.

        Args:
            path_or_id: directory or hub id.
            config_file_name: of another file there.
            options: options to replace, arguments of `bertgen.hub.resolve_file`, and return_unused_kwargs as of
                `from_dict`.
        """
        overrides, hub = split_hub_options(options)
        path = resolve_file(path_or_id, config_file_name or "generation_config.json", hub)
        return cls.from_dict(read_json(path), **overrides)

    @directory_aliases
    def save_pretrained(
        self, directory: str | os.PathLike, config_file_name: str | None = None, push_to_hub: bool = False
    ) -> None:
        """Write `generation_config.json`, or a file of another name, into `directory`, which is created if needed."""
        path = make_directory(directory, push_to_hub) / (config_file_name or "generation_config.json")
        write_json(path, self.to_dict())


def special_ids(config: EncoderDecoderConfig | BertGenerationConfig) -> dict[str, Any]:
    """The ids that begin, end and pad outputs: those of a configuration, else of its decoder."""
    configs = [config, getattr(config, "decoder", None)]
    ids = {name: next((v for c in configs if (v := getattr(c, name, None)) is not None), None) for name in SPECIAL_IDS}
    return {name: _real_ids(value) for name, value in ids.items()}


def as_list(ids: int | list[int] | None) -> list[int]:
    """An option that is an id, a list of ids or None, as a list."""
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def _real_ids(value: int | list[int] | None) -> int | list[int] | None:
    """A special id or a list of ids without negative ones, which stand for "no such token" in configurations."""
    real = [token for token in as_list(value) if not isinstance(token, int) or token >= 0]
    return (real or None) if isinstance(value, list) else next(iter(real), None)


# A factor of scores: within these limits the results are finite in float32.
_positive = partial(check_number, 1e-30, 1e30)


def _positive_share(value: Any, name: str) -> float:
    if check_number(0.0, 1.0, value, name) == 0.0:
        raise ConfigError(f"{name} must be above 0, got {quoted(value)}")
    return float(value)


def _cutoff(value: Any, name: str) -> float:
    if check_number(0.0, 1.0, value, name) == 1.0:
        raise ConfigError(f"{name} must be under 1, got {quoted(value)}")
    return float(value)


def _early_stopping(value: Any, name: str) -> bool | str:
    if isinstance(value, str) and value == "never":
        return value
    try:
        return check_flag(value, name)
    except ConfigError:
        raise ConfigError(f"{name} must be True, False or 'never', got {quoted(value)}") from None


def _token_list(value: Any, name: str) -> list[int]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigError(f"{name} must be a list of at least one id, got {quoted(value)}")
    return [check_integer(0, token, name) for token in value]


def _token_lists(value: Any, name: str) -> list[list[int]]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigError(f"{name} must be a list of at least one list of ids, got {quoted(value)}")
    return [_token_list(ids, name) for ids in value]


def _sequence_bias(value: Any, name: str) -> dict[tuple[int, ...], float] | list[list[Any]]:
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, (list, tuple)) or not pairs:
        raise ConfigError(
            f"{name} must be a dict {{(ids): bias}} or a list of [ids, bias], not empty, got {quoted(value)}"
        )
    checked: list[list[Any]] = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ConfigError(f"{name} must hold pairs of ids and a bias, got {quoted(pair)}")
        checked.append([_token_list(pair[0], name), check_number(-float("inf"), float("inf"), pair[1], name)])
    return {tuple(ids): bias for ids, bias in checked} if isinstance(value, dict) else checked


def _decay(value: Any, name: str) -> tuple[int, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ConfigError(f"{name} must be (start, factor), got {quoted(value)}")
    return check_integer(0, value[0], name), _positive(value[1], name)


def _texts(value: Any, name: str) -> str | list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts or any(not isinstance(t, str) or not t for t in texts):
        raise ConfigError(f"{name} must be a text or a list of texts, none of them empty, got {quoted(value)}")
    return value if isinstance(value, str) else list(texts)


def _table(check: Callable[[Any, str], Any], names: str) -> dict[str, Callable[[Any, str], Any]]:
    return dict.fromkeys(names.split(), check)


# Option -> check of its value: returns the value to keep, or raises ConfigError with the value and the limit.
_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    **_table(partial(check_integer, 1), "max_length max_new_tokens num_beams num_beam_groups num_return_sequences"),
    **_table(
        partial(check_integer, 0),
        "min_length min_new_tokens top_k no_repeat_ngram_size encoder_no_repeat_ngram_size",
    ),
    **_table(partial(check_number, 0.0, 1.0), "top_p min_p"),
    **_table(partial(check_number, 0.0, float("inf")), "max_time"),
    **_table(partial(check_number, 0.0, 1e30), "diversity_penalty"),
    **_table(partial(check_number, -float("inf"), float("inf")), "length_penalty"),
    **_table(_positive, "temperature repetition_penalty encoder_repetition_penalty"),
    **_table(_positive_share, "top_h typical_p"),
    **_table(_cutoff, "epsilon_cutoff eta_cutoff"),
    **_table(check_token_id, "pad_token_id bos_token_id decoder_start_token_id forced_bos_token_id"),
    **_table(check_token_ids, "eos_token_id forced_eos_token_id"),
    **_table(_token_list, "suppress_tokens begin_suppress_tokens"),
    **_table(_token_lists, "bad_words_ids"),
    **_table(_sequence_bias, "sequence_bias"),
    **_table(_decay, "exponential_decay_length_penalty"),
    **_table(_texts, "stop_strings"),
    **_table(_early_stopping, "early_stopping"),
    **_table(
        check_flag,
        "do_sample remove_invalid_values renormalize_logits use_cache return_dict_in_generate output_scores "
        "output_logits output_attentions output_hidden_states infer_attention_mask",
    ),
}


ELSEWHERE.update(
    (f.name, f"it is an option of generation, set it by model.generation_config.{f.name} = ...")
    for f in fields(GenerationConfig)
    if f.name != "extra"
)
