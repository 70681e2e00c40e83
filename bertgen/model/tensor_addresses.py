"""Where the parameters of a module are in memory, for what keeps their addresses."""

from __future__ import annotations

from typing import Any

from torch import nn


class TensorAddresses:
    """The modules, parameters and buffers of a module, and the addresses of their memory, as they are now."""

    def __init__(self, module: nn.Module):
        # (dict of the owner, name, module or tensor, address of a tensor)
        self._held: list[tuple[dict[str, Any], str, Any, int | None]] = []
        for owner in module.modules():
            parts = vars(owner)
            self._held += [(parts["_modules"], *item, None) for item in parts["_modules"].items()]
            for kind in ("_parameters", "_buffers"):
                for name, tensor in parts[kind].items():
                    self._held.append((parts[kind], name, tensor, None if tensor is None else tensor.data_ptr()))

    def are_current(self) -> bool:
        """Whether all of these are still there. Contents do not count, nor what was added."""
        return all(
            owner.get(name) is part and (address is None or part.data_ptr() == address)
            for owner, name, part, address in self._held
        )
