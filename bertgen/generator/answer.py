"""The answer to a text that was submitted, before it is there."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from concurrent.futures._base import CANCELLED

from ..errors import BackendError, UnsupportedError
from .background_worker import Worker
from .output import Output


class Answer(Future[Output]):
    """A future that knows who works for it: whoever would wait for itself is told, or works.

    Args:
        worker: drives the engine.
    """

    def __init__(self, worker: Worker):
        super().__init__()
        self._worker, self._process = worker, os.getpid()

    def result(self, timeout: float | None = None) -> Output:
        """As `Future.result`.

        Raises:
            UnsupportedError: not done, and asked in the middle of a step, which would wait for the next one.
            BackendError: not done, and submitted before a fork whose child this is.
        """
        return super().result(self._awaited(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `Future.exception`; raises what `result` does."""
        return super().exception(self._awaited(timeout))

    def cancel(self) -> bool:
        """As `Future.cancel`; who waits for several futures is told at once."""
        cancelled = super().cancel()
        with self._condition:
            if cancelled and self._state == CANCELLED:
                self.set_running_or_notify_cancel()
        return cancelled

    def _awaited(self, timeout: float | None) -> float | None:
        """Work until it is done, if nobody else can; returns the time that is left to wait."""
        if self.done():
            return timeout
        if os.getpid() != self._process:
            raise BackendError(f"submitted by process {self._process}, of which this is a fork: the answer is there")
        engine = self._worker.engine
        if engine.stepping:
            raise UnsupportedError("a function that is called in the middle of a step cannot wait for an answer")
        if not self._worker.is_this_thread and not engine.exiting:
            return timeout
        start = time.monotonic()
        while not self.done():
            if timeout is not None and time.monotonic() - start > timeout:
                raise Late
            engine.step()
        return timeout
