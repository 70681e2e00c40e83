"""`forward` of an accelerated model: the same arguments and outputs as in transformers.

Importing this module imports transformers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import modeling_outputs

from ..config import EncoderDecoderConfig
from ..kernels.plain import is_traced
from ..model import BertGenerationEncoder
from .cache import PagedCache
from .state import State
from .twin import Twin

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
        given = _named(signature, self, args, kwargs)
        twin: Twin | str = "it is traced (torch.compile, torch.jit.trace, fake tensors, torch.func)"
        if not torch.compiler.is_compiling() and not is_traced():
            twin = state.ready(self)
        if isinstance(twin, Twin):
            reason = _obstacle(self, twin, given)
            if reason is None:
                with state.running():
                    return _run(self, twin, given)
        else:
            reason = twin
        state.detour("forward", base.__name__, reason)
        keep_recording(self)
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
        if name.endswith("attention_mask") and not (isinstance(value, torch.Tensor) and value.dim() == 2):
            return f"{name} is no tensor of two dimensions"
    past = given.get("past_key_values")
    if past is not None:
        if not isinstance(past, PagedCache) or not past.is_shared:
            return f"past_key_values are a {type(past).__name__} of transformers' making"
        if not joint and past.ours is not None and past.ours.has_cross and "encoder_hidden_states" not in given:
            return "a call goes on without encoder_hidden_states"
    if not joint and not config.is_decoder and ("encoder_hidden_states" in given or past is not None):
        return "an encoder was given what is for decoders"
    length = _length(given.get("input_ids"), given.get("inputs_embeds"))
    if length is not None and not joint and past is not None:
        length += past.get_seq_length()
    if not _fits(given.get("attention_mask"), length):
        return "attention_mask is longer or shorter than the input"
    return None


def _length(*given: Any) -> int | None:
    return next((x.shape[1] for x in given if isinstance(x, torch.Tensor) and x.dim() > 1), None)


def _fits(mask: torch.Tensor | None, length: int | None) -> bool:
    return mask is None or length is None or mask.shape[1] == length


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
