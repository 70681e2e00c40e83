"""`generate` of an accelerated model: bertgen's search if it supports all arguments, else transformers' loop.

Importing this module imports transformers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers.generation import utils as transformers_generation

from ..config import EncoderDecoderConfig, GenerationConfig
from ..decoding import logits_processors, stopping_criteria
from ..errors import ConfigError, UnsupportedError
from ..model.generation_inputs import infer_attention_mask
from ..ops.slow_paths import report_slow_paths
from ..outputs import GenerateOutput
from . import cache_argument
from .cache import PagedCache
from .forward import LAYER_OUTPUTS, keep_recording, states_of
from .state import AccelerationState, fallback, state_of
from .wrapped_model import WrappedModel

# Arguments with a cache, or for searches that crop the cache.
_CACHE_ARGUMENTS = (
    cache_argument.NAME, cache_argument.OLD_NAME, "cache_implementation", "cache_config", "use_cache",
    "assistant_model", "prompt_lookup_num_tokens", "custom_generate", "generation_config", "output_attentions",
)  # fmt: skip
_OPTIONS = frozenset(GenerationConfig.__dataclass_fields__) - {"extra", "infer_attention_mask"}
_UNSUPPORTED = (
    "assistant_model", "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate", "synced_gpus",
)  # fmt: skip
_PASSED = ("inputs", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer")
# Arguments without effect on the tokens: a Trainer passes the first, transformers sets the second itself.
_IGNORED = ("labels", "logits_to_keep")
# Options that depend on the ids of the input.
_ENCODER_PENALTIES = ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size")
_PROMPT_PENALTIES = ("repetition_penalty", "no_repeat_ngram_size")
# Mask -> the arguments it may belong to.
_MASKS = {
    "attention_mask": ("inputs", "input_ids", "inputs_embeds"),
    "decoder_attention_mask": ("decoder_input_ids",),
}


def accelerated_generate(base: type) -> Callable[..., Any]:
    """The `generate` method for an accelerated class, with the signature of the transformers class `base`."""
    signature = inspect.signature(base.generate)  # type: ignore[attr-defined]

    @functools.wraps(base.generate)  # type: ignore[attr-defined]
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        state: AccelerationState = state_of(self)
        bound = signature.bind(self, *args, **kwargs).arguments
        bound.pop("self", None)
        arguments = {name: value for name, value in bound.items() if name != "kwargs" and value is not None}
        arguments |= cache_argument.with_current_name(bound.get("kwargs", {}))
        reason = state.why_not_generate(self) if state.generate else "generate=False"
        model_declines = state.generate and reason is not None
        if reason is None:
            wrapped = state.wrapped_model
            reason = why_not_arguments(self, wrapped, arguments)
            try:
                if reason is None:
                    with state.running():
                        return _run(self, wrapped, arguments)
            except (ConfigError, UnsupportedError) as error:  # raised before anything was generated
                reason = str(error)
        keep_recording(self)
        if state.generate:
            state.count_fallback("generate", base.__name__, reason)
        elif state.why_not_forward(self) is None and all(arguments.get(name) is None for name in _CACHE_ARGUMENTS):
            kwargs.pop(cache_argument.OLD_NAME, None)
            kwargs[cache_argument.NAME] = PagedCache(self.config)  # lets bertgen's forward run in transformers' loop
            with state.running():
                report_slow_paths(self.device)
        with fallback() if model_declines else nullcontext():
            return base.generate(self, *args, **kwargs)  # type: ignore[attr-defined]

    return generate


def why_not_arguments(model: Any, wrapped: WrappedModel, arguments: dict[str, Any]) -> str | None:
    """Why a call with these arguments must go through transformers' loop; None if bertgen can run it."""
    if wrapped.has_active_dropout:
        return "the model is in training mode with dropout"
    for name in (cache_argument.NAME, cache_argument.OLD_NAME):
        if arguments.get(name) is not None:  # the ids of the first step depend on the version of transformers
            return f"{name} is of class {type(arguments[name]).__name__}"
    config = arguments.get("generation_config") or model.generation_config
    if not isinstance(config, transformers.GenerationConfig):
        return f"generation_config is a {type(config).__name__}"
    for name in LAYER_OUTPUTS:
        if arguments.get(name, getattr(config, name, False)):
            return f"{name} is requested"
    for name in ("attention_mask", "decoder_attention_mask"):
        if arguments.get(name) is not None and not isinstance(arguments[name], torch.Tensor):
            return f"{name} is not a tensor"
    for name in _UNSUPPORTED:
        if arguments.get(name) is not None and arguments[name] is not False:
            return f"bertgen has no argument {name}"
    device = wrapped.model.device
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            continue
        if name.endswith(("attention_mask", "position_ids")) and value.dim() != 2:
            return f"{name} is not a tensor of two dimensions"
        if not value.numel():
            return f"{name} is empty"
        if value.device != device:
            return f"{name} is on {value.device}, the model on {device}"
    for name, inputs in _MASKS.items():
        length = next((arguments[i].shape[1] for i in inputs if arguments.get(i) is not None), None)
        if arguments.get(name) is not None and length not in (None, arguments[name].shape[1]):
            return f"{name} has {arguments[name].shape[1]} positions for inputs of {length}"
    return None


