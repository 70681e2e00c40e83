"""Snapshot of a model's modules and settings, compared in a few microseconds a layer.

Every attribute of a module, a class, a source file or a configuration is a value in a dict. The snapshot compares all
of these values at once, by identity first. An attribute that was set again counts as a change, even to an equal value.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .hooks import HOOKS, hooks_of

_COMMON = ("training", *HOOKS)
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
_READ_AT_CALL = (
    nn.Linear,
    nn.LayerNorm,
    nn.Embedding,
)  # bertgen calls them, so changed attributes have an effect without a check
_values = operator.methodcaller("values")


class Snapshot:
    """The state of modules and dicts when this object is made.

    Args:
        modules: their classes, attributes, children, hooks and buffers are compared, not their weights.
        mappings: other dicts to compare, such as the hooks of all modules.
    """

    def __init__(self, modules: Iterable[nn.Module], mappings: Iterable[Mapping[Any, Any]] = ()):
        self._modules = list(modules)
        self._dicts = [module.__dict__ for module in self._modules]
        # Modules with the same attribute names share one getter of all these attributes.
        common = [own for own in self._dicts if own.keys() >= _MODULE_ATTRIBUTES]  # a compiled module delegates them
        by_names: dict[tuple[str, ...], list[dict[str, Any]]] = {_COMMON: common}
        for module, own in zip(self._modules, self._dicts, strict=True):
            names = tuple(name for name in own if name not in _MODULE_ATTRIBUTES)
            if names and type(module) not in _READ_AT_CALL:
                by_names.setdefault(names, []).append(own)
        self._attributes = [(operator.itemgetter(*names), dicts) for names, dicts in by_names.items()]
        self._mappings = list(mappings)
        self._mappings += [children for module in self._modules if (children := module._modules)]
        self._mappings += [module._buffers for module in self._modules if module._buffers]
        hooks = [hooks_of(module, name) for module in self._modules for name in HOOKS]
        self._mappings += filter(None, hooks)
        self._empty = [d for d in hooks if not d]  # most dicts of hooks are empty, and `any` checks that fast
        buffers = [t for module in self._modules for t in module._buffers.values() if t is not None]
        self._buffers = [t for t in buffers if not t.is_inference()]  # inference tensors have no version
        self._state = self._now()

    def _now(self) -> tuple[Any, ...]:
        return (
            list(map(type, self._modules)),
            list(map(len, self._dicts)),
            [t._version for t in self._buffers],
            [list(map(read, dicts)) for read, dicts in self._attributes],
            list(map(tuple, map(_values, self._mappings))),
        )

    def changed(self) -> bool:
        """Whether a value differs from the snapshot."""
        if any(self._empty):
            return True
        try:
            return self._now() != self._state
        # An attribute is gone, or a tensor or an array was replaced.
        except (KeyError, RuntimeError, ValueError, TypeError):
            return True
