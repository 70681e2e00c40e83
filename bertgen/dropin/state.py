"""State of an accelerated model: its options, its wrapped model, and the calls that fell back to transformers."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from .. import ops
from ..errors import ConfigError, UnsupportedError
from .snapshot import Snapshot
from .wrapped_model import WrappedModel

logger = logging.getLogger(__name__)
# Whether a call that runs transformers' own code is under way: the models inside it run that code as well.
_fallback: ContextVar[bool] = ContextVar("bertgen_fallback", default=False)

INSIDE_FALLBACK = "it is part of a call that goes through transformers' own code"


@contextmanager
def fallback() -> Iterator[None]:
    """Run transformers' own code inside the block, in the halves of a model too.

    A hook or a replaced module then gets the same inputs as in transformers, padding included.
    """
    token = _fallback.set(True)
    try:
        yield
    finally:
        _fallback.reset(token)


class AccelerationState:
    """State of one accelerated model. A copy of the model gets the same options and makes its own wrapped model.

    Args:
        backend: a name for `ops.set_backend`; "auto" keeps the backend of the process.
        generate: `generate` runs bertgen's search.
        quantized: `accelerate` has put the weights into 4 bits.

    Attributes:
        fallbacks: "method: reason" -> calls that went through transformers' own code for this reason.
    """

    def __init__(self, backend: str = "auto", generate: bool = True, quantized: bool = False):
        self.backend, self.generate, self.quantized = backend, generate, quantized
        self.fallbacks: Counter[str] = Counter()
        self._original: nn.Module | None = None  # the model that the fields below belong to
        self._wrapped: WrappedModel | None = None
        self._reason: str | None = None  # the result of `why_not_forward`
        self._snapshot: Snapshot | None = None  # of everything that these depend on
        self._search: tuple[Snapshot, str | None] | None = None  # the same for `generate`

    def __reduce__(self) -> Any:
        return AccelerationState, (self.backend, self.generate, self.quantized)

    @property
    def wrapped_model(self) -> WrappedModel:
        """The wrapped model, which is up to date after `why_not_forward` has returned None."""
        assert self._wrapped is not None
        return self._wrapped

    def why_not_forward(self, model: nn.Module) -> str | None:
        """Why every call must run transformers' own code; None if bertgen can run the model."""
        if _fallback.get():
            return INSIDE_FALLBACK
        if self._snapshot is None or self._original is not model or self._snapshot.changed():
            self._inspect(model)
        return self._reason

    def why_not_generate(self, model: nn.Module) -> str | None:
        """Why every call of `generate` must run transformers' own; None if bertgen can search."""
        reason = self.why_not_forward(model)
        if reason is not None:
            return reason
        if self._search is None or self._search[0].changed():
            from . import reasons

            snapshot = Snapshot((), reasons.generate_dependencies())
            self._search = snapshot, reasons.why_not_generate(model)
        return self._search[1]

    def _inspect(self, model: nn.Module) -> None:
        """Inspect the whole model, and wrap it again where its modules or its configuration changed."""
        from . import reasons

        self._search = None
        # The snapshot is taken before the inspection, so that no change is missed.
        snapshot = Snapshot(model.modules(), reasons.forward_dependencies(model))
        try:
            if self._wrapped is None or self._original is not model or not self._wrapped.is_current:
                self._wrapped = None
                self._wrapped = WrappedModel(model)
            self._reason = reasons.why_not_forward(self._wrapped)
            if self._reason is None:
                self._wrapped.sync()
        except (UnsupportedError, ConfigError) as error:  # the model has a part that bertgen does not have
            self._reason = str(error)
        self._original, self._snapshot = model, snapshot

    def count_fallback(self, method: str, name: str, reason: str) -> None:
        """Count a call that goes through transformers' own code; each reason is logged once."""
        if reason is INSIDE_FALLBACK:
            return
        key = f"{method}: {reason}"
        if key not in self.fallbacks:
            logger.warning("%s of %s goes through transformers' own code: %s", method, name, reason)
        self.fallbacks[key] += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """Set the operators' backend for a call."""
        if self.backend == "auto":
            yield
            return
        before = ops.set_backend(self.backend)
        try:
            yield
        finally:
            ops.set_backend(before)


State = AccelerationState  # its name in pickles of earlier commits


class Accelerated:
    """Base of all accelerated classes, besides transformers' own class."""

    @functools.cached_property
    def _bertgen(self) -> AccelerationState:
        """The state of a model made by a class itself or by its from_pretrained; `accelerate` sets its own."""
        return AccelerationState()


def is_accelerated(model: Any) -> bool:
    """Whether the model's class is an accelerated one."""
    return issubclass(type(model), Accelerated)


def state_of(model: Any) -> AccelerationState:
    """The state of an accelerated model."""
    return model._bertgen


def set_state(model: Any, state: AccelerationState) -> None:
    """Give an accelerated model a state."""
    model.__dict__["_bertgen"] = state


def take_state(model: Any) -> AccelerationState | None:
    """Remove the state from a model and return it; None if the model has none."""
    return model.__dict__.pop("_bertgen", None)
