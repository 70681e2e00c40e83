"""Linear layers of a model with 4-bit weights: which ones, and how they are put in place on loading."""

from __future__ import annotations

import os

import torch
from torch import nn

from ..config import Int4Config
from ..errors import CheckpointError, ConfigError, InputError
from ..layers.heads import LMHead
from ..layers.linear import Int4Linear
from ..quantization.int4 import quantize, why_not_int4_weight


def layers_to_quantize(model: nn.Module, config: Int4Config) -> list[str]:
    """Names of the linear layers that a configuration quantizes.

    Raises:
        ConfigError: `config.skip` has a name that no module has.
    """
    modules = dict(model.named_modules())
    for skipped in config.skip:
        if not any(_is_within(name, skipped) for name in modules):
            raise ConfigError(f"skip has {skipped!r}, but {type(model).__name__} has no module of that name")
    heads = {id(m.decoder) for m in model.modules() if isinstance(m, LMHead)}
    return [
        name
        for name, module in modules.items()
        if type(module) is nn.Linear
        and (config.head or id(module) not in heads)
        and not any(_is_within(name, skipped) for skipped in config.skip)
    ]


def quantize_weight(name: str, weight: torch.Tensor, config: Int4Config) -> dict[str, torch.Tensor]:
    """The tensors of a weight [N, K] in 4 bits: "packed", "scale" and perhaps "zero"; `name` is for errors."""
    try:
        packed, scale, zero = quantize(weight, config)
    except InputError as error:
        raise InputError(f"{name}: {error} (skip= leaves modules as they are)") from None
    return {"packed": packed, "scale": scale} | ({} if zero is None else {"zero": zero})


def install_int4_layers(
    model: nn.Module, path_or_id: str | os.PathLike | None, state: dict[str, torch.Tensor], config: Int4Config | None
) -> None:
    """Replace each Linear that has 4-bit weights in `state` by an Int4Linear, and remove these weights from `state`.

    Args:
        path_or_id: of the checkpoint, for errors.
        config: the format of the weights.

    Raises:
        CheckpointError: weights in 4 bits without a format, without scales, or of another shape.
    """
    modules = dict(model.named_modules())
    for path in [name.removesuffix(".packed") for name in state if is_packed(name)]:
        linear = modules.get(path)
        if not isinstance(linear, nn.Linear):
            continue  # reported as not used
        if config is None:
            raise CheckpointError(f"{path_or_id}: {path} is quantized, but config.json has no quantization_config")
        packed, scale, zero = (state.pop(f"{path}.{part}", None) for part in ("packed", "scale", "zero"))
        if scale is None:
            raise CheckpointError(f"{path_or_id}: {path}.scale is missing beside {path}.packed")
        reason = why_not_int4_weight(linear.out_features, linear.in_features, packed, scale, zero, config)
        if reason is not None:
            raise CheckpointError(f"{path_or_id}: {path}: {reason}")
        model.set_submodule(path, Int4Linear(packed, scale, zero, linear.bias, config))


def is_packed(name: str) -> bool:
    """Whether a name in a checkpoint is that of packed 4-bit weights."""
    return name.endswith(".packed")


def _is_within(name: str, part: str) -> bool:
    """Whether the module `name` is, or is inside, a module called `part`; parts of names are whole, between dots."""
    return f".{part}." in f".{name}."
