"""`generate` of an accelerated model: bertgen's search where every argument is known to it, else transformers' loop.

Importing this module imports transformers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import transformers
from transformers.generation import utils as theirs

from ..config import EncoderDecoderConfig, GenerationConfig
from ..decoding import logits_processors, stopping_criteria
from ..errors import ConfigError, UnsupportedError
from ..model.generation_inputs import infer_attention_mask
from ..outputs import GenerateOutput
from .cache import PagedCache
from .forward import ASKED, keep_recording, states_of
from .state import State, plain
from .wrapped_model import Twin

# Arguments that need a cache of their own, or one that can be cut.
_CACHES = (
    "past_key_values", "cache_implementation", "cache_config", "use_cache", "assistant_model",
    "prompt_lookup_num_tokens", "custom_generate", "generation_config", "output_attentions",
)  # fmt: skip
_OPTIONS = frozenset(GenerationConfig.__dataclass_fields__) - {"extra", "infer_attention_mask"}
_OTHERS = ("assistant_model", "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate", "synced_gpus")
_PASSED = ("inputs", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer")
# What says nothing of the tokens: a Trainer passes the first along, transformers sets the second itself.
_IDLE = ("labels", "logits_to_keep")
# Options that look at the ids of the input, with the values that switch them off.
_OF_INPUT = ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size")
_OF_PROMPT = ("repetition_penalty", "no_repeat_ngram_size")
_MASKS = {
    "attention_mask": ("inputs", "input_ids", "inputs_embeds"),
    "decoder_attention_mask": ("decoder_input_ids",),
}


def accelerated_generate(base: type) -> Callable[..., Any]:
    """The method for a class of transformers, with the signature of its own."""
    signature = inspect.signature(base.generate)  # type: ignore[attr-defined]

    @functools.wraps(base.generate)  # type: ignore[attr-defined]
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        state: State = self._bertgen
        bound = signature.bind(self, *args, **kwargs).arguments
        bound.pop("self", None)
        given = {name: value for name, value in bound.items() if name != "kwargs" and value is not None}
        given |= bound.get("kwargs", {})
        twin = state.ready_to_generate(self) if state.generate else "generate=False"
        if isinstance(twin, Twin):
            reason = _obstacle(self, twin, given)
            try:
                if reason is None:
                    with state.running():
                        return _run(self, twin, given)
            except (ConfigError, UnsupportedError) as error:  # found before anything was generated
                reason = str(error)
        else:
            reason = twin
        keep_recording(self)
        if state.generate:
            state.detour("generate", base.__name__, reason)
        elif isinstance(state.ready(self), Twin) and not any(given.get(name) is not None for name in _CACHES):
            kwargs["past_key_values"] = PagedCache(self.config)  # so that its forward can be bertgen's
        with plain() if state.generate and isinstance(twin, str) else nullcontext():
            return base.generate(self, *args, **kwargs)  # type: ignore[attr-defined]

    return generate


def _obstacle(model: Any, twin: Twin, given: dict[str, Any]) -> str | None:
    """Why a call with these arguments must go through transformers' loop; None where nothing stands in the way."""
    if twin.drops:
        return "the model is in training mode: its dropout would act"
    if given.get("past_key_values") is not None:  # which of the ids are fed is another matter in each version
        return f"past_key_values are a {type(given['past_key_values']).__name__}"
    config = given.get("generation_config") or model.generation_config
    if not isinstance(config, transformers.GenerationConfig):
        return f"generation_config is a {type(config).__name__}"
    for name in ASKED:
        if given.get(name, getattr(config, name, False)):
            return f"{name} is asked for"
    for name in ("attention_mask", "decoder_attention_mask"):
        if given.get(name) is not None and not isinstance(given[name], torch.Tensor):
            return f"{name} is no tensor"
    for name in _OTHERS:
        if given.get(name) is not None and given[name] is not False:
            return f"{name} is asked for"
    device = twin.ours.device
    for name, value in given.items():
        if not isinstance(value, torch.Tensor):
            continue
        if name.endswith(("attention_mask", "position_ids")) and value.dim() != 2:
            return f"{name} has not two dimensions"
        if not value.numel():
            return f"{name} is empty"
        if value.device != device:
            return f"{name} is on {value.device}, the model on {device}"
    for name, inputs in _MASKS.items():
        length = next((given[i].shape[1] for i in inputs if given.get(i) is not None), None)
        if given.get(name) is not None and length not in (None, given[name].shape[1]):
            return f"{name} is longer or shorter than what it is for"
    return None


