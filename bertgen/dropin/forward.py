"""`forward` of an accelerated model, with the arguments and outputs of transformers.

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
from . import cache_argument
from .cache import PagedCache
from .state import AccelerationState, fallback, state_of
from .wrapped_model import WrappedModel

# Outputs that only transformers' own modules return in transformers' form.
LAYER_OUTPUTS = ("output_attentions", "output_hidden_states")
_STACK_ARGUMENTS = frozenset(
    "input_ids attention_mask position_ids inputs_embeds encoder_hidden_states encoder_attention_mask "
    "use_cache token_type_ids".split()
) | {cache_argument.NAME}
_DECODER_ARGUMENTS = _STACK_ARGUMENTS | {"labels", "logits_to_keep", "num_items_in_batch"}
_JOINT_ARGUMENTS = frozenset(
    "input_ids attention_mask decoder_input_ids decoder_attention_mask encoder_outputs inputs_embeds "
    "decoder_inputs_embeds labels use_cache position_ids token_type_ids decoder_position_ids decoder_token_type_ids "
    "num_items_in_batch".split()
) | {cache_argument.NAME}


def accelerated_forward(base: type) -> Callable[..., Any]:
    """The `forward` method for an accelerated class, with the signature of the transformers class `base`."""
    signature = inspect.signature(base.forward)  # type: ignore[attr-defined]

    @functools.wraps(base.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        state: AccelerationState = state_of(self)
        reason: str | None = "it is traced (torch.compile, torch.jit.trace, fake tensors, torch.func)"
        if not torch.compiler.is_compiling() and not is_traced():
            reason = state.why_not_forward(self)
        model_declines = reason is not None
        if reason is None:
            wrapped, arguments = state.wrapped_model, _named(signature, self, args, kwargs)
            reason = why_not_arguments(self, wrapped, arguments)
            try:
                if reason is None:
                    with state.running():
                        return _run(self, wrapped, arguments)
            except (ConfigError, UnsupportedError) as error:  # raised before anything was computed
                reason = str(error)
        state.count_fallback("forward", base.__name__, reason)
        keep_recording(self)
        with fallback() if model_declines and not torch.compiler.is_compiling() else nullcontext():
            return base.forward(self, *args, **kwargs)  # type: ignore[attr-defined]

    return forward


def keep_recording(model: Any) -> None:
    """Register the class of an accelerated model where transformers looks up which outputs its hooks record."""
    try:
        from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY
    except ImportError:  # other versions of transformers record in another way
        return
    # The key is the class name in every version. The registry of some versions derives it from a model.
    dict.__setitem__(_CAN_RECORD_REGISTRY, str(model.__class__), model._can_record_outputs)


def _named(signature: inspect.Signature, model: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, without those that are None."""
    bound = signature.bind_partial(model, *args, **kwargs).arguments
    bound.pop("self", None)
    rest = bound.pop("kwargs", {})
    named = cache_argument.with_current_name({**bound, **rest})
    return {name: value for name, value in named.items() if value is not None}


def why_not_arguments(model: Any, wrapped: WrappedModel, arguments: dict[str, Any]) -> str | None:
    """Why a call with these arguments must go through transformers' own code; None if bertgen can run it."""
    config, joint = model.config, isinstance(wrapped.model.config, EncoderDecoderConfig)
    for name in LAYER_OUTPUTS:
        halves = (config.encoder, config.decoder) if joint else (config,)
        if arguments.get(name, any(getattr(half, name, False) for half in halves)):
            return f"{name} is requested"
    supported = _JOINT_ARGUMENTS if joint else _DECODER_ARGUMENTS
    if isinstance(wrapped.model, BertGenerationEncoder):
        supported = _STACK_ARGUMENTS
    for name, value in arguments.items():
        if name not in supported and name not in LAYER_OUTPUTS and name != "return_dict":
            return f"bertgen has no argument {name}"
        if name.endswith(("attention_mask", "position_ids")) and not (
            isinstance(value, torch.Tensor) and value.dim() == 2
        ):
            return f"{name} is not a tensor of two dimensions"
        if name.endswith("token_type_ids") and not _has_token_types(wrapped.model, name):
            return f"{name} are for bert and roberta only"
        if isinstance(value, torch.Tensor) and not value.numel():
            return f"{name} is empty"
    past = arguments.get(cache_argument.NAME)
    if past is not None:
        if not isinstance(past, PagedCache) or not past.is_shared:
            return f"{cache_argument.NAME} is of class {type(past).__name__} that transformers filled"
        if not joint and past.ours is not None and past.ours.has_cross and "encoder_hidden_states" not in arguments:
            return "a call with a cache has no encoder_hidden_states"
    if not joint and not config.is_decoder and ("encoder_hidden_states" in arguments or past is not None):
        return "an encoder has arguments of a decoder"
    cached = 0 if past is None else past.get_seq_length()
    source = _length(arguments.get("encoder_hidden_states"), *states_of(arguments.get("encoder_outputs")))
    inputs = _length(arguments.get("input_ids"), arguments.get("inputs_embeds"))
    targets = _length(*(arguments.get(name) for name in ("decoder_input_ids", "decoder_inputs_embeds", "labels")))
    if not joint and inputs is not None:
        inputs += cached
    for name, length in (
        ("attention_mask", source if joint and source is not None else inputs),
        ("encoder_attention_mask", source),
        ("decoder_attention_mask", None if targets is None else targets + cached),
    ):
        if name in arguments and length is not None and arguments[name].shape[1] != length:
            return f"{name} has {arguments[name].shape[1]} positions for inputs of {length}"
    return None


def _has_token_types(model: Any, name: str) -> bool:
    """Whether the half that an argument belongs to has token types."""
    if isinstance(model.config, EncoderDecoderConfig):
        model = model.decoder if name.startswith("decoder_") else model.encoder
    return isinstance(model.config, BertConfig)


def states_of(outputs: Any) -> tuple[Any, ...]:
    """The last hidden states among an encoder's outputs."""
    if isinstance(outputs, (tuple, list)):
        return tuple(outputs[:1])
    return (getattr(outputs, "last_hidden_state", None),)


def _length(*inputs: Any) -> int | None:
    """Positions of the first input that is a tensor; None if there is none."""
    return next((x.shape[1] for x in inputs if isinstance(x, torch.Tensor) and x.dim() > 1), None)


def _run(original: Any, wrapped: WrappedModel, arguments: dict[str, Any]) -> Any:
    """Run the wrapped model, and return its output in transformers' form."""
    arguments = {name: value for name, value in arguments.items() if name not in LAYER_OUTPUTS}
    return_dict = arguments.pop("return_dict", getattr(original.config, "return_dict", True))
    paged = arguments.pop(cache_argument.NAME, None)
    if original.training or "labels" in arguments:  # a training step needs no cache
        arguments["use_cache"] = False
    if paged is not None and paged.ours is not None:
        arguments["past_key_values"] = paged.ours
    result = wrapped.model(**arguments, return_dict=True)
    fields = dict(result.items())
    cache = fields.pop("past_key_values", None)
    if cache is not None:
        if paged is None:
            paged = PagedCache(original.config)
        paged.attach(cache)
        fields[cache_argument.NAME] = paged
    output = getattr(modeling_outputs, type(result).__name__)(**fields)  # the class of the same name and fields
    return output if return_dict else output.to_tuple()
