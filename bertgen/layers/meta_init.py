"""Modules with parameters on the meta device, without values, until a checkpoint fills them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@contextmanager
def init_empty_weights() -> Iterator[None]:
    """Modules constructed inside, in this thread, have uninitialised parameters on the meta device.

    Initialisers are skipped: torch would import its compiler for their meta implementations, which takes a second.
    """
    with torch.device("meta"), _Uninitialised():
        yield


class _Uninitialised(TorchFunctionMode):
    """Functions that fill a tensor return a tensor on the meta device unchanged."""

    FILLS = frozenset(
        (
            *(getattr(nn.init, f"{name}_") for name in ("uniform", "normal", "constant", "kaiming_uniform")),
            *(getattr(torch.Tensor, f"{name}_") for name in ("uniform", "normal", "fill", "zero")),
        )
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in self.FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
