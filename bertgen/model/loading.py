"""Weights of a checkpoint: check and convert them, and load them into a model."""

from __future__ import annotations

import logging
import os
import re
from functools import partial
from typing import Any

import torch

from .. import out_of_memory
from ..config import Int4Config, half_config, read_json
from ..errors import CheckpointError, ConfigError, UnsupportedError
from ..hub import resolve_file
from .int4_layers import install_int4_layers, is_packed, layers_to_quantize, quantize_weight
from .state_dict import count_layers, rename_tensors

logger = logging.getLogger(__name__)

# Dtypes that a file may hold weights in; float8 without scales is read like any other float.
STORED_DTYPES = frozenset(
    (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
)


def load_weights(
    model: Any,
    path_or_id: str | os.PathLike | None,
    state: dict[str, torch.Tensor],
    values: int,
    device: torch.device,
    dtype: torch.dtype,
    stored_format: Int4Config | None,
    requested_format: Int4Config | None,
    ignore_mismatched_sizes: bool = False,
) -> dict[str, set[Any]]:
    """Load the tensors of a checkpoint into a model on the meta device, and initialize parameters that it lacks.

    Args:
        model: a `PretrainedModel`.
        path_or_id: of the checkpoint, for errors.
        state: the tensors of the checkpoint, under the names of the model.
        values: number of values in the checkpoint.
        device, dtype: of the model.
        stored_format: of linear layers in the checkpoint.
        requested_format: the one to quantize linear layers to.
        ignore_mismatched_sizes: initialize weights of another shape, too.

    Returns:
        The names that do not match, by transformers' keys: missing_keys, unexpected_keys, mismatched_keys, error_msgs.
    """
    own, lean = model.state_dict(), bool(stored_format or requested_format)
    _check_weights(path_or_id, state, own)
    state = {name: t for name, t in state.items() if t.is_floating_point() or is_packed(name)}
    quantized = set()
    if requested_format:
        quantized = {f"{path}.weight" for path in layers_to_quantize(model, requested_format)}
    converted: dict[tuple, dict[str, torch.Tensor]] = {}  # by memory location: a tensor may have several names
    loaded: dict[str, torch.Tensor] = {}
    mismatched: dict[str, tuple[Any, ...]] = {}  # name -> name, shape in the file, shape of the configuration
    for name, tensor in state.items():
        if name in own and tensor.shape != own[name].shape:
            if ignore_mismatched_sizes:
                mismatched[name] = (name, tensor.shape, own[name].shape)
                continue
            raise CheckpointError(
                f"{path_or_id}: {name} has shape {tuple(tensor.shape)}, the configuration needs "
                f"{tuple(own[name].shape)}"
            )
        location = tensor.data_ptr(), tensor.shape, tensor.dtype, name in quantized
        if location not in converted:
            floating = tensor.is_floating_point()
            new = tensor.to(device, dtype if floating else tensor.dtype, copy=lean)
            if floating and not _is_finite(new):
                in_dtype = f" in {str(dtype).removeprefix('torch.')}" if _is_finite(tensor) else ""
                raise CheckpointError(f"{path_or_id}: {name} holds values that are not finite{in_dtype}")
            if requested_format and name in quantized:
                converted[location] = quantize_weight(name, new, requested_format)
            else:
                converted[location] = {"": new}
            if lean:
                out_of_memory.release(tensor)
        loaded.update(
            (name.removesuffix("weight") + part if part else name, t) for part, t in converted[location].items()
        )
    install_int4_layers(model, path_or_id, loaded, requested_format or stored_format)
    model.load_state_dict({k: t for k, t in loaded.items() if k in own}, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, p in model.named_parameters() if p.is_meta]
    if len(missing) == len(list(model.parameters())):
        raise CheckpointError(f"{path_or_id} holds no weight of a {type(model).__name__}: {sorted(state)[:3]} ...")
    for name, parameter in model.named_parameters():
        if parameter.is_meta and name not in mismatched and parameter.numel() > values:
            raise CheckpointError(
                f"{path_or_id}: {name} is missing, and the configuration gives it the shape "
                f"{tuple(parameter.shape)}: more values than the whole checkpoint has"
            )
    model.initialize_missing(like=torch.empty(0, dtype=dtype, device=device))
    missing = [name for name in missing if name not in mismatched]
    unused = sorted(set(loaded) - set(own))
    for names, treatment in (
        (missing, "missing, initialised at random"),
        (sorted(mismatched), "of another shape in the file, initialised at random"),
        (unused, "not used"),
    ):
        if names:
            logger.warning("%s: weights %s: %s", path_or_id, treatment, summarize_names(names))
    return dict(
        missing_keys=set(missing),
        unexpected_keys=set(unused),
        mismatched_keys=set(mismatched.values()),
        error_msgs=set(),
    )


def _check_weights(
    path_or_id: str | os.PathLike | None, state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]
) -> None:
    """Raise where a tensor under the name of one of the model's `own` cannot be its weight.

    Raises:
        CheckpointError: its dtype is none of `STORED_DTYPES`.
        UnsupportedError: it is quantized by another library.
    """
    for name, tensor in state.items():
        if name in own and own[name].is_floating_point() and tensor.dtype not in STORED_DTYPES:
            raise CheckpointError(f"{path_or_id}: {name} holds {tensor.dtype}, which is not a dtype of weights")
        if name in own and (f"{name}_scale" in state or f"{name}_scale_inv" in state):
            raise UnsupportedError(
                f"{path_or_id}: {name} is {tensor.dtype} with a scale; of quantized weights only those in 4 bits "
                "of bertgen and bitsandbytes can be loaded"
            )


