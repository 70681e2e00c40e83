"""The options of one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .. import decoding
from ..config import GenerationConfig
from ..config.validators import check_callable, check_callables, check_choice, check_flag, check_integer
from ..errors import ConfigError, InputError
from ..model import EncoderDecoderModel
from ..model.generation_warnings import warn_of_no_end

# What `model.generate` returns besides tokens.
RETURNED = ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states")
# What a request brings along, as `model.generate` has it.
CALLED = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")


@dataclass(frozen=True)
class Call:
    """The checked options of one call: those of generation, settled, what else its requests have, and the rest."""

    settled: GenerationConfig
    seed: int
    scores: bool
    called: dict[str, Any]
    truncation: bool | None
    clean_up: bool | None
    max_batch_size: int | None
    return_errors: bool


def checked_call(
    model: EncoderDecoderModel,
    options: dict[str, Any],
    *,
    seed: int | None = None,
    scores: bool = False,
    truncation: bool | None = None,
    clean_up: bool | None = None,
    max_batch_size: int | None = None,
    return_errors: bool = False,
) -> Call:
    """The options of a call of a Generator with this model; ConfigError or InputError where they are bad."""
    for name in RETURNED:
        if name in options:
            raise ConfigError(f"{name} is for model.generate; a Generator gives Outputs, with scores=True scored")
    if "streamer" in options:
        raise ConfigError("streamer is for model.generate; a Generator's submit has on_tokens")
    for name in ("logits_processor", "stopping_criteria"):
        check_callables(options.get(name), name)
    check_callable(options.get("prefix_allowed_tokens_fn"), "prefix_allowed_tokens_fn")
    seed = None if seed is None else check_integer(-(2**63), seed, "seed", 2**64 - 1)
    called = {name: options.pop(name) for name in CALLED if name in options}
    levels = GenerationConfig.of_call(
        {k: v for k, v in options.items() if k != "generation_config"},
        options.get("generation_config"),
        model.generation_config,
    )
    positions = model.config.decoder.max_tokens
    if levels.max_length is None and levels.max_new_tokens is None:
        levels.max_length = positions
    levels.return_dict_in_generate = None
    settled = decoding.settle(levels)
    warn_of_no_end(model, settled, {**options, **called})
    if settled.decoder_start_token_id is None:
        raise ConfigError("generation needs decoder_start_token_id or bos_token_id")
    if settled.max_length - 1 > positions:
        new = levels.max_new_tokens
        said = f"max_length {settled.max_length}" if new is None else f"max_new_tokens={new}"
        raise InputError(f"{said} needs {settled.max_length - 1} decoder positions, the model has {positions}")
    if settled.do_sample and seed is None:
        seed = int(torch.randint(2**62, (1,), device="cpu"))
    return Call(
        settled=settled,
        seed=((seed or 0) + 2**63) % 2**64 - 2**63,  # as torch: those of 64 bits with a sign, and without
        scores=check_flag(scores, "scores"),
        called=called,
        truncation=checked_truncation(truncation),
        clean_up=None if clean_up is None else check_flag(clean_up, "clean_up_tokenization_spaces"),
        max_batch_size=None if max_batch_size is None else check_integer(1, max_batch_size, "max_batch_size"),
        return_errors=check_flag(return_errors, "return_errors"),
    )


def checked_truncation(value: Any) -> bool | None:
    """Whether texts that are too long are cut, by the names that tokenizers have for it too; None as it is."""
    if isinstance(value, str):
        return (
            check_choice(("longest_first", "only_first", "do_not_truncate"), value, "truncation") != "do_not_truncate"
        )
    return None if value is None else check_flag(value, "truncation")
