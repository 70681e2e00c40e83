"""Slow paths: where bertgen runs slower than this platform could, what that costs, and the command that ends it.

Results are the same within rounding without the C++ extension or Triton, so nothing else would show that one is
missing. The first generation logs one line for each, and `bertgen info` lists them. A slow path that an environment
variable or `set_backend` chooses is not reported. `python -m bertgen.bench.slow_paths` and `bench.allocator` print the
costs.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..kernels.language import WHY_NOT_TRITON
from . import extension, registry
from .installation import extension_command, triton_command

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlowPath:
    """A path that is slower than another one on this platform.

    Attributes:
        unused: what only the fast path uses: "the C++ extension".
        reason: why it is not used, as a clause.
        cost: how much slower the path is, as a sentence.
        remedy: how to use the fast path, as the beginning of a sentence that ends with the command.
        command: of a shell or of Python.
        choice: the environment variable and value that choose the slow path, as "NAME=value".
    """

    unused: str
    reason: str
    cost: str
    remedy: str
    command: str
    choice: str

    def __str__(self) -> str:
        return (
            f"{self.unused} is not used: {self.reason}. {self.cost}. {self.remedy}: {self.command} "
            f"({self.choice} accepts the slow path and ends this message)"
        )


@dataclass(frozen=True)
class _Cause:
    """A kind of slow path: fields of `SlowPath`, and:

    Attributes:
        costs: type of the model's device -> the cost there; the path is not slower on other devices.
        why_not: the reason; None where the fast path is used.
    """

    unused: str
    costs: dict[str, str]
    why_not: Callable[[], str | None]
    remedy: str
    command: Callable[[], str]
    choice: str

    def slow_path(self, device: str, reason: str) -> SlowPath:
        return SlowPath(self.unused, reason, self.costs[device], self.remedy, self.command(), self.choice)

    def is_chosen(self) -> bool:
        name, _, value = self.choice.partition("=")
        return os.environ.get(name) == value


def _why_not_triton() -> str | None:
    return WHY_NOT_TRITON if sys.platform == "linux" else None  # it has no wheels for other systems


_CAUSES = (
    _Cause(
        "the C++ extension",
        {
            "cpu": "Without it a CPU takes up to 6 times as long for single texts (4 + 4 layers of width 256), and up "
            "to 1.6 times for batches",
            "cuda": "Without it each step takes longer on the host, by 0.6 ms for 256 rows",
        },
        extension.why_not,
        "To build it, install a C++ compiler and run",
        extension_command,
        "BERTGEN_WITHOUT_EXT=1",
    ),
    _Cause(
        "Triton",
        {"cuda": "Without it a GPU runs several kernels of torch in place of one of bertgen's"},
        _why_not_triton,
        "To install it, run",
        triton_command,
        "BERTGEN_BACKEND=reference",
    ),
)

_logged: dict[str, object] = {}  # SlowPath.unused -> a token of the call that logs it


def slow_paths(device: str) -> list[SlowPath]:
    """The slow paths of a model, without those that were chosen.

    Args:
        device: type of the model's device, "cpu" or "cuda".
    """
    return [cause.slow_path(device, reason) for cause, reason in _causes(device)]


def report_slow_paths(device: torch.device) -> None:
    """Log the slow paths of a model that is about to generate, each of them once in a process.

    Raises:
        BackendError: the C++ extension cannot be used, and BERTGEN_REQUIRE_EXT=1.
    """
    extension.available()
    for cause, reason in _causes(device.type):
        token = object()
        if _logged.setdefault(cause.unused, token) is token:  # atomic: one of any number of threads logs it
            logger.warning("%s", cause.slow_path(device.type, reason))


def _causes(device: str) -> Iterator[tuple[_Cause, str]]:
    """The causes of slow paths that were not chosen, and the reason of each."""
    if registry.backend() != "auto":
        return
    for cause in _CAUSES:
        if device in cause.costs and (reason := cause.why_not()) is not None and not cause.is_chosen():
            yield cause, reason