def _run(model: Any, twin: Twin, given: dict[str, Any]) -> Any:
    ours, joint = twin.ours, isinstance(twin.ours.config, EncoderDecoderConfig)
    arguments = {name: given[name] for name in _PASSED if given.get(name) is not None}
    for name in ("logits_processor", "stopping_criteria"):
        if name in arguments:
            arguments[name] = list(arguments[name])
    passed, own = given.get("generation_config"), model.generation_config
    # Which of the levels gives an option, and what is wrong with it, is for transformers' own code to say.
    options = {name: value for name, value in given.items() if name not in (*_PASSED, *_OTHERS, "generation_config")}
    config, inputs = model._prepare_generation_config(passed, **options)
    model._validate_model_kwargs(dict(inputs))
    default = {
        name: given.get(name) is None and getattr(passed, name, None) is None and getattr(own, name, None) is None
        for name in ("max_length", "min_length")
    }
    settled = _converted(config, default["max_length"])
    inputs = {name: value for name, value in inputs.items() if value is not None and name not in _IDLE}
    difference = _difference(config, settled, {**arguments, **inputs}, joint)
    if difference is not None:
        raise UnsupportedError(difference)
    warning = _warning(config, settled, {**arguments, **inputs}, joint)
    if warning is not None:
        raise UnsupportedError(f"{warning}, of which transformers warns")
    if not joint and ours.config.first_position and "position_ids" not in inputs:
        inputs["position_ids"] = _positions({**arguments, **inputs}, settled)
    settled.infer_attention_mask = _infers_mask() or not joint
    ours.generation_config = GenerationConfig()
    found = ours.generate(**arguments, **inputs, generation_config=settled)
    _warn_of_lengths(model, config, default, {**arguments, **inputs}, joint)
    return _translated(model, found, settled, joint) if isinstance(found, GenerateOutput) else found


def _converted(config: transformers.GenerationConfig, default_length: bool) -> GenerationConfig:
    """The options of a call in ours, from transformers' configuration, in which they are all settled.

    Raises:
        ConfigError, UnsupportedError: values that bertgen does not have.
    """
    values = {name: getattr(config, name, None) for name in _OPTIONS}
    if default_length or config.max_new_tokens is not None:
        values["max_length"] = None
    values["top_k"] = config.top_k or 0  # None is off; an option that is not set would be 50
    values |= {name: getattr(config, name, None) for name in GenerationConfig.UNSUPPORTED}
    settled = GenerationConfig.from_dict({name: value for name, value in values.items() if value is not None})
    settled.check_supported()
    return settled


def _difference(config: Any, settled: GenerationConfig, given: dict[str, Any], joint: bool) -> str | None:
    """What transformers does in a way of its own, so that it must run itself."""
    if config.use_cache is None:  # the model makes a cache, and is fed all tokens in each step nevertheless
        return "use_cache is None"
    forced = settled.forced_eos_token_id
    if isinstance(forced, list) and len(forced) > 1 and settled.num_beams not in (None, 1):
        return "beams choose among several forced_eos_token_id of the same score"
    if not settled.end_tokens and any(hasattr(one, "eos_token_id") for one in given.get("stopping_criteria", ())):
        return "a criterion has an eos_token_id, the model has none"
    mask = given.get("attention_mask")
    if not joint and mask is not None and len(mask) > 1 and bool((mask[:, -1] == 0).any()):
        return "the prompt is padded on the right"
    return None


