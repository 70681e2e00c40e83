"""Whether anything has changed that a verdict on a model rests on, at the price of a few microseconds a layer.

What can be set on a module, on a class, in a file of functions or in a configuration are the values of a dict. All of
them are compared at once, by identity first: values that were set anew are a change even where they are equal.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
_EVERYWHERE = ("training", *HOOKS)
_OF_ALL = frozenset(vars(nn.Module()))
_READ_LATE = (nn.Linear, nn.LayerNorm, nn.Embedding)  # nothing rests on the attributes of these
_values = operator.methodcaller("values")


class Watch:
    """The state of modules and of dicts at the time this is made.

    Args:
        modules: whose class, attributes, children, hooks and buffers are watched, not the weights.
        others: dicts of anything else; hooks that concern all modules among them.
    """

    def __init__(self, modules: Iterable[nn.Module], others: Iterable[Mapping[Any, Any]] = ()):
        self._modules = list(modules)
        self._dicts = [module.__dict__ for module in self._modules]
        # Attributes that some modules have, of all modules that have the same ones.
        common = [own for own in self._dicts if own.keys() >= _OF_ALL]  # a compiled module's mode is another's
        alike: dict[tuple[str, ...], list[dict[str, Any]]] = {_EVERYWHERE: common}
        for module, own in zip(self._modules, self._dicts, strict=True):
            names = tuple(name for name in own if name not in _OF_ALL)
            if names and type(module) not in _READ_LATE:
                alike.setdefault(names, []).append(own)
        self._alike = [(operator.itemgetter(*names), dicts) for names, dicts in alike.items()]
        self._mappings = list(others)
        self._mappings += [children for module in self._modules if (children := module._modules)]
        self._mappings += [module._buffers for module in self._modules if module._buffers]
        hooks = [hooks_of(module, name) for module in self._modules for name in HOOKS]
        self._mappings += filter(None, hooks)
        self._idle = [d for d in hooks if not d]  # most: a look at them all takes no time
        buffers = [t for module in self._modules for t in module._buffers.values() if t is not None]
        self._buffers = [t for t in buffers if not t.is_inference()]  # those of inference mode have no version
        self._seen = self._now()

    def _now(self) -> tuple[Any, ...]:
        return (
            list(map(type, self._modules)),
            list(map(len, self._dicts)),
            [t._version for t in self._buffers],
            [list(map(read, dicts)) for read, dicts in self._alike],
            list(map(tuple, map(_values, self._mappings))),
        )

    def changed(self) -> bool:
        """Whether anything is not as it was."""
        if any(self._idle):
            return True
        try:
            return self._now() != self._seen
        except (KeyError, RuntimeError, ValueError, TypeError):  # one is gone; tensors or arrays, of which one is new
            return True


def hooks_of(module: nn.Module, kind: str) -> Mapping[Any, Any]:
    """The hooks of one kind that hang on a module."""
    return module.__dict__.get(kind, {})


def global_hooks() -> list[Mapping[Any, Any]]:
    """Hooks that torch runs at every module."""
    names = (f"_global{name}" for name in HOOKS)
    return [getattr(torch.nn.modules.module, name) for name in names]
