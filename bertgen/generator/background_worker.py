"""Work in the background."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Any

from .. import process_events
from ..engine import Engine
from ..errors import BackendError

_log = logging.getLogger(__name__)


class Worker:
    """A thread that drives an engine while there is anything to do; it begins at the first `wake`.

    Args:
        owner: the thread ends with it.
    """

    def __init__(self, engine: Engine, owner: Any):
        self.engine, self._owner = engine, weakref.ref(owner)
        self.after_fork()
        process_events.register(self)

    def after_fork(self) -> None:
        """Begin anew in the child of a fork, which has not the thread."""
        self._lock = threading.RLock()  # the garbage collector may call a `__del__` that submits
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        owner = self._owner()
        if owner is not None:
            weakref.finalize(owner, self._wake.set).atexit = False

    def before_exit(self) -> None:
        """The engine lets no thread go on."""

    @property
    def is_this_thread(self) -> bool:
        """Whether it is the thread that asks."""
        return self._thread is threading.current_thread()

    def wake(self) -> None:
        """There is something to do; BackendError where no thread can be begun any more."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(
                    target=_work, args=(self.engine, self._wake, self._owner), name="bertgen", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as error:
                    raise BackendError(f"no thread to work in the background: {error}") from error
                self._thread = thread
        self._wake.set()


def _work(engine: Engine, wake: threading.Event, owner: weakref.ref[Any]) -> None:
    """Drive the engine while there is anything to do, and the owner is there."""
    while True:
        wake.wait()
        wake.clear()
        while engine.busy and owner() is not None:
            try:
                engine.step()
            except BaseException:  # whoever waits is told, and the next text finds a worker
                _log.exception("a step failed")
                engine.clear()
        if owner() is None:
            return
