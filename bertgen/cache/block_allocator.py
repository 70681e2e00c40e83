"""Pages: which slots of the key/value pools belong to which row and which source.

The books are kept by C++ (csrc/block_allocator.h has the rules), or by the same in Python (python_block_allocator.py)
where the extension is absent. This class owns the tables of slot numbers and turns answers into results and errors.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import BackendError, CapacityError, ConfigError, InputError, UnsupportedError
from ..ops import extension
from .python_block_allocator import Ledger, Limits, Statistics, Status, Violation

_LATER = (Status.ROWS_NOW, Status.PAGES_NOW, Status.SOURCE_NOW)


@dataclass(frozen=True)
class Admission:
    """A request that was let in.

    Attributes:
        request: what `release` takes; never used a second time.
        rows: its rows, adjacent.
        source: its row of `Pages.sources`; None without a source.
        new_source: nobody had this source in flight, so it must be encoded.
    """

    request: int
    rows: range
    source: int | None
    new_source: bool


class Pages:
    """The slots of self- and cross-attention.

    Args:
        rows: sequences decoded at a time, all requests together.
        positions: of the longest sequence.
        slots: of the pools for self-attention. A slot for rows that write to nobody is the caller's to add.
        source_positions: of the longest source.
        source_slots: of the pools for cross-attention.
        page, source_page: slots to a page.
        backend: "cpp", "python", or "auto" for the first that is there.

    Attributes:
        own: int32 [rows, positions], the slot of each position of each row. An entry means something once `step` or
            `extend` came to its page, until the request is released.
        sources: int32 [rows, source_positions], the slots of each source in flight.

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
                raise ConfigError(f"{name} is {size}, it must lie between {least} and {2**31 - 1}")
        self.limits = limits
        self.backend = "python" if backend == "python" or not extension.available() else "cpp"
        self._books: _Extension | Ledger = _Extension(limits) if self.backend == "cpp" else Ledger(limits)
        self.own = torch.zeros(rows, positions, dtype=torch.int32, device="cpu")
        self.sources = torch.zeros(rows, source_positions, dtype=torch.int32, device="cpu")

    def admit(self, rows: int, positions: int, source_key: int = 0, source_length: int = 0) -> Admission | None:
        """Let a request in, if there is room for the most it can come to need.

        Args:
            rows: its sequences: beams, return sequences.
            positions: the most that each can come to hold.
            source_key: 64 bits that name the source; requests with one key in flight share one source.
            source_length: positions of the source; 0 without one.

        Returns:
            None where it does not fit now, but will once others have left.

        Raises:
            CapacityError: it would not fit if it were alone.
            InputError: a size below 1 (the source: 0), or a key in flight with another length.
        """
        # Beyond any limit numbers need not be told apart, and so they fit into 64 bits.
        rows, positions, source_length = (max(-1, min(size, 2**31)) for size in (rows, positions, source_length))
        key = (source_key + 2**63) % 2**64 - 2**63
        answer, first, source, new = self._books.admit(rows, positions, key, source_length)
        if answer >= 0:
            admission = Admission(answer, range(first, first + rows), None if source < 0 else source, bool(new))
            if new:
                self._books.fill_source(answer, self.sources)
            return admission
        if answer in _LATER:
            return None
        self.require(rows, positions, source_length)
        if answer == Status.SOURCE_DIFFERS:
            raise InputError(f"source {source_key} is in flight with another length than {source_length}")
        raise InputError(
            f"a request of {rows} rows, {positions} positions, source {source_length}; the least are 1, 1, 0"
        )

    def require(self, rows: int, positions: int, source_length: int = 0) -> None:
        """Raise what `admit` would raise for a request that would not fit if it were alone.

        Raises:
            CapacityError: names what it asks for, and what there is.
        """
        limits, need = self.limits, rows * -(-positions // self.limits.page)
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

    def step(self, rows: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Give each of some rows a slot for its next position.

        Args:
            rows: int32 [n], each at most once.
            positions: int32 [n], where each row goes on: behind its last position, and below what `admit` was told. A
                row that skips positions (a beam whose prefix lies in a sibling's slots) gives back pages it skips.
            slots: int32 [n], filled with their slots.

        Returns:
            `slots`; `own` has the same numbers.

        Raises:
            InputError: a row that is not running or named twice, a position it cannot take. Nothing has changed.
        """
        status, where = self._books.step(rows, positions, self.own, slots)
        if status != Status.OK:
            self._refuse(status, int(rows[where]), int(positions[where]))
        return slots

    def extend(self, row: int, count: int) -> torch.Tensor:
        """Give a row slots for its next `count` positions.

        Returns:
            `own[row]`, which has their numbers.

        Raises:
            InputError: the row is not running, or `count` is negative or beyond what `admit` was told.
        """
        status = self._books.extend(row, count, self.own)
        if status != Status.OK:
            self._refuse(status, row, count)
        return self.own[row]

    def finish(self, row: int) -> None:
        """Take note that a row takes no more positions; its slots stay as they are until its request is released.

        Raises:
            InputError: the row is not running.
        """
        status = self._books.finish_row(row)
        if status != Status.OK:
            self._refuse(status, row, 0)

    def release(self, request: int) -> None:
        """Take back all that a request has.

        Raises:
            InputError: no such request, or released before.
        """
        if self._books.release(request) != Status.OK:
            raise InputError(f"request {request} is not in flight")

    def statistics(self) -> Statistics:
        """Return how much is in use."""
        return Statistics(*self._books.statistics())

    def check(self) -> Violation:
        """Recount everything, `own` and `sources` included; `Violation.SOUND` where all is well."""
        return Violation(self._books.check(self.own, self.sources))

    def _refuse(self, status: int, row: int, position: int) -> None:
        if status == Status.UNKNOWN_ROW:
            raise InputError(f"row {row} belongs to no request; there are {self.limits.rows} rows")
        if status == Status.FINISHED_ROW:
            raise InputError(f"row {row} was finished before")
        if status == Status.REPEATED_ROW:
            raise InputError(f"row {row} stands twice in one step")
        if status == Status.POSITION_TAKEN:
            raise InputError(f"row {row} cannot take position {position}: it is past that")
        if status == Status.POSITION_TOO_LARGE:
            raise InputError(f"row {row} cannot take {position}: its request was admitted with fewer positions")
        raise InputError(f"row {row} cannot take {position} positions")


class _Extension:
    """The calls of `Ledger`, answered by C++."""

    def __init__(self, limits: Limits):
        ops = torch.ops.bertgen_C
        self._handle = ops.allocator_create(*limits)
        if self._handle < 0:
            raise BackendError(f"no memory for the tables of {limits}")
        weakref.finalize(self, ops.allocator_destroy, self._handle).atexit = False
        self._admit, self._step, self._extend = (
            ops.allocator_admit.default,
            ops.allocator_step.default,
            ops.allocator_extend.default,
        )

    def __reduce__(self) -> Any:
        raise UnsupportedError("the books of slots are of one cache and cannot be copied; a Cache can, as a whole")

    def admit(self, rows: int, positions: int, key: int, source_length: int) -> tuple[int, int, int, int]:
        return torch.ops.bertgen_C.allocator_admit(self._handle, rows, positions, key, source_length)

    def step(
        self, rows: torch.Tensor, positions: torch.Tensor, own: torch.Tensor, slots: torch.Tensor
    ) -> tuple[int, int]:
        return self._step(self._handle, rows, positions, own, slots)

    def extend(self, row: int, count: int, own: torch.Tensor) -> int:
        return torch.ops.bertgen_C.allocator_extend(self._handle, row, count, own)

    def fill_source(self, request: int, table: torch.Tensor) -> int:
        return torch.ops.bertgen_C.allocator_fill_source(self._handle, request, table)

    def finish_row(self, row: int) -> int:
        return torch.ops.bertgen_C.allocator_finish_row(self._handle, row)

    def release(self, request: int) -> int:
        return torch.ops.bertgen_C.allocator_release(self._handle, request)

    def statistics(self) -> list[int]:
        return torch.ops.bertgen_C.allocator_statistics(self._handle)

    def check(self, own: torch.Tensor, table: torch.Tensor) -> int:
        return torch.ops.bertgen_C.allocator_check(self._handle, own, table)
