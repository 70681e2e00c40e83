"""A device without a GPU: what is queued runs when the host waits for it, and everything is told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from unittest import mock

import torch

from bertgen.engine.static_batch import StaticBatch
from bertgen.engine.static_steps import StaticSteps
from bertgen.model.captured_calls import why_not_captured
from bertgen.model.graph_pool import GraphPool
from tests.support.recorded_step import RecordedSteps

Call = Callable[[], None]
UNITS = 4


class FakeEvent:
    """Happens when its last place in the queue is reached."""

    def __init__(self, device: FakeCudaDevice):
        self.device, self.places = device, 0

    def query(self) -> bool:
        return not self.places

    def synchronize(self) -> None:
        while self.places:
            self.device.work(1)


class FakeCudaDevice:
    """As `CudaDevice`. A capture collects what its call queues.

    Args:
        late: nothing runs before the host waits for it; otherwise all runs at once.
        fails: number of the call of `queue` in a capture that raises, from 1.

    Attributes:
        told: names of what was called, in order.
    """

    def __init__(self, late: bool = True, fails: int | None = None):
        self.late, self.fails = late, fails
        self.told: list[str] = []
        self._waiting: list[Call] = []
        self._captured: list[Call] | None = None
        self.is_reading = False

    def queue(self, call: Call) -> None:
        """What a kernel does."""
        if self._captured is not None:
            self._captured.append(call)
            if len(self._captured) == self.fails:
                raise RuntimeError("operation not permitted when stream is capturing")
            return
        self._waiting.append(call)
        if not self.late:
            self.work()

    def work(self, count: int | None = None) -> None:
        """The device runs what is queued, or the first so many."""
        for _ in range(len(self._waiting) if count is None else count):
            self._waiting.pop(0)()

    def run_beside(self, call: Call) -> None:
        self.told.append("run beside")
        call()

    def capture(self, call: Call) -> Call:
        self.told.append("capture")
        self._captured = captured = []
        try:
            call()
        finally:
            self._captured = None

        def replay() -> None:
            self.told.append("replay")
            for one in captured:
                self.queue(one)

        return replay

    def pinned(self, like: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(like)

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def copy(self, source: torch.Tensor, target: torch.Tensor, done: FakeEvent) -> None:
        done.places += 1

        def run() -> None:
            target.copy_(source)
            done.places -= 1

        self.queue(run)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        self.told.append("read beside" if self._waiting else "read")
        self.is_reading = True
        yield
        self.is_reading = False

    @contextlib.contextmanager
    def beside(self, waits: bool) -> Iterator[Call]:
        self.told.append("prefill after all" if waits else "prefill beside")
        yield lambda: self.told.append("wait for prefill")

    def synchronize(self) -> None:
        self.told.append("synchronize")
        self.work()


class Tables:
    """Two tables, of which a step reads one and writes the other."""

    def __init__(self):
        self.tables = [torch.zeros(UNITS, dtype=torch.int64) for _ in range(2)]
        self.prepared = []

    @property
    def slot_table(self):
        return self.tables[0]

    def exchange_tables(self):
        self.tables.reverse()

    def prepare(self, count):
        self.prepared.append(count)


class LateDevice(FakeCudaDevice):
    """Runs real decoders: at once, but the host learns late that a run is complete. A replay runs the call again."""

    def __init__(self):
        super().__init__(late=False)

    def capture(self, call: Call) -> Call:
        self.told.append("capture")
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        return call

    def event(self) -> FakeEvent:
        return LateEvent(self)


class RecordingDevice(LateDevice):
    """Captures are recorded steps, which know addresses and no Python."""

    def capture(self, call: Call) -> Call:
        super().capture(call)
        recorded = RecordedSteps(call.__self__._decoder)  # type: ignore[attr-defined]

        def replay() -> None:
            self.told.append("replay")
            recorded.run(2)

        return replay


class GenerationDevice(RecordingDevice):
    """What `generate` uses on a CPU as on a CUDA device, with so much memory."""

    def __init__(self, device: torch.device, free: int = 1 << 40):
        super().__init__()
        self.device, self.free = device, free

    def free_memory(self) -> int:
        return self.free


@contextlib.contextmanager
def generation_graphs_on_a_cpu(**values: Any) -> Iterator[list[GenerationDevice]]:
    """`generate` runs static steps as on a CUDA device; yields the devices that it makes, which get these attributes.

    BERTGEN_GRAPHS=0 is heeded.
    """
    devices: list[GenerationDevice] = []

    def made(device: torch.device) -> GenerationDevice:
        devices.append(GenerationDevice(device))
        vars(devices[-1]).update(values)
        return devices[-1]

    def why_not(device: torch.device) -> str | None:
        return "BERTGEN_GRAPHS=0 is set" if os.environ.get("BERTGEN_GRAPHS") == "0" else None

    with (
        mock.patch("bertgen.model.kept_decoders.CudaDevice", made),
        mock.patch("bertgen.model.static_generation.why_not_graphs", why_not),
    ):
        yield devices


class LateEvent(FakeEvent):
    def query(self) -> bool:
        return False


class _StaticStepsOnCpu(StaticSteps):
    """Static steps of an engine on a CPU as they are on a CUDA device."""

    fails = False
    devices: ClassVar[list[LateDevice]] = []

    def why_not(self, rows: int) -> str | None:
        if os.environ.get("BERTGEN_GRAPHS") == "0":
            return "BERTGEN_GRAPHS=0 is set"
        return why_not_captured(self._model.decoder)

    def new_batch(self, cache: Any) -> StaticBatch:
        device = LateDevice()
        device.fails = 1 if self.fails else None
        self.devices.append(device)
        self._graphs = GraphPool(device)
        return super().new_batch(cache)


@contextlib.contextmanager
def graphs_on_a_cpu(fails: bool = False) -> Iterator[list[LateDevice]]:
    """Engines made inside run static steps as on a CUDA device; yields their devices. BERTGEN_GRAPHS=0 is heeded."""
    devices: list[LateDevice] = []
    kind = type("StaticSteps", (_StaticStepsOnCpu,), {"fails": fails, "devices": devices})
    with mock.patch("bertgen.engine.engine.StaticSteps", kind):
        yield devices


class QueuedSearch:
    """Units that count to their limits and return the number of their request; all is queued, but for reads."""

    def __init__(self, device: FakeCudaDevice, units: int):
        self.device, self.owners = device, [None] * units
        self.counts, self.limits, self.numbers = torch.ones(3, units, dtype=torch.int64)
        self.over = torch.ones(units, dtype=torch.bool)

    @property
    def lengths(self):
        return self._read(self.counts)

    def _read(self, tensor):
        if not self.device.is_reading:  # a read on the stream of the steps waits for them
            self.device.work()
        return tensor.clone()

    def results(self, units):
        numbers, counts = self._read(self.numbers)[units].tolist(), self._read(self.counts)[units].tolist()
        return [([[number] * (count - 1)], [None]) for number, count in zip(numbers, counts)]


class QueuedDecoder:
    """As `StaticDecoder`, of one search."""

    def __init__(self, device: FakeCudaDevice, units: int):
        self.device, self.cache, self.units = device, Tables(), units
        self.decoder, self.searches = torch.nn.Linear(2, 2), [QueuedSearch(device, units)]
        self.over = self.searches[0].over

    def step(self):
        search, queue = self.searches[0], self.device.queue
        queue(lambda: search.counts.add_(~search.over))
        queue(lambda: search.over.logical_or_(search.counts >= search.limits))

    def join(self, index, units, admissions, prefix, owners, seeds, numbers, limits, options=None):
        search = self.searches[index]

        def run():
            search.counts[units], search.over[units] = 1, False
            search.numbers[units], search.limits[units] = numbers, limits

        self.device.queue(run)

    def leave(self, index, units):
        self.device.queue(lambda: self.over.index_fill_(0, torch.tensor(units), True))


class Counter:
    """A decoder whose units count to their limits. A step is two kernels, with addresses of when it was queued."""

    def __init__(self, device, limits):
        self.device, self.cache, self.units = device, Tables(), len(limits)
        self.decoder = torch.nn.Linear(2, 2)
        self.limits, self.over = torch.tensor(limits), torch.zeros(len(limits), dtype=torch.bool)
        self.steps = 0

    @property
    def counts(self):
        """Steps of each unit before its end."""
        return self.cache.slot_table.tolist()

    def step(self):
        self.steps += 1
        old, new = self.cache.tables
        self.device.queue(lambda: torch.add(old, ~self.over, out=new))
        self.cache.exchange_tables()
        self.device.queue(lambda: self.over.copy_(new >= self.limits))
