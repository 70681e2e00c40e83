"""The future of an output that was submitted."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures._base import CANCELLED

from ..engine import Engine
from ..errors import BackendError, UnsupportedError
from .background_worker import BackgroundWorker
from .engine_group import EngineGroup
from .output import Output


class OutputFuture(Future[Output]):
    """A future that never deadlocks: a thread on which the result depends gets an error, or steps the engine itself.

    Args:
        engine: has the request.
        worker: steps the engine.
    """

    def __init__(self, engine: Engine | EngineGroup, worker: BackgroundWorker | EngineGroup):
        super().__init__()
        self._engine, self._worker, self._process = engine, worker, os.getpid()

    def result(self, timeout: float | None = None) -> Output:
        """As `Future.result`.

        Raises:
            UnsupportedError: not done, and called inside a step, which would wait for the next one.
            BackendError: not done, and submitted in the parent process of this fork.
        """
        return super().result(self._step_until_done(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `Future.exception`; raises what `result` does."""
        return super().exception(self._step_until_done(timeout))

    def cancel(self) -> bool:
        """As `Future.cancel`; threads that wait for several futures are notified at once."""
        cancelled = super().cancel()
        with self._condition:
            if cancelled and self._state == CANCELLED:
                self.set_running_or_notify_cancel()
        return cancelled

    def _step_until_done(self, timeout: float | None) -> float | None:
        """Step the engine until the future is done, where no other thread does; returns the remaining timeout."""
        if self.done():
            return timeout
        if os.getpid() != self._process:
            raise BackendError(
                f"process {self._process} submitted this, and this process is a fork of it: it has no result"
            )
        engine = self._engine
        if engine.stepping:
            raise UnsupportedError("a callback runs inside a step and cannot wait for a result")
        if not self._worker.is_this_thread and not engine.exiting:
            return timeout
        start = time.monotonic()
        while not self.done():
            if timeout is not None and time.monotonic() - start > timeout:
                raise FutureTimeoutError
            engine.step()
        return timeout
