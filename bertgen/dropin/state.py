"""What an accelerated model carries: its options, its twin, and why calls went through transformers' own code."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from .. import ops
from ..errors import ConfigError, UnsupportedError
from .watch import Watch
from .wrapped_model import Twin

logger = logging.getLogger(__name__)
# Whether a call that goes through transformers' own code is under way: what is in it goes there, too.
_plain: ContextVar[bool] = ContextVar("bertgen_plain", default=False)


INSIDE = "it is part of a call that goes through transformers' own code"


@contextmanager
def plain() -> Iterator[None]:
    """Everything as transformers has it, halves of the model as well: whoever has put something into a model sees what
    transformers gives, padding included."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


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
        self._model: nn.Module | None = None  # which the rest is about
        self._twin: Twin | None = None
        self._obstacle: str | None = None
        self._watch: Watch | None = None  # of what the two rest on
        self._loop: tuple[Watch, str | None] | None = None  # that of `generate`, and its obstacle

    def __reduce__(self) -> Any:
        return State, (self.backend, self.generate, self.quantized)

    def twin(self, model: nn.Module) -> Twin:
        """The twin of the model as it is now.

        Raises:
            UnsupportedError: something has come to stand in its way.
        """
        twin = self.ready(model)
        if isinstance(twin, str):
            raise UnsupportedError(twin)
        return twin

    def ready(self, model: nn.Module) -> Twin | str:
        """The twin, or why the model must run as it is."""
        if _plain.get():
            return INSIDE
        if self._watch is None or self._model is not model or self._watch.changed():
            self._settle(model)
        if self._obstacle is not None:
            return self._obstacle
        assert self._twin is not None
        return self._twin

    def ready_to_generate(self, model: nn.Module) -> Twin | str:
        """The twin, or why `generate` must be transformers' own; asked once a call."""
        twin = self.ready(model)
        if isinstance(twin, str):
            return twin
        if self._loop is None or self._loop[0].changed():
            from . import obstacles

            watch = Watch((), obstacles.watched_in_generation())
            self._loop = watch, obstacles.generation_obstacle(model)
        return self._loop[1] or twin

    def _settle(self, model: nn.Module) -> None:
        """Look at all of the model."""
        from . import obstacles

        self._loop = None
        watch = Watch(model.modules(), obstacles.watched(model))  # before the look, so that no change is missed
        try:
            if self._twin is None or self._model is not model or not self._twin.is_current:
                self._twin = None
                self._twin = Twin(model)
            self._obstacle = obstacles.forward_obstacle(self._twin)
            if self._obstacle is None:
                self._twin.follow()
        except (UnsupportedError, ConfigError) as error:  # it has come to have parts that bertgen does not know
            self._obstacle = str(error)
        self._model, self._watch = model, watch

    def detour(self, method: str, name: str, reason: str) -> None:
        """Take note of a call that goes through transformers' own code; the log has each reason once."""
        if reason is INSIDE:
            return
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