def _warning(config: Any, settled: GenerationConfig, given: dict[str, Any], joint: bool) -> str | None:
    """What transformers warns of in the midst of its `generate`, so that it must run itself."""
    ids = given.get("inputs", given.get("input_ids"))
    for name in _OF_INPUT if joint else (*_OF_INPUT, *_OF_PROMPT):
        on = getattr(config, name) not in (None, GenerationConfig.DEFAULTS[name])
        unseen = ids is None or (not joint and name in _OF_INPUT)  # the ids beside embeddings are an output's so far
        if on and unseen and (joint or "inputs_embeds" in given):
            return f"{name} without input_ids"
    for custom in (*given.get("logits_processor", ()), *given.get("stopping_criteria", ())):
        option = logits_processors.replaced_option(custom) or stopping_criteria.replaced_option(custom)
        value = given.get(option) if option == "prefix_allowed_tokens_fn" else getattr(settled, option or "", None)
        if option == "min_length" and settled.min_new_tokens is not None:
            value = settled.min_new_tokens + 1  # transformers counts the prompt, which has a token at least
        if option == "max_length" or (option and value not in (None, GenerationConfig.DEFAULTS.get(option))):
            return f"a {type(custom).__name__} in the place of {option}"
    mask, ends = given.get("attention_mask"), settled.end_tokens
    tensors = [x for x in (*given.values(), *states_of(given.get("encoder_outputs"))) if isinstance(x, torch.Tensor)]
    if mask is not None or all(len(x) == 1 for x in tensors):
        return None
    if ends and settled.pad_token_id in (None, *ends):
        return "a batch without a mask and without a padding token of its own"
    pad = settled.pad_token_id if settled.pad_token_id is not None else next(iter(ends), None)
    if not joint and ids is not None and pad is not None and bool((ids[:, -1] == pad).any()):
        return "a prompt that is padded on the right"
    return None


def _positions(given: dict[str, Any], settled: GenerationConfig) -> torch.Tensor:
    """Positions of a prompt as transformers counts them for a model on its own: from 0, also where a text does not."""
    ids = given.get("inputs", given.get("input_ids"))
    like = given.get("inputs_embeds", ids)
    if like is None:
        return torch.zeros(1, 1, dtype=torch.int64, device="cpu")
    mask = given.get("attention_mask")
    if mask is None and ids is not None:
        mask = infer_attention_mask(ids, settled)
    if mask is None:
        return torch.arange(like.shape[1], device=like.device)[None].expand(len(like), -1)
    return (mask.long().cumsum(1) - 1).masked_fill(mask == 0, 0)


def _warn_of_lengths(model: Any, config: Any, default: dict[str, bool], given: dict[str, Any], joint: bool) -> None:
    """Let transformers say what it thinks of the lengths of a call, once it has been answered without it."""
    ids = given.get("decoder_input_ids") if joint else given.get("inputs", given.get("input_ids"))
    embeds = given.get("inputs_embeds")
    length = (0 if embeds is not None and not joint else 1) if ids is None else ids.shape[1]
    if joint and ids is not None:
        start = config.bos_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id
        length += bool((ids[:, 0] != start).all())
    config = model._prepare_generated_length(
        generation_config=config, has_default_max_length=default["max_length"],
        has_default_min_length=default["min_length"], input_ids_length=length,
        model_input_name="input_ids" if embeds is None else "inputs_embeds", inputs_tensor=embeds,
    )  # fmt: skip
    model._validate_generated_length(config, length, default["max_length"])


def _infers_mask() -> bool:
    """Whether transformers takes pad ids of an encoder's input for padding where no mask is given: until 5.1 it did."""
    major, minor = transformers.__version__.split(".")[:2]
    return (int(major), int(minor)) < (5, 2)


def _translated(model: Any, found: GenerateOutput, settled: GenerationConfig, joint: bool) -> Any:
    beams = found.sequences_scores is not None or found.beam_indices is not None
    name = f"Generate{'Beam' if beams else ''}{'EncoderDecoder' if joint else 'DecoderOnly'}Output"
    fields = {key: value for key, value in found.items() if value is not None}
    if not settled.output_scores:
        fields.pop("sequences_scores", None)
    cache = fields.pop("past_key_values", None)
    if cache is not None:
        fields["past_key_values"] = PagedCache(model.config)
        fields["past_key_values"].attach(cache)
    return getattr(theirs, name)(**fields)
