"""The device that a thread works on.

Triton launches on the current GPU, whatever the device of the tensors is, and a new thread begins with GPU 0. On a CPU
torch may have more threads than there are CPUs for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch

from .torch_threads import thread_limit

F = TypeVar("F", bound=Callable[..., Any])


def device_guard(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which `device` is the current GPU of this thread, or torch has no more threads than CPUs."""
    return torch.cuda.device(device) if device.type == "cuda" else thread_limit()


def on_own_device(method: F) -> F:
    """Decorate a method of an object with a `device`: it runs under the guard of this device."""

    @functools.wraps(method)
    def guarded(self: Any, *arguments: Any, **named: Any) -> Any:
        with device_guard(self.device):
            return method(self, *arguments, **named)

    return guarded  # type: ignore[return-value]
