"""The static batch: the requests whose steps run as static steps, several between two looks from the host.

A `StaticDecoder` has a fixed number of units for each group of options. Requests join free units and leave them while
it runs. It is replaced by another one where a group is full or new, where a source is wider, and where less than half
of the units are in use; the units in use then move. Stages that were used before are kept, up to a number of them: a
stage may hold CUDA graphs, and is recognised by the options and units of its groups and its source width.

What is over is polled, and on a GPU it is known late: the flags of an older run say nothing of a unit's new occupant. A
unit that has ended writes no more pages; one that leaves earlier (it was cancelled) may, in the runs that are queued
already, so its pages are given back after the last of them.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from ..cache.block_allocator import Admission
from ..model.static_decoder import Steps
from .request import Request, SearchKey
from .search_group import Owner, store_results

SECONDS = 0.02  # of a run on a CPU, about: as long as Ctrl-C and new requests may wait


@dataclass(frozen=True)
class StaticLimits:
    """What a device allows and prefers.

    Attributes:
        max_rows: the most rows that run as static steps.
        source_positions: of the longest source; source_width: tables of sources are multiples of it.
        least_units: the fewest units of a group. 1 where free units cost time.
        compacts: free units cost time, so stages with few units in use are replaced.
        groups: the most groups of options at a time; stages: those that are kept.
        steps: of a run; waiting_steps: of a run while something waits for its end.
        even: runs have an even number of steps.
        seconds: of a run, about; None where runs are queued, not waited for.
    """

    max_rows: int
    source_positions: int
    source_width: int = 64
    least_units: int = 1
    compacts: bool = True
    groups: int = 8
    stages: int = 16
    steps: int = 8
    waiting_steps: int = 2
    even: bool = True
    seconds: float | None = None


@dataclass(eq=False)
class _Member:
    """A request in the batch. `left` counts its units that have not left."""

    request: Request
    admission: Admission
    left: int


@dataclass(eq=False)
class _Unit:
    """A unit in use.

    Attributes:
        owner: the request, or (request, number of the return sequence).
        admission: of the rows of this unit.
        joined: runs of the stage before it joined.
        began: steps of the batch before it joined.
    """

    owner: Owner
    admission: Admission
    member: _Member
    joined: int = 0
    began: int = 0


@dataclass(eq=False)
class _Group:
    """Options of units of one search. Groups are in the order of their serial numbers in every stage."""

    key: SearchKey
    width: int  # rows of a unit
    serial: int


@dataclass(eq=False)
class _Stage:
    """A static decoder with its steps.

    Attributes:
        groups: of each search; units: of each search, None where a unit is free.
        runs: number of runs so far.
    """

    groups: list[_Group]
    units: list[list[_Unit | None]]
    source_width: int
    decoder: Any
    steps: Steps
    runs: int = 0

    @property
    def layout(self) -> tuple[tuple[_Group, int], ...]:
        """The groups with their numbers of units."""
        return tuple((group, len(units)) for group, units in zip(self.groups, self.units))


Open = Callable[[Sequence[tuple[SearchKey, int]], int], tuple[Any, Steps]]


@dataclass(eq=False)
class StaticBatch:
    """The requests whose steps run as static steps, and their units.

    Args:
        open: (key and number of units of each group, source width) -> a StaticDecoder and how its steps run.
        release: gives the pages of an admission back.
        limits: of the device.
        synchronize: waits for all runs that are queued.
        reading: a context in which the results of ended units are read without waiting for runs that are queued.
        clock: seconds.

    Attributes:
        rows: in use. steps: so far.
    """

    open: Open
    release: Callable[[Admission], None]
    limits: StaticLimits
    synchronize: Callable[[], None] = lambda: None
    reading: Callable[[], AbstractContextManager[None]] = nullcontext
    clock: Callable[[], float] = time.perf_counter

    rows: int = field(default=0, init=False)
    steps: int = field(default=0, init=False)
    _row_steps: int = field(default=0, init=False)  # not yet taken
    _stage: _Stage | None = field(default=None, init=False)
    _stages: OrderedDict[tuple[Any, ...], _Stage] = field(default_factory=OrderedDict, init=False)
    _ended: list[Request] = field(default_factory=list, init=False)  # complete, not yet returned
    _leaving: list[tuple[int, Admission]] = field(default_factory=list, init=False)  # after this run of the stage
    _cost: tuple[float, int] | None = field(default=None, init=False)  # seconds of a step, and its rows
    _serials: Iterator[int] = field(default_factory=itertools.count, init=False)

    def __len__(self) -> int:
        return self.rows

    @property
    def busy(self) -> bool:
        """Whether requests run, or have ended and were not returned yet."""
        return bool(self.rows or self._ended)

    def clear(self) -> None:
        """Drop all requests, and all stages with what they allocated."""
        self._stage = None
        self._stages.clear()
        self._ended, self._leaving, self.rows = [], [], 0

    @property
    def newest_steps(self) -> Steps | None:
        """How the steps run now; None before the first request."""
        return None if self._stage is None else self._stage.steps

    # -- joining

    def joinable(self, requests: Iterable[Request]) -> list[Request]:
        """Those of these requests whose options are among the first `limits.groups` that run."""
        keys = [group.key for group, count in self._needed({}).items() if count]
        joinable = []
        for request in requests:
            key = request.search_key
            if not any(other.matches_static(key) for other in keys):
                if len(keys) >= self.limits.groups:
                    continue
                keys.append(key)
            joinable.append(request)
        return joinable

    def join(self, admissions: Mapping[Request, Admission]) -> None:
        """Give each of these requests units, of its group or of a new one. Their sources are in the cache."""
        joining: dict[_Group, list[_Unit]] = {}
        for request, admission in admissions.items():
            joining.setdefault(self._group(request, [*joining]), []).extend(_units(request, admission))
        width = max(len(request.ids) for request in admissions)
        stage = self._stage_for(joining, width)
        for index, group in enumerate(stage.groups):
            if units := joining.get(group):
                self._occupy(stage, index, units)

    def _group(self, request: Request, others: Sequence[_Group]) -> _Group:
        """The group of a request: of this stage, of another, or a new one."""
        key = request.search_key
        known = dict.fromkeys(others)
        for stage in (self._stage, *reversed(self._stages.values())):
            known.update(dict.fromkeys([] if stage is None else stage.groups))
        # First the options that are the same object, which need no comparison.
        for same in (True, False):
            for group in known:
                if (not same or group.key.options is request.options) and group.key.matches_static(key):
                    group.key = key
                    return group
        width = request.rows if request.options.num_beams > 1 else 1
        return _Group(key, width, next(self._serials))

    def _occupy(self, stage: _Stage, index: int, units: Sequence[_Unit]) -> None:
        places = [u for u, unit in enumerate(stage.units[index]) if unit is None][: len(units)]
        rows = []
        for unit in units:
            request = unit.member.request
            number = request.number + ((unit.owner[1] << 40) if isinstance(unit.owner, tuple) else 0)
            number = (number + 2**63) % 2**64 - 2**63  # as sums of 64-bit integers
            rows.append((request.options.decoder_start_token_id, request.seed, number, request.options.max_length))
        start, *keys = torch.tensor(rows, dtype=torch.int64, device="cpu").unbind(1)
        owners, options = [unit.owner for unit in units], [unit.member.request.options for unit in units]
        stage.decoder.join(index, places, [unit.admission for unit in units], start[:, None], owners, *keys, options)
        for place, unit in zip(places, units):
            stage.units[index][place] = unit
            unit.joined, unit.began = stage.runs, self.steps
        self.rows += len(units) * stage.groups[index].width

    # -- stages

    def _stage_for(self, joining: Mapping[_Group, Sequence[_Unit]], source_width: int) -> _Stage:
        """The stage that has room for these units too, with the units in use."""
        stage, width = self._stage, self._width(source_width)
        if stage is not None and width <= stage.source_width and self._suits(stage, self._needed(joining)):
            if not (self.limits.compacts and not self.rows and width < stage.source_width):
                return stage
        return self._move(joining, width)

    def _needed(self, joining: Mapping[_Group, Sequence[_Unit]]) -> dict[_Group, int]:
        """The number of units of each group of the stage that are in use, with these."""
        stage = self._stage
        needed = {}
        if stage is not None:
            needed = {g: sum(unit is not None for unit in units) for g, units in zip(stage.groups, stage.units)}
        for group, units in joining.items():
            needed[group] = needed.get(group, 0) + len(units)
        return needed

    def _suits(self, stage: _Stage, needed: Mapping[_Group, int]) -> bool:
        """Whether a stage has so many units of each group, and not too many."""
        sizes = dict(stage.layout)
        return all(
            count <= sizes.get(group, -1) and not (self.limits.compacts and 2 * count < sizes[group])
            for group, count in needed.items()
        )

    def _bucket(self, count: int, width: int) -> int:
        """A power of two, or as many units as the rows allow."""
        most = max(count, self.limits.max_rows // width)
        return min(most, max(self.limits.least_units, 1 << max(0, count - 1).bit_length()))

    def _width(self, length: int) -> int:
        step = self.limits.source_width
        return min(-(-length // step) * step, max(self.limits.source_positions, length))

    def _move(self, joining: Mapping[_Group, Sequence[_Unit]], source_width: int) -> _Stage:
        """Enter the stage that suits these units and those in use."""
        old = self._stage
        if old is not None:
            self._settle()
            if self.rows:
                source_width = max(source_width, old.source_width)
        needed = self._needed(joining)
        if old is not None and not any(needed.values()):  # all have ended by now
            return old
        groups = sorted((group for group in needed if needed[group]), key=lambda group: group.serial)
        wanted = tuple((group, self._bucket(needed[group], group.width)) for group in groups)
        key = wanted, source_width
        new = self._stages.get(key)
        if new is old and new is not None:
            return new
        if new is None:
            decoder, steps = self.open([(group.key, count) for group, count in wanted], source_width)
            units: list[list[_Unit | None]] = [[None] * count for _, count in wanted]
            new = _Stage([group for group, _ in wanted], units, source_width, decoder, steps)
            self._stages[key] = new
            if len(self._stages) > self.limits.stages:
                self._stages.popitem(last=False)
        self._stages.move_to_end(key)
        if old is not None:
            self._take(old, new)
        self._stage = new
        return new

    def _take(self, old: _Stage, new: _Stage) -> None:
        """Move the units in use, at the same time on the device and in the books."""
        for index, units in enumerate(old.units):
            theirs = [u for u, unit in enumerate(units) if unit is not None]
            if not theirs:
                continue
            target = new.groups.index(old.groups[index])
            mine = [*range(len(theirs))]
            new.decoder.take(target, old.decoder, index, theirs, mine)
            for unit, place in zip(theirs, mine):
                moved = units[unit]
                assert moved is not None
                new.units[target][place], moved.joined = moved, new.runs
            old.decoder.leave(index, theirs)
            old.units[index] = [None] * len(units)

    def _settle(self) -> None:
        """Wait for all runs: then everything that has ended is known, and no pages are written any more."""
        self.synchronize()
        self._collect()
        self._release(all_of_them=True)

    # -- running

    def run(self, waiting: bool = False, beside: bool = False) -> int:
        """Run or queue steps of all units; returns their number.

        Args:
            waiting: a request waits for the end of a unit.
            beside: other rows wait for the end of the run.
        """
        stage = self._stage
        if stage is None or not self.rows:
            return 0
        if self.limits.compacts and not self._suits(stage, self._needed({})):
            self._settle()
            if not self.rows:
                return 0
            stage = self._move({}, stage.source_width)
        count = self._count(waiting, beside)
        rows, start = self.rows, self.clock()
        done = stage.steps.run(count, waiting)
        stage.runs += 1
        if done and self.limits.seconds is not None:
            self._cost = (self.clock() - start) / done, rows
        self.steps += done
        self._row_steps += done * rows
        return done

    def _count(self, waiting: bool, beside: bool) -> int:
        """Steps of the next run."""
        limits = self.limits
        most, least = (limits.waiting_steps if waiting else limits.steps), 1 + limits.even
        if beside:
            return least
        if limits.seconds is None:
            return most
        if self._cost is None:
            return least
        seconds, rows = self._cost
        seconds *= max(1.0, self.rows / rows)
        count = int(min(most, max(least, limits.seconds / max(seconds, 1e-9))))
        return count - count % 2 if limits.even else count

    def take_row_steps(self) -> int:
        """Tokens decoded since the last call. Units are counted to the end of each run, and corrected once they end."""
        steps, self._row_steps = self._row_steps, 0
        return steps

    # -- leaving

    def remove_finished(self) -> list[Request]:
        """Remove the units that are known to be over; returns the requests that are complete, with their outputs."""
        self._poll()
        ended, self._ended = self._ended, []
        return ended

    def _poll(self) -> None:
        self._collect()
        if self._leaving and not self.rows:  # no later run will tell that pages are free
            self._settle()

    def _collect(self) -> None:
        stage = self._stage
        if stage is None or not (self.rows or self._leaving):
            return
        run, over = stage.steps.flags()
        first = 0
        for index, units in enumerate(stage.units):
            places = [
                place
                for place, unit in enumerate(units)
                if unit is not None and run > unit.joined and over[first + place]
            ]
            first += len(units)
            if places:
                self._complete(stage, index, places)
        self._release(run)

    def _complete(self, stage: _Stage, index: int, places: list[int]) -> None:
        """Store the results of units that are over, and free them."""
        search = stage.decoder.searches[index]
        found = torch.tensor(places, dtype=torch.int64, device="cpu")
        # No queued run changes these units, as they were over in a run that is complete. The host has the results when
        # it leaves the context, so what it queues for the next occupants comes after the reads.
        with self.reading():
            results, lengths = search.results(found), search.lengths.tolist()
        units = [unit for place in places if (unit := stage.units[index][place]) is not None]
        for place, unit, (outputs, scores) in zip(places, units, results):
            self._row_steps += (lengths[place] - 1 - (self.steps - unit.began)) * stage.groups[index].width
            if store_results(unit.owner, outputs, scores):
                self._ended.append(unit.member.request)
        self._leave(stage, index, places, last=0)

    def remove(self, requests: Collection[Request]) -> None:
        """Remove requests and their units, whatever their state."""
        self._ended = [request for request in self._ended if request not in requests]
        stage = self._stage
        if stage is None:
            return
        for index, units in enumerate(stage.units):
            places = [u for u, unit in enumerate(units) if unit is not None and unit.member.request in requests]
            if places:
                self._leave(stage, index, places, last=stage.runs)
        self._poll()

    def _leave(self, stage: _Stage, index: int, places: list[int], last: int) -> None:
        """Free units, which write pages until the run `last`."""
        stage.decoder.leave(index, places)
        for place in places:
            unit = stage.units[index][place]
            assert unit is not None
            stage.units[index][place] = None
            unit.member.left -= 1
            if not unit.member.left:
                self._leaving.append((last, unit.member.admission))
        self.rows -= len(places) * stage.groups[index].width

    def _release(self, run: int = 0, all_of_them: bool = False) -> None:
        """Give back the pages that no run after this one writes."""
        kept = []
        for last, admission in self._leaving:
            if all_of_them or last <= run:
                self.release(admission)
            else:
                kept.append((last, admission))
        self._leaving = kept


def _units(request: Request, admission: Admission) -> list[_Unit]:
    """The units of a request: one with all beams, or one for each return sequence."""
    if request.options.num_beams > 1 or request.rows == 1:
        return [_Unit(request, admission, _Member(request, admission, 1))]
    member = _Member(request, admission, request.rows)
    return [_Unit((request, i), one, member) for i, one in enumerate(admission.split(1))]
