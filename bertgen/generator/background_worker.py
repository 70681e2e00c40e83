"""The background worker: a thread that steps an engine."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Any, Protocol

from .. import process_events
from ..errors import BackendError

logger = logging.getLogger(__name__)


class Steppable(Protocol):
    """What a worker steps: an engine."""

    @property
    def busy(self) -> bool:
        """Whether a call of `step` would do anything."""

    def step(self) -> None:
        """Work on the requests."""

    def clear(self) -> None:
        """Fail the requests."""


class BackgroundWorker:
    """A thread that steps an engine while it has requests. The first `wake` starts the thread.

    Args:
        owner: the thread ends after the owner was garbage collected.
    """

    def __init__(self, engine: Steppable, owner: Any):
        self.engine, self._owner = engine, weakref.ref(owner)
        self.after_fork()
        process_events.register(self)

    def after_fork(self) -> None:
        """Reset in the child of a fork, where the thread does not exist."""
        self._lock = threading.RLock()  # reentrant: the garbage collector may call a `__del__` that submits
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        owner = self._owner()
        if owner is not None:
            weakref.finalize(owner, self._wake.set).atexit = False

    def before_exit(self) -> None:
        """Nothing to do: the engine stops its threads."""

    @property
    def is_this_thread(self) -> bool:
        """Whether the current thread is the worker's."""
        return self._thread is threading.current_thread()

    def wake(self) -> None:
        """Start to step the engine.

        Raises:
            BackendError: no thread can be started any more.
        """
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(
                    target=_step_while_busy, args=(self.engine, self._wake, self._owner), name="bertgen", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as error:
                    raise BackendError(f"no thread to work in the background: {error}") from error
                self._thread = thread
        self._wake.set()


def _step_while_busy(engine: Steppable, wake: threading.Event, owner: weakref.ref[Any]) -> None:
    """Body of the thread."""
    while True:
        wake.wait()
        wake.clear()
        while engine.busy and owner() is not None:
            try:
                engine.step()
            except BaseException:  # all requests fail, and the thread stays for the next ones
                logger.exception("a step failed")
                engine.clear()
        if owner() is None:
            return
