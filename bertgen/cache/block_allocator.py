"""Which slots of the key/value pools belong to which row and which source.

The bookkeeping is done in C++ (csrc/block_allocator.h has the rules), or in Python (python_block_allocator.py) where
the extension is not available. This class owns the tables of slots, and turns status codes into results and errors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import BackendError, CapacityError, ConfigError, InputError, UnsupportedError
from ..kernels import cpp
from ..ops import extension
from .python_block_allocator import Limits, PythonBlockAllocator, Statistics, Status, Violation

_LATER = (Status.ROWS_NOW, Status.PAGES_NOW, Status.SOURCE_NOW)


@dataclass(frozen=True)
class Admission:
    """The rows and the source of an admitted request.

    Attributes:
        request: the handle that `release` takes; never used a second time.
        rows: its rows, adjacent.
        positions: the most that each row may take.
        source_length: positions of the source; 0 without one.
        source: its row of `BlockAllocator.source_table`; None without a source.
        new_source: no request in flight had this source, so it must be encoded.
    """

    request: int
    rows: range
    positions: int
    source_length: int
    source: int | None
    new_source: bool

    def split(self, rows: int) -> list[Admission]:
        """The admission of each run of so many rows; all have the same request, which is released once."""
        return [replace(self, rows=self.rows[i : i + rows]) for i in range(0, len(self.rows), rows)]


class BlockAllocator:
    """Allocates the slots of self-attention and cross-attention, in pages.

    Args:
        rows: sequences decoded at a time, all requests together.
        positions: of the longest sequence.
        slots: of the pool for self-attention.
        source_positions: of the longest source.
        source_slots: of the pool for cross-attention.
        page, source_page: slots per page.
        backend: "cpp", "python", or "auto" for the first of them that is available.

    Attributes:
        slot_table: int32 [rows, positions], the slot of each position of each row. An entry is valid from the `step` or
            `extend` that takes its page until the request is released.
        source_table: int32 [rows, source_positions], the slots of each source in flight.

    Raises:
        ConfigError: a size outside its limits, or no such backend.
        BackendError: "cpp" without the extension.
    """

    PAGE = 16

    def __init__(
        self,
        rows: int,
        positions: int,
        slots: int,
        source_positions: int = 0,
        source_slots: int = 0,
        *,
        page: int = PAGE,
        source_page: int = PAGE,
        backend: str = "auto",
    ):
        if backend not in ("auto", "cpp", "python"):
            raise ConfigError(f"backend {backend!r} is not one of auto, cpp, python")
        if backend == "cpp":
            extension.require()
        limits = Limits(rows, positions, slots, page, source_positions, source_slots, source_page)
        for name, size in limits._asdict().items():
            least = 0 if name in ("source_positions", "source_slots") else 1
            if not least <= size < 2**31:
                raise ConfigError(f"{name} is {size}, it must be from {least} to {2**31 - 1}")
        self.limits = limits
        self.backend = "python" if backend == "python" or not extension.available() else "cpp"
        kind = _CppBlockAllocator if self.backend == "cpp" else PythonBlockAllocator
        self._allocator: _CppBlockAllocator | PythonBlockAllocator = kind(limits)
        self.slot_table = torch.zeros(rows, positions, dtype=torch.int32, device="cpu")
        self.source_table = torch.zeros(rows, source_positions, dtype=torch.int32, device="cpu")

    def admit(self, rows: int, positions: int, source_key: int = 0, source_length: int = 0) -> Admission | None:
        """Admit a request if there is room for its worst-case size.

        Args:
            rows: its sequences: beams, return sequences.
            positions: the most that each row may take.
            source_key: 64 bits that name the source; requests in flight with one key share one source.
            source_length: positions of the source; 0 without one.

        Returns:
            None where it does not fit now, but will fit after others are released.

        Raises:
            CapacityError: it would not fit into an empty cache.
            InputError: a size below 1 (of the source: 0), or a key in flight with another length.
        """
        # Sizes beyond all limits are equivalent: clamped, they fit into the 64 bits of the C++ call.
        rows, positions, source_length = (max(-1, min(size, 2**31)) for size in (rows, positions, source_length))
        key = (source_key + 2**63) % 2**64 - 2**63
        request, first, source, new = self._allocator.admit(rows, positions, key, source_length)
        if request >= 0:
            if new:
                self._allocator.fill_source(request, self.source_table)
            number = None if source < 0 else source
            return Admission(request, range(first, first + rows), positions, source_length, number, bool(new))
        if request in _LATER:
            return None
        self.check_capacity(rows, positions, source_length)
        if request == Status.SOURCE_DIFFERS:
            raise InputError(f"source {source_key} is in flight with another length than {source_length}")
        raise InputError(
            f"a request of {rows} rows, {positions} positions, source {source_length}; the least are 1, 1, 0"
        )

    def check_capacity(self, rows: int, positions: int, source_length: int = 0) -> None:
        """Raise where a request would not fit into an empty cache, as `admit` does.

        Raises:
            CapacityError: names the size of the request and the limit.
        """
        check_capacity(self.limits, rows, positions, source_length)

    def step(self, rows: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Give each of these rows a slot for its next position.

        Args:
            rows: int32 [n], each row at most once.
            positions: int32 [n], the next position of each: after its last one, and below the `positions` of `admit`. A
                row that skips positions (a beam whose prefix lies in the slots of a sibling) gives back the skipped
                pages.
            slots: int32 [n], filled with their slots.

        Returns:
            `slots`; `slot_table` has the same numbers.

        Raises:
            InputError: a row that is not running or is named twice, or a position that it cannot take. Nothing has
                changed.
        """
        status, where = self._allocator.step(rows, positions, self.slot_table, slots)
        if status != Status.OK:
            self._raise(status, int(rows[where]), int(positions[where]))
        return slots

    def extend(self, row: int, count: int) -> torch.Tensor:
        """Give a row slots for its next `count` positions.

        Returns:
            `slot_table[row]`, which has their numbers.

        Raises:
            InputError: the row is not running, or `count` is negative or exceeds the `positions` of `admit`.
        """
        status = self._allocator.extend(row, count, self.slot_table)
        if status != Status.OK:
            self._raise(status, row, count)
        return self.slot_table[row]

    def finish(self, row: int) -> None:
        """Mark a row as finished: it takes no more positions. Its slots stay valid until its request is released.

        Raises:
            InputError: the row is not running.
        """
        status = self._allocator.finish_row(row)
        if status != Status.OK:
            self._raise(status, row, 0)

    def release(self, request: int) -> None:
        """Free all rows and pages of a request.

        Raises:
            InputError: no such request, or released before.
        """
        if self._allocator.release(request) != Status.OK:
            raise InputError(f"request {request} is not in flight")

    def statistics(self) -> Statistics:
        """Return how much is in use."""
        return Statistics(*self._allocator.statistics())

    def check(self) -> Violation:
        """Recount everything, both tables included; `Violation.SOUND` where all is consistent."""
        return Violation(self._allocator.check(self.slot_table, self.source_table))

    def _raise(self, status: int, row: int, position: int) -> None:
        if status == Status.UNKNOWN_ROW:
            raise InputError(f"row {row} belongs to no request; there are {self.limits.rows} rows")
        if status == Status.FINISHED_ROW:
            raise InputError(f"row {row} was finished before")
        if status == Status.REPEATED_ROW:
            raise InputError(f"row {row} appears twice in one step")
        if status == Status.POSITION_TAKEN:
            raise InputError(f"row {row} cannot take position {position}: it is past that")
        if status == Status.POSITION_TOO_LARGE:
            raise InputError(f"row {row} cannot take {position}: its request was admitted with fewer positions")
        raise InputError(f"row {row} cannot take {position} positions")


