"""What an accelerated model carries: its options, its twin, and why calls went through transformers' own code."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .. import ops
from ..errors import UnsupportedError
from .twin import Twin

logger = logging.getLogger(__name__)


class State:
    """Of one accelerated model; a copy of the model gets one with the same options, and makes a twin of its own.

    Args:
        backend: as `ops.set_backend` takes it; "auto" leaves the choice to the process.
        generate: `generate` goes through bertgen too.
        quantized: `accelerate` has put the weights into 4 bits.

    Attributes:
        detours: method and reason -> calls that went through transformers' own code because of it.
    """

    def __init__(self, backend: str = "auto", generate: bool = True, quantized: bool = False):
        self.backend, self.generate, self.quantized = backend, generate, quantized
        self.detours: Counter[str] = Counter()
        self._twin: Twin | None = None

    def __reduce__(self) -> Any:
        return State, (self.backend, self.generate, self.quantized)

    def twin(self, model: nn.Module) -> Twin:
        """The twin of the model as it is now.

        Raises:
            UnsupportedError: it has come to have parts that bertgen does not know.
        """
        if self._twin is None or self._twin.theirs is not model or not self._twin.is_current:
            self._twin = Twin(model)
        self._twin.follow()
        return self._twin

    def ready(self, model: nn.Module) -> Twin | str:
        """The twin, or why the model must run as it is."""
        try:
            twin = self.twin(model)
        except UnsupportedError as error:
            return str(error)
        return twin.obstacle() or twin

    def detour(self, method: str, name: str, reason: str) -> None:
        """Take note of a call that goes through transformers' own code; the log has each reason once."""
        why = f"{method}: {reason}"
        if why not in self.detours:
            logger.warning("%s of %s goes through transformers' own code: %s", method, name, reason)
        self.detours[why] += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """With the operators' backend that was asked for."""
        if self.backend == "auto":
            yield
            return
        before = ops.set_backend(self.backend)
        try:
            yield
        finally:
            ops.set_backend(before)
