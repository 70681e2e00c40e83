"""The checked options of one call of a Generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .. import decoding
from ..config import GenerationConfig
from ..config.validators import check_callable, check_callables, check_choice, check_flag, check_integer
from ..errors import ConfigError, InputError
from ..model import EncoderDecoderModel
from ..model.generation_warnings import warn_without_end_token

# Options of `model.generate` that decide what it returns.
RETURN_OPTIONS = (
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
)
# Callbacks of a request, as arguments of `model.generate`.
CALLBACKS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")


@dataclass(frozen=True)
class CallOptions:
    """The options of one call: resolved generation options, other options of its requests, and how texts are treated.

    Attributes:
        generation: resolved.
        seed: of the keyed random numbers, a signed integer of 64 bits.
        scores: score greedy and sampled outputs too.
        callbacks: those of `CALLBACKS` that were passed, by name.
        truncation: cut long texts; None as the Generator is set.
        clean_up: remove spaces before punctuation; None as the tokenizer is set.
        max_batch_size: texts at a time.
        return_errors: an error of a text becomes its output.
    """

    generation: GenerationConfig
    seed: int
    scores: bool
    callbacks: dict[str, Any]
    truncation: bool | None
    clean_up: bool | None
    max_batch_size: int | None
    return_errors: bool

    @classmethod
    def checked(
        cls,
        model: EncoderDecoderModel,
        options: dict[str, Any],
        *,
        seed: int | None = None,
        scores: bool = False,
        truncation: bool | None = None,
        clean_up: bool | None = None,
        max_batch_size: int | None = None,
        return_errors: bool = False,
    ) -> CallOptions:
        """Check and resolve the options of a call.

        Args:
            model: its generation config has the defaults.
            options: `generation_config`, options of `GenerationConfig`, and callbacks.

        Raises:
            ConfigError: an unknown option or a bad value. InputError: more tokens than the decoder has positions.
        """
        for name in RETURN_OPTIONS:
            if name in options:
                raise ConfigError(
                    f"{name} is for model.generate; a Generator returns Outputs, with a score where scores=True"
                )
        if "streamer" in options:
            raise ConfigError("streamer is for model.generate; a Generator's submit has on_tokens")
        for name in ("logits_processor", "stopping_criteria"):
            check_callables(options.get(name), name)
        check_callable(options.get("prefix_allowed_tokens_fn"), "prefix_allowed_tokens_fn")
        seed = None if seed is None else check_integer(-(2**63), seed, "seed", 2**64 - 1)
        callbacks = {name: options.pop(name) for name in CALLBACKS if name in options}
        config = GenerationConfig.of_call(
            {name: value for name, value in options.items() if name != "generation_config"},
            options.get("generation_config"),
            model.generation_config,
        )
        positions = model.config.decoder.max_tokens
        if config.max_length is None and config.max_new_tokens is None:
            config.max_length = positions
        config.return_dict_in_generate = None
        generation = decoding.resolve_generation_config(config)
        warn_without_end_token(model, generation, {**options, **callbacks})
        if generation.decoder_start_token_id is None:
            raise ConfigError("generation needs decoder_start_token_id or bos_token_id")
        if generation.max_length - 1 > positions:
            new = config.max_new_tokens
            limit = f"max_length {generation.max_length}" if new is None else f"max_new_tokens={new}"
            raise InputError(f"{limit} needs {generation.max_length - 1} decoder positions, the model has {positions}")
        if generation.do_sample and seed is None:
            seed = int(torch.randint(2**62, (1,), device="cpu"))
        return cls(
            generation=generation,
            seed=((seed or 0) + 2**63) % 2**64 - 2**63,  # as in torch, 64 bits with or without a sign
            scores=check_flag(scores, "scores"),
            callbacks=callbacks,
            truncation=checked_truncation(truncation),
            clean_up=None if clean_up is None else check_flag(clean_up, "clean_up_tokenization_spaces"),
            max_batch_size=None if max_batch_size is None else check_integer(1, max_batch_size, "max_batch_size"),
            return_errors=check_flag(return_errors, "return_errors"),
        )


def checked_truncation(value: Any) -> bool | None:
    """Whether long texts are cut, from a flag or the name that tokenizers have for it; None stays None."""
    if isinstance(value, str):
        return (
            check_choice(("longest_first", "only_first", "do_not_truncate"), value, "truncation") != "do_not_truncate"
        )
    return None if value is None else check_flag(value, "truncation")
