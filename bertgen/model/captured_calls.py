"""Whether the calls of a module can be repeated without its Python code, as the replay of a capture does."""

from __future__ import annotations

import torch
from torch import nn

from ..kernels.plain import PLAIN, is_intercepted
from ..layers.inspection import has_library_forward, is_unpatched


def why_not_captured(module: nn.Module) -> str | None:
    """Why repeated calls of a module in inference need its Python code, as one clause; None where they do not."""
    device = next(module.parameters()).device.type
    if torch.is_autocast_enabled(device):
        return "autocast chooses other dtypes"
    if torch.compiler.is_compiling() or is_intercepted():
        return "operators are traced or intercepted"
    classes, left = set(), [module]
    while left:  # `modules()` takes several times as long
        part = left.pop()
        left += filter(None, vars(part)["_modules"].values())
        if part.training:
            return "the model is in training mode"
        if not is_unpatched(part):
            return f"a {type(part).__name__} has a hook or a forward of its own"
        classes.add(type(part))
        for parameter in vars(part)["_parameters"].values():
            if parameter is not None and type(parameter) not in PLAIN:
                return f"a parameter is a {type(parameter).__name__}"
    if not has_library_forward():
        return "all modules have a hook"
    other = next((cls for cls in classes if not has_library_forward(cls)), None)
    return None if other is None else f"a {other.__name__} is no module of the library"
