"""The block allocator in plain Python: the reference implementation, and the fallback without the C++ extension.

csrc/block_allocator.h has the rules. Methods, status codes and the numbers of slots are the same in both.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import torch


class Status(IntEnum):
    """The result of a call, or why it was declined."""

    OK = 0
    INVALID = -1
    ROWS_NEVER = -2
    PAGES_NEVER = -3
    SOURCE_NEVER = -4
    ROWS_NOW = -5
    PAGES_NOW = -6
    SOURCE_NOW = -7
    SOURCE_DIFFERS = -8
    UNKNOWN_REQUEST = -9
    UNKNOWN_ROW = -10
    FINISHED_ROW = -11
    REPEATED_ROW = -12
    POSITION_TAKEN = -13
    POSITION_TOO_LARGE = -14
    OUT_OF_MEMORY = -15


class Violation(IntEnum):
    """The first inconsistency that `check` finds."""

    SOUND = 0
    PAGE_OWNERS = 1
    PAGE_COUNTS = 2
    RESERVATIONS = 3
    ROW_REQUESTS = 4
    SOURCE_PAGE_OWNERS = 5
    SOURCE_PAGE_COUNTS = 6
    SOURCE_USERS = 7
    SOURCE_KEYS = 8
    OWN_TABLE = 9
    SOURCE_TABLE = 10


class Limits(NamedTuple):
    """The sizes of an allocator; `BlockAllocator` describes each."""

    rows: int
    positions: int
    slots: int
    page: int
    source_positions: int
    source_slots: int
    source_page: int


class Statistics(NamedTuple):
    """Counts. Free pages are `pages - pages_used`; the reserved pages are among the free ones."""

    pages: int
    pages_used: int
    pages_reserved: int
    pages_peak: int
    source_pages: int
    source_pages_used: int
    source_pages_peak: int
    rows: int
    rows_used: int
    rows_peak: int
    requests: int
    sources: int


@dataclass
class _Row:
    """A running or finished row of a request."""

    request: int
    positions: int
    reserved: int
    next: int = 0  # the lowest position it may still take
    pages: dict[int, int] = field(default_factory=dict)  # index -> page
    last: int = -1  # index of the last page it took
    finished: bool = False


@dataclass
class _Source:
    """A source in flight: its row of the source table, its pages and the requests that use it."""

    number: int
    length: int
    pages: list[int]
    users: set[int]


@dataclass
class _Request:
    """A request in flight: its rows and the key of its source, None without one."""

    rows: range
    key: int | None


class PythonBlockAllocator:
    """One pool of pages for rows, one for sources.

    Raises:
        ValueError: a limit is out of range.
    """

    def __init__(self, limits: Limits):
        smallest = Limits(1, 1, 1, 1, 0, 0, 1)
        if any(not low <= size < 2**31 for low, size in zip(smallest, limits)):
            raise ValueError(f"{limits}")
        self.limits = limits
        self._rows: dict[int, _Row] = {}
        self._requests: dict[int, _Request] = {}
        self._sources: dict[int, _Source] = {}  # by key
        self._generations = [0] * limits.rows  # requests so far with this first row
        self._free = list(range(limits.slots // limits.page))[::-1]
        self._free_source = list(range(limits.source_slots // limits.source_page))[::-1]
        self._pages, self._source_pages = len(self._free), len(self._free_source)
        self._peaks = [0, 0, 0]  # pages, source pages, rows
        self._lock = threading.Lock()

    def admit(self, rows: int, positions: int, key: int, source_length: int) -> tuple[int, int, int, int]:
        """Return (request or a negative status, first row, source or -1, 1 if the source is new else 0)."""
        with self._lock:
            status = self._admission_status(rows, positions, key, source_length)
            if status != Status.OK:
                return status, 0, 0, 0
            return self._admit(rows, positions, key if source_length else None, source_length)

    def _admission_status(self, rows: int, positions: int, key: int, source_length: int) -> Status:
        limits = self.limits
        if rows < 1 or not 1 <= positions <= limits.positions or source_length < 0:
            return Status.INVALID
        need, source_need = rows * -(-positions // limits.page), -(-source_length // limits.source_page)
        if rows > limits.rows:
            return Status.ROWS_NEVER
        if need > self._pages:
            return Status.PAGES_NEVER
        if source_length > limits.source_positions or source_need > self._source_pages:
            return Status.SOURCE_NEVER
        shared = self._sources.get(key) if source_length else None
        if shared is not None and shared.length != source_length:
            return Status.SOURCE_DIFFERS
        if self._free_run(rows) is None:
            return Status.ROWS_NOW
        if need > len(self._free) - self._reserved():
            return Status.PAGES_NOW
        if source_length and shared is None and source_need > len(self._free_source):
            return Status.SOURCE_NOW
        return Status.OK

    def _admit(self, rows: int, positions: int, key: int | None, source_length: int) -> tuple[int, int, int, int]:
        limits, number, is_new = self.limits, -1, False
        first = self._free_run(rows)
        assert first is not None
        request = self._generations[first] * limits.rows + first
        self._generations[first] += 1
        if key is not None:
            is_new = key not in self._sources
            if is_new:
                taken = {source.number for source in self._sources.values()}
                number = next(n for n in range(limits.rows) if n not in taken)
                pages = [self._free_source.pop() for _ in range(-(-source_length // limits.source_page))]
                self._sources[key] = _Source(number, source_length, pages, set())
            self._sources[key].users.add(request)
            number = self._sources[key].number
        self._requests[request] = _Request(range(first, first + rows), key)
        for row in range(first, first + rows):
            self._rows[row] = _Row(request, positions, -(-positions // limits.page))
        self._update_peaks()
        return request, first, number, int(is_new)

    def step(
        self, rows: torch.Tensor, positions: torch.Tensor, slot_table: torch.Tensor, slots: torch.Tensor
    ) -> tuple[int, int]:
        """Return (status, index of the row that caused an error)."""
        with self._lock:
            pairs = list(zip(rows.tolist(), positions.tolist()))
            named: set[int] = set()
            for i, (row, position) in enumerate(pairs):
                state = self._rows.get(row)
                if state is None:
                    return Status.UNKNOWN_ROW, i
                if state.finished:
                    return Status.FINISHED_ROW, i
                if row in named:
                    return Status.REPEATED_ROW, i
                named.add(row)
                if position < state.next:
                    return Status.POSITION_TAKEN, i
                if position >= state.positions:
                    return Status.POSITION_TOO_LARGE, i
            for i, (row, position) in enumerate(pairs):
                slots[i] = self._take_slot(row, position, slot_table)
            return Status.OK, 0

    def extend(self, row: int, count: int, slot_table: torch.Tensor) -> int:
        """Return a status."""
        with self._lock:
            state = self._rows.get(row)
            if state is None:
                return Status.UNKNOWN_ROW
            if state.finished:
                return Status.FINISHED_ROW
            if count < 0:
                return Status.INVALID
            if state.next + count > state.positions:
                return Status.POSITION_TOO_LARGE
            for position in range(state.next, state.next + count):
                self._take_slot(row, position, slot_table)
            return Status.OK

    def _take_slot(self, row: int, position: int, slot_table: torch.Tensor) -> int:
        """Return the slot of a position; take a page where the row has none there yet."""
        size, state = self.limits.page, self._rows[row]
        index = position // size
        if index > state.last:
            state.reserved -= index - state.last
            state.last = index
            state.pages[index] = self._free.pop()
            start, end = index * size, min((index + 1) * size, self.limits.positions)
            first = state.pages[index] * size
            slot_table[row, start:end] = torch.arange(first, first + end - start, device=slot_table.device)
            self._update_peaks()
        state.next = position + 1
        return state.pages[index] * size + position % size

    def fill_source(self, request: int, source_table: torch.Tensor) -> int:
        """Return a status."""
        with self._lock:
            entry = self._requests.get(request)
            if entry is None:
                return Status.UNKNOWN_REQUEST
            if entry.key is not None:
                source = self._sources[entry.key]
                source_table[source.number, : source.length] = source_table.new_tensor(self._source_slots(source))
            return Status.OK

    def _source_slots(self, source: _Source) -> list[int]:
        size = self.limits.source_page
        return [source.pages[t // size] * size + t % size for t in range(source.length)]

    def finish_row(self, row: int) -> int:
        """Return a status."""
        with self._lock:
            state = self._rows.get(row)
            if state is None:
                return Status.UNKNOWN_ROW
            if state.finished:
                return Status.FINISHED_ROW
            state.reserved, state.finished = 0, True
            return Status.OK

    def release(self, request: int) -> int:
        """Return a status."""
        with self._lock:
            entry = self._requests.pop(request, None)
            if entry is None:
                return Status.UNKNOWN_REQUEST
            pages = [page for row in entry.rows for _, page in sorted(self._rows.pop(row).pages.items())]
            self._free += reversed(pages)
            if entry.key is not None:
                source = self._sources[entry.key]
                source.users.remove(request)
                if not source.users:
                    self._free_source += reversed(source.pages)
                    del self._sources[entry.key]
            return Status.OK

    def statistics(self) -> list[int]:
        """Return the fields of `Statistics`."""
        with self._lock:
            pages, source_pages, rows = self._peaks
            return [
                *(self._pages, self._pages - len(self._free), self._reserved(), pages),
                *(self._source_pages, self._source_pages - len(self._free_source), source_pages),
                *(self.limits.rows, len(self._rows), rows),
                *(len(self._requests), len(self._sources)),
            ]

    def check(self, slot_table: torch.Tensor, source_table: torch.Tensor) -> int:
        """Return a violation."""
        with self._lock:
            used = [page for row in self._rows.values() for page in row.pages.values()]
            if sorted(used + self._free) != list(range(self._pages)):
                return Violation.PAGE_OWNERS
            if min((row.reserved for row in self._rows.values()), default=0) < 0 or self._reserved() > len(self._free):
                return Violation.RESERVATIONS
            rows = {row: request for request, entry in self._requests.items() for row in entry.rows}
            if rows != {row: state.request for row, state in self._rows.items()}:
                return Violation.ROW_REQUESTS
            used = [page for source in self._sources.values() for page in source.pages]
            if sorted(used + self._free_source) != list(range(self._source_pages)):
                return Violation.SOURCE_PAGE_OWNERS
            for key, source in self._sources.items():
                if source.users != {request for request, entry in self._requests.items() if entry.key == key}:
                    return Violation.SOURCE_USERS
                if source_table[source.number, : source.length].tolist() != self._source_slots(source):
                    return Violation.SOURCE_TABLE
            size = self.limits.page
            for number, row in self._rows.items():
                for index, page in row.pages.items():
                    entries = slot_table[number, index * size : (index + 1) * size].tolist()
                    if entries != list(range(page * size, page * size + len(entries))):
                        return Violation.OWN_TABLE
            return Violation.SOUND

    def _free_run(self, rows: int) -> int | None:
        """The lowest row from which `rows` adjacent rows are free; None where there is none."""
        free = [row not in self._rows for row in range(self.limits.rows)]
        return next((row for row in range(len(free) - rows + 1) if all(free[row : row + rows])), None)

    def _reserved(self) -> int:
        return sum(row.reserved for row in self._rows.values())

    def _update_peaks(self) -> None:
        used = (self._pages - len(self._free), self._source_pages - len(self._free_source), len(self._rows))
        self._peaks = [max(pair) for pair in zip(self._peaks, used)]