def check_capacity(limits: Limits, rows: int, positions: int, source_length: int = 0) -> None:
    """Raise where an empty cache of these limits could not hold a request.

    Raises:
        CapacityError: names the size of the request and the limit.
    """
    need = rows * -(-positions // limits.page)
    if positions > limits.positions:
        raise CapacityError(f"a request of {positions} positions; a row holds {limits.positions}")
    if rows > limits.rows:
        raise CapacityError(f"a request of {rows} rows; there are {limits.rows}")
    if need > limits.slots // limits.page:
        raise CapacityError(
            f"a request of {rows} rows of {positions} positions takes {need} pages of {limits.page} slots; "
            f"there are {limits.slots // limits.page}"
        )
    most = min(limits.source_positions, limits.source_slots // limits.source_page * limits.source_page)
    if source_length > most:
        raise CapacityError(f"a source of {source_length} positions; there is room for {most}")


class _CppBlockAllocator:
    """The methods of `PythonBlockAllocator`, in C++."""

    def __init__(self, limits: Limits):
        try:
            self._capsule = cpp.allocator_create(*limits)
        except MemoryError as error:
            raise BackendError(f"no memory for the tables of {limits}") from error

    def __reduce__(self) -> Any:
        raise UnsupportedError("a block allocator belongs to one cache and cannot be copied; copy the whole Cache")

    def admit(self, rows: int, positions: int, key: int, source_length: int) -> tuple[int, int, int, int]:
        return cpp.allocator_admit(self._capsule, rows, positions, key, source_length)

    def step(
        self, rows: torch.Tensor, positions: torch.Tensor, slot_table: torch.Tensor, slots: torch.Tensor
    ) -> tuple[int, int]:
        return cpp.allocator_step(self._capsule, rows, positions, slot_table, slots)

    def extend(self, row: int, count: int, slot_table: torch.Tensor) -> int:
        return cpp.allocator_extend(self._capsule, row, count, slot_table)

    def fill_source(self, request: int, source_table: torch.Tensor) -> int:
        return cpp.allocator_fill_source(self._capsule, request, source_table)

    def finish_row(self, row: int) -> int:
        return cpp.allocator_finish_row(self._capsule, row)

    def release(self, request: int) -> int:
        return cpp.allocator_release(self._capsule, request)

    def statistics(self) -> list[int]:
        return cpp.allocator_statistics(self._capsule)

    def check(self, slot_table: torch.Tensor, source_table: torch.Tensor) -> int:
        return cpp.allocator_check(self._capsule, slot_table, source_table)