def check_size(path_or_id: str | os.PathLike | None, cls: type, config: Any, state: dict[str, torch.Tensor]) -> None:
    """Raise CheckpointError where a configuration has more or wider layers than a checkpoint.

    Called before the model is made, so that a wrong configuration does not exhaust the memory.
    """
    stored = count_layers(state)
    widest = max((side for tensor in state.values() for side in tensor.shape), default=0)
    for half in (config, getattr(config, "encoder", config), getattr(config, "decoder", config)):
        layers = getattr(half, "num_hidden_layers", 0)
        if layers > 0 == stored:
            raise CheckpointError(f"{path_or_id} holds no weight of a {cls.__name__}: {sorted(state)[:3]} ...")
        if layers > stored:
            raise CheckpointError(f"{path_or_id}: the configuration needs {layers} layers, the weights are of {stored}")
        if (width := getattr(half, "hidden_size", 0)) > widest:
            raise CheckpointError(f"{path_or_id}: hidden_size is {width}, no weight has a side of more than {widest}")


def rename_keys(state: dict[str, torch.Tensor], key_mapping: dict[str, str] | None) -> dict[str, torch.Tensor]:
    """The tensors under new names.

    Args:
        key_mapping: regular expression -> replacement.

    Raises:
        ConfigError: a key is no regular expression.
    """
    for pattern, replacement in (key_mapping or {}).items():
        state = rename_tensors(state, partial(_substituted, pattern, replacement))
    return state


def current_name(name: str) -> str:
    """The name of a weight in current checkpoints, from that in checkpoints of TensorFlow."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def first_position(path_or_id: str | os.PathLike, hub: dict[str, Any]) -> int:
    """Row of the position table at which the texts of a BERT or RoBERTa checkpoint begin; ConfigError for others."""
    values = read_json(resolve_file(path_or_id, "config.json", hub))
    if values.get("model_type") not in ("bert", "roberta"):
        raise ConfigError(f"fold_embeddings is for a BERT or RoBERTa; {path_or_id} is {values.get('model_type')!r}")
    return half_config(values).first_position


def summarize_names(names: list[str]) -> str:
    """Names of weights for a message; the layers of a stack are one entry with their number."""
    by_pattern: dict[str, list[str]] = {}
    for name in names:
        by_pattern.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return ", ".join(same[0] if len(same) == 1 else f"{kind} ({len(same)})" for kind, same in by_pattern.items())


def _substituted(pattern: str, replacement: str, name: str) -> str:
    try:
        return re.sub(pattern, replacement, name)
    except (re.error, IndexError) as error:
        raise ConfigError(f"key_mapping: {pattern!r} -> {replacement!r} is no regular expression: {error}") from error


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite, computed without a second tensor of this size."""
    return tensor.numel() == 0 or all(bool(end.isfinite()) for end in tensor.aminmax())
