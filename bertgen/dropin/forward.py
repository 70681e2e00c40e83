"""`forward` of an accelerated model: the same arguments and outputs as in transformers.

Importing this module imports transformers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from transformers import modeling_outputs

from ..config import BertConfig, EncoderDecoderConfig
from ..errors import ConfigError, UnsupportedError
from ..kernels.plain import is_traced
from ..model import BertGenerationEncoder
from .cache import PagedCache
from .state import State, plain
from .wrapped_model import Twin

ASKED = ("output_attentions", "output_hidden_states")  # what only transformers' own modules give as it gives them
_BODY = frozenset(
    "input_ids attention_mask position_ids inputs_embeds encoder_hidden_states encoder_attention_mask past_key_values "
    "use_cache token_type_ids".split()
)
_DECODER = _BODY | {"labels", "logits_to_keep", "num_items_in_batch"}
_JOINT = frozenset(
    "input_ids attention_mask decoder_input_ids decoder_attention_mask encoder_outputs past_key_values inputs_embeds "
    "decoder_inputs_embeds labels use_cache position_ids token_type_ids decoder_position_ids decoder_token_type_ids "
    "num_items_in_batch".split()
)


def accelerated_forward(base: type) -> Callable[..., Any]:
    """The method for a class of transformers, with the signature of its own."""
    signature = inspect.signature(base.forward)  # type: ignore[attr-defined]

    @functools.wraps(base.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        state: State = self._bertgen
        twin: Twin | str = "it is traced (torch.compile, torch.jit.trace, fake tensors, torch.func)"
        if not torch.compiler.is_compiling() and not is_traced():
            twin = state.ready(self)
        if isinstance(twin, Twin):
            given = _named(signature, self, args, kwargs)
            reason = _obstacle(self, twin, given)
            try:
                if reason is None:
                    with state.running():
                        return _run(self, twin, given)
            except (ConfigError, UnsupportedError) as error:  # found before anything was computed
                reason = str(error)
        else:
            reason = twin
        state.detour("forward", base.__name__, reason)
        keep_recording(self)
        with plain() if isinstance(twin, str) and not torch.compiler.is_compiling() else nullcontext():
            return base.forward(self, *args, **kwargs)  # type: ignore[attr-defined]

    return forward


def keep_recording(model: Any) -> None:
    """Tell transformers, which looks that up by class, what of an accelerated model its hooks record."""
    try:
        from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY
    except ImportError:  # another way, in another version
        return
    # By the name of the class in every version; the registry of some takes the model and finds the name itself.
    dict.__setitem__(_CAN_RECORD_REGISTRY, str(model.__class__), model._can_record_outputs)


def _named(signature: inspect.Signature, model: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, without those that are None."""
    bound = signature.bind_partial(model, *args, **kwargs).arguments
    bound.pop("self", None)
    rest = bound.pop("kwargs", {})
    return {name: value for name, value in {**bound, **rest}.items() if value is not None}


def _obstacle(model: Any, twin: Twin, given: dict[str, Any]) -> str | None:
    """Why a call with these arguments must go through transformers' own code; None where nothing stands in the way."""
    config, joint = model.config, isinstance(twin.ours.config, EncoderDecoderConfig)
    for name in ASKED:
        halves = (config.encoder, config.decoder) if joint else (config,)
        if given.get(name, any(getattr(half, name, False) for half in halves)):
            return f"{name} is asked for"
    known = _JOINT if joint else _BODY if isinstance(twin.ours, BertGenerationEncoder) else _DECODER
    for name, value in given.items():
        if name not in known and name not in ASKED and name != "return_dict":
            return f"bertgen has no argument {name}"
        if name.endswith(("attention_mask", "position_ids")) and not (
            isinstance(value, torch.Tensor) and value.dim() == 2
        ):
            return f"{name} is no tensor of two dimensions"
        if name.endswith("token_type_ids") and not _has_types(twin.ours, name):
            return f"{name} are for bert and roberta"
        if isinstance(value, torch.Tensor) and not value.numel():
            return f"{name} is empty"
    past = given.get("past_key_values")
    if past is not None:
        if not isinstance(past, PagedCache) or not past.is_shared:
            return f"past_key_values are a {type(past).__name__} of transformers' making"
        if not joint and past.ours is not None and past.ours.has_cross and "encoder_hidden_states" not in given:
            return "a call goes on without encoder_hidden_states"
    if not joint and not config.is_decoder and ("encoder_hidden_states" in given or past is not None):
        return "an encoder was given what is for decoders"
    seen = 0 if past is None else past.get_seq_length()
    source = _length(given.get("encoder_hidden_states"), *states_of(given.get("encoder_outputs")))
    inputs = _length(given.get("input_ids"), given.get("inputs_embeds"))
    targets = _length(*(given.get(name) for name in ("decoder_input_ids", "decoder_inputs_embeds", "labels")))
    if not joint and inputs is not None:
        inputs += seen
    for name, length in (
        ("attention_mask", source if joint and source is not None else inputs),
        ("encoder_attention_mask", source),
        ("decoder_attention_mask", None if targets is None else targets + seen),
    ):
        if name in given and length is not None and given[name].shape[1] != length:
            return f"{name} is longer or shorter than what it is for"
    return None


def _has_types(ours: Any, name: str) -> bool:
    """Whether the half that an argument is for has token types."""
    if isinstance(ours.config, EncoderDecoderConfig):
        ours = ours.decoder if name.startswith("decoder_") else ours.encoder
    return isinstance(ours.config, BertConfig)


def states_of(outputs: Any) -> tuple[Any, ...]:
    """The states among what an encoder returned."""
    if isinstance(outputs, (tuple, list)):
        return tuple(outputs[:1])
    return (getattr(outputs, "last_hidden_state", None),)


def _length(*given: Any) -> int | None:
    """Positions of the first of these that is there."""
    return next((x.shape[1] for x in given if isinstance(x, torch.Tensor) and x.dim() > 1), None)


def _run(model: Any, twin: Twin, given: dict[str, Any]) -> Any:
    ours = twin.ours
    given = {name: value for name, value in given.items() if name not in ASKED}
    return_dict = given.pop("return_dict", getattr(model.config, "return_dict", True))
    paged = given.pop("past_key_values", None)
    if model.training or "labels" in given:  # nobody goes on from there
        given["use_cache"] = False
    if paged is not None and paged.ours is not None:
        given["past_key_values"] = paged.ours
    found = ours(**given, return_dict=True)
    fields = dict(found.items())
    cache = fields.pop("past_key_values", None)
    if cache is not None:
        if paged is None:
            paged = PagedCache(model.config)
        paged.attach(cache)
        fields["past_key_values"] = paged
    output = getattr(modeling_outputs, type(found).__name__)(**fields)  # of the same name and fields
    return output if return_dict else output.to_tuple()