def _run(model: Any, wrapped: WrappedModel, arguments: dict[str, Any]) -> Any:
    """Search with the wrapped model, and return its output in transformers' form.

    Raises:
        ConfigError, UnsupportedError: the options need transformers' own loop; nothing was generated then.
    """
    ours, joint = wrapped.model, isinstance(wrapped.model.config, EncoderDecoderConfig)
    passed = {name: arguments[name] for name in _PASSED if arguments.get(name) is not None}
    for name in ("logits_processor", "stopping_criteria"):
        if name in passed:
            passed[name] = list(passed[name])
    of_call, of_model = arguments.get("generation_config"), model.generation_config
    # transformers' own code merges the levels of options and raises errors for invalid ones.
    other_names = (*_PASSED, *_UNSUPPORTED, "generation_config")
    options = {name: value for name, value in arguments.items() if name not in other_names}
    config, inputs = model._prepare_generation_config(of_call, **options)
    model._validate_model_kwargs(dict(inputs))
    levels = SimpleNamespace(**arguments), of_call, of_model
    is_default = {
        name: all(getattr(level, name, None) is None for level in levels) for name in ("max_length", "min_length")
    }
    generation_config = _converted(config, is_default["max_length"])
    inputs = {name: value for name, value in inputs.items() if value is not None and name not in _IGNORED}
    inputs = {**passed, **inputs}
    reason = _why_not_options(config, generation_config, inputs, joint)
    if reason is None and (warning := _expected_warning(config, generation_config, inputs, joint)) is not None:
        reason = f"transformers warns of {warning}"
    if reason is not None:
        raise UnsupportedError(reason)
    if not joint and ours.config.first_position and "position_ids" not in inputs:
        inputs["position_ids"] = _positions(inputs, generation_config)
    generation_config.infer_attention_mask = _transformers_infers_mask() or not joint
    ours.generation_config = GenerationConfig()
    output = ours.generate(**inputs, generation_config=generation_config)
    _warn_about_lengths(model, config, is_default, inputs, joint)
    return _converted_output(model, output, generation_config, joint) if isinstance(output, GenerateOutput) else output


def _converted(config: transformers.GenerationConfig, is_default_length: bool) -> GenerationConfig:
    """bertgen's generation config, from transformers' complete one.

    Raises:
        ConfigError, UnsupportedError: values that bertgen does not support.
    """
    values = {name: getattr(config, name, None) for name in _OPTIONS}
    if is_default_length or config.max_new_tokens is not None:
        values["max_length"] = None
    values["top_k"] = config.top_k or 0  # None is off here; bertgen's default would be 50
    values |= {name: getattr(config, name, None) for name in GenerationConfig.UNSUPPORTED}
    result = GenerationConfig.from_dict({name: value for name, value in values.items() if value is not None})
    result.check_supported()
    return result


def _why_not_options(config: Any, ours: GenerationConfig, inputs: dict[str, Any], joint: bool) -> str | None:
    """Why these options need transformers' loop: its result would differ. None if it would not.

    Args:
        config, ours: the options as transformers' and as bertgen's configuration.
        inputs: the other arguments of the call.
        joint: the model is an encoder-decoder.
    """
    if config.use_cache is None:  # transformers makes a cache and still feeds all tokens in each step
        return "use_cache is None"
    beams = ours.num_beams not in (None, 1)
    if _transformers_version() < (5, 24):
        if beams and ours.do_sample:
            return "sampled beams end in the order of their draws in transformers before 5.24"
        if not beams and ours.num_return_sequences not in (None, 1) and "prefix_allowed_tokens_fn" in inputs:
            return "prefix_allowed_tokens_fn gets the number of the output in transformers before 5.24"
    forced = ours.forced_eos_token_id
    if isinstance(forced, list) and len(forced) > 1 and beams:
        return "beams choose among several forced_eos_token_id of the same score"
    if not ours.end_tokens and any(hasattr(one, "eos_token_id") for one in inputs.get("stopping_criteria", ())):
        return "a stopping criterion has an eos_token_id, the model has none"
    mask = inputs.get("attention_mask")
    if not joint and mask is not None and len(mask) > 1 and bool((mask[:, -1] == 0).any()):
        return "the prompt is padded on the right"
    return None


