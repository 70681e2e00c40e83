"""The current GPU: Triton launches on it, whatever the device of the tensors is, and a new thread begins with GPU 0."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

_NONE: AbstractContextManager[None] = contextlib.nullcontext()


def device_guard(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which `device` is the current GPU of this thread; one without effect where it is no GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else _NONE


def on_own_device(method: F) -> F:
    """Decorate a method of an object with a `device`, which is the current GPU while the method runs."""

    @functools.wraps(method)
    def guarded(self: Any, *arguments: Any, **named: Any) -> Any:
        with device_guard(self.device):
            return method(self, *arguments, **named)

    return guarded  # type: ignore[return-value]
