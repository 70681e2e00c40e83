"""Where the parameters of a module are in memory, for what keeps their addresses."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

# Attributes of modules that change what these compute, where they have them.
WATCHED = (
    "activation", "config", "eps", "heads", "intermediate_act_fn", "max_norm", "normalized_shape", "transform_act_fn",
)  # fmt: skip


class TensorAddresses:
    """The modules, parameters and buffers of a module, and the addresses of their memory, as they are now.

    Nothing is kept alive: what is kept beside a model may have one.
    """

    def __init__(self, module: nn.Module):
        # (owner, kind, name, module or tensor, address of a tensor)
        self._held: list[tuple[weakref.ref[nn.Module], str, str, Any, int | None]] = []
        self._attributes: list[tuple[weakref.ref[nn.Module], str, Any]] = []
        for owner in module.modules():
            reference, parts = weakref.ref(owner), vars(owner)
            self._held += [
                (reference, "_modules", name, _reference(child), None) for name, child in parts["_modules"].items()
            ]
            for kind in ("_parameters", "_buffers"):
                for name, tensor in parts[kind].items():
                    address = None if tensor is None else tensor.data_ptr()
                    self._held.append((reference, kind, name, _reference(tensor), address))
            self._attributes += [(reference, name, parts[name]) for name in WATCHED if name in parts]

    def are_current(self) -> bool:
        """Whether all of these are still there. Contents do not count, nor what was added."""
        for reference, kind, name, part, address in self._held:
            owner = reference()
            if owner is None:
                return False
            found = vars(owner)[kind].get(name)
            if found is not part() or (found is None) is not (part is _nothing):
                return False
            if address is not None and found.data_ptr() != address:
                return False
        return all(
            (owner := reference()) is not None and _same(vars(owner).get(name), value)
            for reference, name, value in self._attributes
        )


def _reference(value: Any) -> Any:
    """Returns the value while it lives."""
    return _nothing if value is None else weakref.ref(value)


def _nothing() -> None:
    """In place of a reference to None."""


def _same(value: Any, other: Any) -> bool:
    return value is other or (isinstance(value, (int, float, str, tuple)) and value == other)
