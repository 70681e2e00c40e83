"""Fill in and check the options of a search."""

from __future__ import annotations

from ..config import GenerationConfig
from ..config.generation import as_list
from ..errors import ConfigError


def resolve_generation_config(
    options: GenerationConfig, prefix: int = 1, embedded: int = 0, positions: int | None = None
) -> GenerationConfig:
    """A copy of `options` in which every option has a value.

    Args:
        options: the merged options of one call (`GenerationConfig.of_call`).
        prefix: number of tokens that an output begins with: the start token, a prompt.
        embedded: number of input embeddings before them: they are part of no output, but `max_length` and `min_length`
            count them.
        positions: of the model; the default `max_length` is not more.

    Raises:
        ConfigError: options contradict each other.
    """
    values = options.to_dict()
    if "max_new_tokens" in values:  # takes precedence over max_length
        values["max_length"] = prefix + values["max_new_tokens"]
    elif "max_length" in values:
        values["max_length"] -= embedded
    else:
        values["max_length"] = prefix + GenerationConfig.DEFAULT_NEW_TOKENS
        if positions is not None:
            values["max_length"] = min(values["max_length"], positions)
    if values["max_length"] <= prefix:
        raise ConfigError(f"max_length {values['max_length']} leaves no room after the first {prefix} tokens")
    if "min_new_tokens" in values:
        values["min_length"] = prefix + values["min_new_tokens"]
    elif "min_length" in values:
        values["min_length"] = max(0, values["min_length"] - embedded)
    if "bos_token_id" in values:
        values.setdefault("decoder_start_token_id", values["bos_token_id"])
    if options.end_tokens and "pad_token_id" not in values:
        values["pad_token_id"] = options.end_tokens[0]
    if not values.get("return_dict_in_generate"):
        values.update(output_scores=False, output_logits=False, output_attentions=False, output_hidden_states=False)
    resolved = GenerationConfig.from_dict({**GenerationConfig.DEFAULTS, **values})
    _check_consistent(resolved)
    return resolved


def _check_consistent(options: GenerationConfig) -> None:
    """Raise ConfigError where resolved options contradict each other."""
    beams, groups, outputs = options.num_beams, options.num_beam_groups, options.num_return_sequences
    if beams > 1 and outputs > beams:
        raise ConfigError(f"num_return_sequences {outputs} is more than num_beams {beams}")
    if beams == 1 and outputs > 1 and not options.do_sample:
        raise ConfigError(f"num_return_sequences {outputs} needs beams or sampling: greedy search has one output")
    if beams % groups:
        raise ConfigError(f"num_beams {beams} must be a multiple of num_beam_groups {groups}")
    if groups > 1 and options.do_sample:
        raise ConfigError(f"num_beam_groups {groups} needs do_sample=False")
    if groups == 1 and options.diversity_penalty:
        raise ConfigError(f"diversity_penalty {options.diversity_penalty} needs num_beam_groups of at least 2, got 1")
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = as_list(getattr(options, name))
        if forced and set(forced) <= set(options.suppress_tokens or ()):
            raise ConfigError(f"{name} {forced} is among suppress_tokens: no token would be left")
    if options.min_length > options.max_length:
        raise ConfigError(f"min_length {options.min_length} is more than max_length {options.max_length}")
