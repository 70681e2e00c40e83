"""Several engines with one queue: one for each device, each stepped by a thread of its own.

A request waits in the queue until an engine has rows for it. An engine takes no more than its share of what waits, so
that all of them have work. Which engine takes a request does not change its output: a sample depends on its seed and
index.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

from .. import process_events
from ..config import EngineConfig
from ..engine import Engine, EngineStatistics, Request
from ..engine.request import RequestState
from ..errors import BackendError, InputError, UnsupportedError
from ..model import EncoderDecoderModel
from .background_worker import BackgroundWorker

logger = logging.getLogger(__name__)

OnDone = Callable[[Request], Any]


class _Queue:
    """What all threads of a group share.

    Attributes:
        changed: guards the queue; notified when a request arrives or is done.
        waiting: requests that no engine has taken, in their order, and the `on_done` of each.
        done: requests that were done so far.
    """

    def __init__(self, engines: int):
        self.engines = engines
        self.reset()

    def reset(self) -> None:
        self.changed = threading.Condition(threading.RLock())  # the garbage collector may cancel while it is held
        self.waiting: OrderedDict[Request, OnDone] = OrderedDict()
        self.done = 0

    def report(self, on_done: OnDone, request: Request) -> None:
        """Call `on_done` of a request, then notify the threads that wait."""
        try:
            on_done(request)
        finally:
            with self.changed:
                self.done += 1
                self.changed.notify_all()


class _Member:
    """An engine and its way to the queue; its thread steps this as it would step the engine."""

    def __init__(self, engine: Engine, queue: _Queue):
        self.engine, self.queue = engine, queue
        self.taken: list[Request] = []

    @property
    def busy(self) -> bool:
        """Whether a call of `step` would do anything."""
        return self.engine.busy or bool(self.queue.waiting)

    def step(self) -> None:
        """Take requests from the queue, then step the engine."""
        self._take()
        if self.engine.busy:
            self.engine.step()

    def _take(self) -> None:
        """Move requests from the queue to the engine while it has rows for them."""
        queue = self.queue
        with queue.changed:
            if not queue.waiting:
                return
            self.taken = [request for request in self.taken if not (request.done or request.cancelled)]
            rows = sum(request.rows for request in self.taken)
            share = -(-len(queue.waiting) // queue.engines)
            while queue.waiting and share:
                request, on_done = next(iter(queue.waiting.items()))
                rows += request.rows
                if self.taken and rows > (self.engine.config.max_rows or rows):
                    break
                del queue.waiting[request]
                self.engine.scheduler.submit([request], on_done)
                self.taken.append(request)
                share -= 1

    def clear(self) -> None:
        """Free the memory of the engine; its requests fail."""
        self.engine.clear()


class EngineGroup:
    """One engine for each model, with the methods of `Engine` that a Generator calls.

    Args:
        models: equal ones, each on its device.
        config: limits of each engine.

    Attributes:
        engines: in the order of the models.
    """

    def __init__(self, models: Sequence[EncoderDecoderModel], config: EngineConfig):
        self.engines = [Engine(model, config) for model in models]
        self.config = self.engines[0].config
        self._queue = _Queue(len(self.engines))
        self._members = [_Member(engine, self._queue) for engine in self.engines]
        self._workers = [BackgroundWorker(member, self) for member in self._members]
        self._seen = threading.local()
        process_events.register(self)

    def after_fork(self) -> None:
        """Reset in the child of a fork: requests in flight stay with the parent."""
        self._queue.reset()
        for member in self._members:
            member.taken = []

    def before_exit(self) -> None:
        """Fail what no engine has taken: the interpreter ends."""
        self._fail_waiting()

    def submit(self, requests: Iterable[Request], on_done: OnDone) -> list[Request]:
        """Queue requests; arguments and errors as `Engine.submit`.

        Raises:
            BackendError: also where no thread can be started any more.
        """
        requests, queue = self.engines[0].check(requests), self._queue
        for engine in self.engines[1:]:
            for request in requests:
                engine.check_capacity(request)
        with queue.changed:
            seen: set[Request] = set()
            for request in requests:
                if request.state is not RequestState.NEW or request in queue.waiting or request in seen:
                    raise InputError(
                        f"request {request.number} was submitted before: make a new Request for each result"
                    )
                seen.add(request)
            queue.waiting.update((request, lambda request: queue.report(on_done, request)) for request in requests)
            queue.changed.notify_all()
        try:
            self.wake()
        except BackendError:
            self.cancel(requests)
            raise
        return requests

    def wake(self) -> None:
        """Start to work in the background, on every device; raises what `BackgroundWorker.wake` does."""
        for worker in self._workers:
            worker.wake()

    @property
    def is_this_thread(self) -> bool:
        """Whether the current thread is one of the group's."""
        return self._own_member is not None

    @property
    def _own_member(self) -> _Member | None:
        """What the current thread steps, where it is one of the group's."""
        pairs = zip(self._workers, self._members, strict=True)
        return next((member for worker, member in pairs if worker.is_this_thread), None)

    def cancel(self, requests: Iterable[Request]) -> None:
        """Drop requests that are not done, as `Engine.cancel`."""
        requests = list(requests)
        with self._queue.changed:
            for request in requests:
                if self._queue.waiting.pop(request, None) is not None:
                    request.cancelled = True
                    request.cancel()
        taken = [request for request in requests if not request.done and not request.cancelled]
        if taken:
            for engine in self.engines:
                engine.cancel(taken)

    def clear(self) -> None:
        """Free the memory of all engines, now or after their current steps; requests that are not done fail."""
        self._fail_waiting()
        blocking = not self.stepping  # two steps that waited for each other would never end
        for engine in self.engines:
            engine.clear(blocking)

    def _fail_waiting(self) -> None:
        with self._queue.changed:
            waiting = [*self._queue.waiting.items()]
            self._queue.waiting.clear()
        for request, on_done in waiting:
            request.fail(BackendError("the engine was cleared before this was done"), False)
            try:
                on_done(request)
            except Exception:  # as in an engine: the others are told too
                logger.exception("on_done of a request raised an exception")

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return any(member.busy for member in self._members)

    @property
    def stepping(self) -> bool:
        """Whether this thread is inside a step of one of the engines."""
        return any(engine.stepping for engine in self.engines)

    @property
    def exiting(self) -> bool:
        """Whether this thread ends the interpreter, so that no other steps."""
        return any(engine.exiting for engine in self.engines)

    def step(self) -> None:
        """Wait until a request is done that was not at the last call in this thread.

        A thread of the group steps its engine instead, where that has work; so does the one that ends the interpreter.

        Raises:
            UnsupportedError: this thread is inside a step already.
        """
        if self.stepping:
            raise UnsupportedError(
                "a callback runs inside a step and cannot run another one: it may submit, and read the result after it "
                "has returned"
            )
        if self.exiting:
            for member in self._members:
                member.step()
            return
        member, queue = self._own_member, self._queue
        if member is not None and member.busy:
            member.step()
            return
        seen = getattr(self._seen, "done", 0)
        with queue.changed:
            # In a callback the caller may have a timeout.
            queue.changed.wait_for(
                lambda: queue.done != seen or (member is not None and member.busy), None if member is None else 0.05
            )
            self._seen.done = queue.done

    @property
    def statistics(self) -> EngineStatistics:
        """The sums over all engines: seconds are those of all devices together."""
        parts = [engine.statistics for engine in self.engines]
        names = [one.name for one in fields(EngineStatistics) if one.name != "plain"]
        sums = {name: sum(getattr(part, name) for part in parts) for name in names}
        sums["waiting"] += len(self._queue.waiting)
        plain = sum((Counter(part.plain) for part in parts), Counter())
        return EngineStatistics(**sums, plain=dict(plain))

    def explain(self, request: Request) -> str:
        """As `Engine.explain`, the same for all devices, or of each."""
        texts = {str(engine.model.device): engine.explain(request) for engine in self.engines}
        if len({*texts.values()}) == 1:
            return next(iter(texts.values()))
        return "; ".join(f"{device}: {text}" for device, text in texts.items())
