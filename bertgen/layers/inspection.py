"""Whether a module does exactly what its class in torch or bertgen does, so that an operator may take its place.

A module is plain if it is of exactly the expected type, has no hooks and no patched `forward` (of its own or of its
class), and its parameters are plain tensors. Adapters, parametrizations, quantizers and sharding all break one of these
conditions. Only the parameters of a plain module determine its output; any other module must be called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as global_hooks

from ..kernels.plain import PLAIN

_LIBRARY_FORWARDS: dict[type, Any] = {}  # the forward of each class that was checked


def is_plain(module: nn.Module, *types: type) -> bool:
    """Whether a module is plain, and of exactly one of these types (any type if none is given)."""
    cls = type(module)
    if (types and cls not in types) or not is_unpatched(module):
        return False
    for parameter in module.__dict__["_parameters"].values():
        if parameter is not None and type(parameter) not in PLAIN:
            return False
    return has_library_forward(cls)


def is_unpatched(module: nn.Module) -> bool:
    """Whether a module has no hooks and no `forward` of its own: a part of `is_plain`."""
    attributes = module.__dict__
    return not (
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
        or "forward" in attributes
    )


def has_library_forward(*types: type) -> bool:
    """Whether classes have the `forward` of torch or bertgen, and there are no global hooks: a part of `is_plain`."""
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks:
        return False
    if torch.compiler.is_compiling():
        return all(map(_is_library_forward, types))
    return all(_LIBRARY_FORWARDS.get(cls) is cls.forward or _is_library_forward(cls) for cls in types)  # type: ignore[attr-defined]


def _is_library_forward(cls: type) -> bool:
    """Whether the `forward` of a class is defined in a module of torch or bertgen."""
    forward: Any = cls.forward  # type: ignore[attr-defined]
    module = getattr(forward, "__globals__", {}).get("__name__", "")
    if module.partition(".")[0] not in ("torch", "bertgen"):
        return False
    if not torch.compiler.is_compiling():  # in a graph the write would become a guard, and each new class a new graph
        _LIBRARY_FORWARDS[cls] = forward
    return True


def is_plain_layer_norm(module: Any) -> bool:
    """Whether a module is a plain LayerNorm over the last dimension, with weight and bias."""
    return is_plain(module, nn.LayerNorm) and module.bias is not None and len(module.normalized_shape) == 1
