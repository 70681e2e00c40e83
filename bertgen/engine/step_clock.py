"""The clock of an engine's steps: seconds of each kind of work, without waiting for the device.

On a GPU a call returns when its work is queued, so the host's clock would time the queueing. An event in the queue
times the work; it is read after the device has passed it, in a later step or when the totals are asked for.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, TypeAlias

import torch


class HostPoint:
    """The present moment of the host, with the methods of `torch.cuda.Event`."""

    def __init__(self) -> None:
        self._time = time.perf_counter()

    def query(self) -> bool:
        """Whether the device has passed the point."""
        return True

    def elapsed_time(self, end_event: HostPoint) -> float:
        """Milliseconds to another point."""
        return 1000 * (end_event._time - self._time)


Point: TypeAlias = "HostPoint | torch.cuda.Event"


def new_point(device: torch.device) -> Point:
    """A point at the end of all work that was given to the device; the GPU must be the current one."""
    if device.type != "cuda":
        return HostPoint()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class StepClock:
    """Adds up the time between points, by kind of work.

    Args:
        device: that works.
        kinds: names of the kinds of work.
    """

    def __init__(self, device: torch.device, kinds: tuple[str, ...]):
        self.device = device
        self._seconds = dict.fromkeys(kinds, 0.0)
        self._last: Point | None = None
        self._laps: deque[tuple[str, Point, Point]] = deque()  # that are not added yet, oldest first

    def start(self) -> None:
        """Begin a step: the time since the last point counts as nothing."""
        self._add_passed()
        self._last = new_point(self.device)

    def lap(self, kind: str) -> None:
        """Count the time since the last point as this kind of work."""
        point, last = new_point(self.device), self._last
        if last is not None:
            self._laps.append((kind, last, point))
        self._last = point

    def _add_passed(self) -> None:
        while self._laps and self._laps[0][2].query():
            kind, start, end = self._laps.popleft()
            self._seconds[kind] += start.elapsed_time(end) / 1000  # type: ignore[arg-type]

    def seconds(self) -> dict[str, Any]:
        """Seconds of each kind of work that the device has completed."""
        self._add_passed()
        return dict(self._seconds)
