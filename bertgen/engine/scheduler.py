"""The scheduler: decides which requests wait, run and leave, and which of them share a search group.

It needs plain numbers only, no tensors: the engine passes in what the cache can hold, and executes the decisions.

Requests wait in the order of their arrival. The first one enters when its worst-case size fits into the free rows and
pages; no later request enters before it. `submit` and `cancel` may be called from any thread, everything else by the
thread that steps.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ..errors import InputError
from .request import Request, RequestState, SearchKey


class Capacity(NamedTuple):
    """What the cache can still reserve.

    Attributes:
        rows: free rows.
        pages: free pages for rows that are not reserved; page: positions of each.
        source_pages: free pages for sources; source_page: positions of each.
    """

    rows: int
    pages: int
    page: int
    source_pages: int
    source_page: int


class Scheduler:
    """The queue and the running set of one engine.

    Args:
        max_rows: sequences decoded together, at most.
        refill: share of the rows that must be free before waiting requests enter beside running ones.

    Attributes:
        waiting: in the order in which they enter.
        running: in the order in which they entered; a dict as an ordered set.
        row_limit: rows that may run now: `max_rows`, or fewer after memory ran out until nothing is left to do.
    """

    def __init__(self, max_rows: int, refill: float):
        self.max_rows, self.refill = max_rows, refill
        self.row_limit = max_rows
        self.waiting: deque[Request] = deque()
        self.running: dict[Request, None] = {}
        self._submitted: deque[list[Request]] = deque()  # by any thread; `receive` moves them to `waiting`
        self._serials, self._group_numbers = itertools.count(), itertools.count()
        self._sources: dict[Sequence[int], tuple[int, int]] = {}  # running source -> its key, number of requests
        self._groups: dict[int, tuple[SearchKey, int]] = {}  # number of a group -> its key, number of requests
        self._cancelling = False

    # -- from any thread

    def submit(self, requests: list[Request], on_done: Callable[[Request], Any]) -> None:
        """Queue new requests, all of them before the next step.

        Args:
            on_done: as `Request.on_done`.

        Raises:
            InputError: a request was submitted before, or is in the list twice; then none is queued.
        """
        seen: set[Request] = set()
        for request in requests:
            if request.state is not RequestState.NEW or request in seen:
                raise InputError(f"request {request.number} was submitted before: make a new Request for each result")
            seen.add(request)
        for request in requests:
            request.serial, request.on_done, request.state = next(self._serials), on_done, RequestState.WAITING
        if requests:
            self._submitted.append(requests)

    def cancel(self, requests: Iterable[Request]) -> None:
        """Mark submitted requests that are not done as cancelled; `receive` drops those that wait."""
        for request in requests:
            request.cancelled = not request.done
        self._cancelling = True

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._submitted or self.waiting or self.running)

    @property
    def waiting_count(self) -> int:
        """Requests that wait."""
        return len(self.waiting) + sum(map(len, [*self._submitted]))

    # -- the queue

    def receive(self) -> list[Request]:
        """Take submitted requests into the queue and drop cancelled ones from it.

        Returns:
            The cancelled requests that are running. The engine frees their rows and calls `leave`.
        """
        while self._submitted:
            self.waiting.extend(self._submitted.popleft())
        if not self._cancelling:
            return []
        self._cancelling = False
        self.remove(request for request in self.waiting if request.cancelled)
        return [request for request in self.running if request.cancelled]

    def remove(self, requests: Iterable[Request]) -> None:
        """Take waiting requests out of the queue."""
        removed = set(requests)
        if removed:
            self.waiting = deque(request for request in self.waiting if request not in removed)
        for request in removed:
            if request.cancelled:
                request.cancel()
        self._restore_row_limit()

    def may_admit(self, running_rows: int) -> bool:
        """Whether requests wait and enough rows are free to let some of them in.

        Args:
            running_rows: sequences that are decoded now.
        """
        has_room = not self.running or self.row_limit - running_rows >= self.refill * self.row_limit
        return has_room and bool(self.waiting)

    def admit(self, running_rows: int, free: Capacity) -> list[Request]:
        """Move requests from the queue to the running set, as many as fit in their worst case.

        A request larger than `row_limit` enters when nothing else runs. Each gets the key of its source and the number
        of its search group.

        Args:
            running_rows: sequences that are decoded now.
            free: of the cache.

        Returns:
            The requests that enter, in their order.
        """
        entering: list[Request] = []
        allowed = self.row_limit - running_rows
        rows, pages, page, source_pages, source_page = free
        while self.waiting:
            request = self.waiting[0]
            count, needed = request.rows, request.rows * -(-request.positions // page)
            key, users = self._sources.get(request.ids, (request.serial, 0))
            source_needed = 0 if users else -(-len(request.ids) // source_page)
            if count > allowed and self.running:
                break
            if count > rows or needed > pages or source_needed > source_pages:
                break
            self._sources[request.ids] = key, users + 1
            request.source_key = key
            request.group = self._join_group(request.search_key)
            # In this order: an interrupt between two lines leaves the request in the running set, never in none.
            self.running[request] = None
            self.waiting.popleft()
            request.state = RequestState.RUNNING
            entering.append(request)
            allowed, rows = allowed - count, rows - count
            pages, source_pages = pages - needed, source_pages - source_needed
        return entering

    def put_back(self, requests: Sequence[Request]) -> None:
        """Return requests that were admitted last to the front of the queue: the cache has no adjacent rows for them.

        Args:
            requests: in their order.
        """
        for request in reversed(requests):
            self.waiting.appendleft(request)
            self._remove_running(request)
            request.state = RequestState.WAITING

    # -- the running set

    def leave(self, request: Request) -> None:
        """A running request has ended, failed or was cancelled, and its rows are free."""
        self._remove_running(request)
        if request.cancelled and not request.done:
            request.cancel()
        self._restore_row_limit()

    def requeue(self) -> list[Request]:
        """Put all running requests back at the front of the queue, oldest first; returns them."""
        requests = sorted((one for one in self.running if not one.done), key=lambda request: request.serial)
        requeued = set(requests)
        self.waiting = deque([*requests, *(request for request in self.waiting if request not in requeued)])
        self.running.clear()
        self._sources.clear()
        self._groups.clear()
        for request in requests:
            request.restart()
        return requests

    def back_off(self) -> list[Request]:
        """After memory ran out: requeue everything, and run half as many rows until nothing is left to do.

        A request that ran alone does not fit. The others may: the row limit is restored for them.

        Returns:
            Requests that have to fail: the one that ran alone; all that wait, where nothing ran.
        """
        running = self.requeue()
        if not running:
            return [*self.waiting]
        if len(running) == 1:
            self.row_limit = self.max_rows
            return running
        self.row_limit = max(1, min(self.row_limit, sum(request.rows for request in running)) // 2)
        return []

    def _restore_row_limit(self) -> None:
        if not self.busy:
            self.row_limit = self.max_rows

    def _join_group(self, key: SearchKey) -> int:
        """The number of a search group that can take a request of this key, or of a new group."""
        for number, (group_key, members) in self._groups.items():
            if group_key.matches(key):
                self._groups[number] = group_key, members + 1
                return number
        number = next(self._group_numbers)
        self._groups[number] = key, 1
        return number

    def _remove_running(self, request: Request) -> None:
        del self.running[request]
        key, users = self._sources[request.ids]
        if users > 1:
            self._sources[request.ids] = key, users - 1
        else:
            del self._sources[request.ids]
        group_key, members = self._groups[request.group]
        if members > 1:
            self._groups[request.group] = group_key, members - 1
        else:
            del self._groups[request.group]
