"""`generate` of an accelerated model: bertgen's search where every argument is known to it, else transformers' loop.

Importing this module imports transformers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import transformers
from transformers.generation import utils as theirs

from ..config import EncoderDecoderConfig, GenerationConfig
from ..errors import ConfigError, UnsupportedError
from ..outputs import GenerateOutput
from .cache import PagedCache
from .forward import ASKED, keep_recording
from .state import State, plain
from .twin import Twin

# Arguments that need a cache of their own, or one that can be cut.
_CACHES = (
    "past_key_values", "cache_implementation", "cache_config", "use_cache", "assistant_model",
    "prompt_lookup_num_tokens", "custom_generate", "generation_config", "output_attentions",
)  # fmt: skip
_OPTIONS = frozenset(GenerationConfig.__dataclass_fields__) | frozenset(GenerationConfig.UNSUPPORTED)


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
    past = given.get("past_key_values")
    if past is not None and not (isinstance(past, PagedCache) and past.ours is not None and past.is_shared):
        return f"past_key_values are a {type(past).__name__}"
    config = given.get("generation_config") or model.generation_config
    for name in ASKED:
        if given.get(name, getattr(config, name, False)):
            return f"{name} is asked for"
    mask = given.get("attention_mask")
    if mask is not None and mask.dim() != 2:
        return "attention_mask has not two dimensions"
    return None


def _run(model: Any, twin: Twin, given: dict[str, Any]) -> Any:
    ours, joint = twin.ours, isinstance(twin.ours.config, EncoderDecoderConfig)
    given = {name: value for name, value in given.items() if name != "labels"}  # which a Trainer passes along
    ours.generation_config = _converted(model.generation_config)
    if "generation_config" in given:
        given["generation_config"] = _converted(given["generation_config"])
    for name in ("synced_gpus", "use_model_defaults"):  # what they turn off is not there
        if not given.get(name):
            given.pop(name, None)
    for name in ("logits_processor", "stopping_criteria"):
        if name in given:
            given[name] = list(given[name])
    if given.get("past_key_values") is not None:
        given["past_key_values"] = given["past_key_values"].ours
    given.setdefault("infer_attention_mask", _infers_mask() or not joint)
    found = ours.generate(**given)
    return _translated(model, found, joint) if isinstance(found, GenerateOutput) else found


def _converted(config: transformers.GenerationConfig) -> GenerationConfig:
    """The options of transformers' configuration that are set, in ours."""
    values = config.to_diff_dict()
    return GenerationConfig.from_dict({k: v for k, v in values.items() if k in _OPTIONS and v is not None})


def _infers_mask() -> bool:
    """Whether transformers takes pad ids of an encoder's input for padding where no mask is given: until 5.1 it did."""
    major, minor = transformers.__version__.split(".")[:2]
    return (int(major), int(minor)) < (5, 2)


def _translated(model: Any, found: GenerateOutput, joint: bool) -> Any:
    beams = found.sequences_scores is not None or found.beam_indices is not None
    name = f"Generate{'Beam' if beams else ''}{'EncoderDecoder' if joint else 'DecoderOnly'}Output"
    fields = {key: value for key, value in found.items() if value is not None}
    cache = fields.pop("past_key_values", None)
    if cache is not None:
        fields["past_key_values"] = PagedCache(model.config)
        fields["past_key_values"].attach(cache)
    return getattr(theirs, name)(**fields)
