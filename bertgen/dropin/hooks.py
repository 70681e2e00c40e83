"""Hooks of modules: those of one module, and those that torch runs at every module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooks_of(module: nn.Module, kind: str) -> Mapping[Any, Any]:
    """The hooks of a module; `kind` is one of HOOKS."""
    return module.__dict__.get(kind, {})


def global_hooks() -> list[Mapping[Any, Any]]:
    """The hooks that torch runs at every module, one dict for each of HOOKS."""
    names = (f"_global{name}" for name in HOOKS)
    return [getattr(torch.nn.modules.module, name) for name in names]
