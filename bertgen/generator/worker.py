"""Work in the background."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from ..engine import Engine


class Worker:
    """A thread that drives an engine while there is anything to do; it begins at the first `wake`.

    Args:
        owner: the thread ends with it.
    """

    def __init__(self, engine: Engine, owner: Any):
        self._engine, self._owner = engine, weakref.ref(owner)
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        weakref.finalize(owner, self._wake.set)

    def wake(self) -> None:
        """There is something to do."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=_work, args=(self._engine, self._wake, self._owner), name="bertgen", daemon=True
            )
            self._thread.start()
        self._wake.set()


def _work(engine: Engine, wake: threading.Event, owner: weakref.ref[Any]) -> None:
    """Drive the engine while there is anything to do, and the owner is there."""
    while True:
        wake.wait()
        wake.clear()
        while engine.busy and owner() is not None:
            engine.step()
        if owner() is None:
            return