def _expected_warning(config: Any, ours: GenerationConfig, inputs: dict[str, Any], joint: bool) -> str | None:
    """What transformers warns of inside its `generate`; None if it does not. Arguments as `_why_not_options`."""
    ids = inputs.get("inputs", inputs.get("input_ids"))
    for name in _ENCODER_PENALTIES if joint else (*_ENCODER_PENALTIES, *_PROMPT_PENALTIES):
        on = getattr(config, name) not in (None, GenerationConfig.DEFAULTS[name])
        # Without an encoder, ids beside embeddings are those of the output so far.
        no_ids = ids is None or (not joint and name in _ENCODER_PENALTIES)
        if on and no_ids and (joint or "inputs_embeds" in inputs):
            return f"{name} without input_ids"
    for custom in (*inputs.get("logits_processor", ()), *inputs.get("stopping_criteria", ())):
        option = logits_processors.replaced_option(custom) or stopping_criteria.replaced_option(custom)
        value = inputs.get(option) if option == "prefix_allowed_tokens_fn" else getattr(ours, option or "", None)
        if option == "min_length" and ours.min_new_tokens is not None:
            value = ours.min_new_tokens + 1  # transformers counts the prompt, which has at least one token
        if option == "max_length" or (option and value not in (None, GenerationConfig.DEFAULTS.get(option))):
            return f"a {type(custom).__name__} that replaces {option}"
    mask, ends = inputs.get("attention_mask"), ours.end_tokens
    tensors = [x for x in (*inputs.values(), *states_of(inputs.get("encoder_outputs"))) if isinstance(x, torch.Tensor)]
    if mask is not None or all(len(x) == 1 for x in tensors):
        return None
    if ends and ours.pad_token_id in (None, *ends):
        return "a batch without a mask, with an end token as padding token"
    pad = ours.pad_token_id if ours.pad_token_id is not None else next(iter(ends), None)
    if not joint and ids is not None and pad is not None and bool((ids[:, -1] == pad).any()):
        return "a prompt that is padded on the right"
    return None


def _positions(inputs: dict[str, Any], generation_config: GenerationConfig) -> torch.Tensor:
    """Positions of a prompt as transformers counts them in a decoder without encoder: from 0, in RoBERTa too.

    Returns:
        int64 [B, L]
    """
    ids = inputs.get("inputs", inputs.get("input_ids"))
    prompt = inputs.get("inputs_embeds", ids)
    if prompt is None:
        return torch.zeros(1, 1, dtype=torch.int64, device="cpu")
    mask = inputs.get("attention_mask")
    if mask is None and ids is not None:
        mask = infer_attention_mask(ids, generation_config)
    if mask is None:
        return torch.arange(prompt.shape[1], device=prompt.device)[None].expand(len(prompt), -1)
    return (mask.long().cumsum(1) - 1).masked_fill(mask == 0, 0)


def _warn_about_lengths(
    model: Any, config: Any, is_default: dict[str, bool], inputs: dict[str, Any], joint: bool
) -> None:
    """Let transformers check the lengths of a finished call, which gives its warnings."""
    ids = inputs.get("decoder_input_ids") if joint else inputs.get("inputs", inputs.get("input_ids"))
    embeds = inputs.get("inputs_embeds")
    length = (0 if embeds is not None and not joint else 1) if ids is None else ids.shape[1]
    if joint and ids is not None:
        start = config.bos_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id
        length += bool((ids[:, 0] != start).all())
    config = model._prepare_generated_length(
        generation_config=config, has_default_max_length=is_default["max_length"],
        has_default_min_length=is_default["min_length"], input_ids_length=length,
        model_input_name="input_ids" if embeds is None else "inputs_embeds", inputs_tensor=embeds,
    )  # fmt: skip
    model._validate_generated_length(config, length, is_default["max_length"])


def _transformers_infers_mask() -> bool:
    """Whether transformers takes pad ids of an encoder's input for padding without a mask: until 5.1 it did."""
    return _transformers_version() < (5, 2)


def _transformers_version() -> tuple[int, int]:
    major, minor = transformers.__version__.split(".")[:2]
    return int(major), int(minor)


def _converted_output(model: Any, output: GenerateOutput, generation_config: GenerationConfig, joint: bool) -> Any:
    """The output as transformers' class of the same search."""
    beams = output.sequences_scores is not None or output.beam_indices is not None
    name = f"Generate{'Beam' if beams else ''}{'EncoderDecoder' if joint else 'DecoderOnly'}Output"
    fields = {key: value for key, value in output.items() if value is not None}
    if not generation_config.output_scores:
        fields.pop("sequences_scores", None)
    cache = fields.pop("past_key_values", None)
    if cache is not None:
        fields[cache_argument.NAME] = PagedCache(model.config)
        fields[cache_argument.NAME].attach(cache)
    return getattr(transformers_generation, name)(**fields)
