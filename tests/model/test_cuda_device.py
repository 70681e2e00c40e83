"""The calls of CUDA, in their order, with torch.cuda replaced: no GPU is needed to see what a failed capture leaves."""

from __future__ import annotations

import contextlib
import gc
from types import SimpleNamespace

import pytest
import torch

from bertgen.model.cuda_device import CudaDevice


class Stream:
    def __init__(self, told, name):
        self.told, self.name = told, name

    def wait_stream(self, other):
        self.told.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.told.append(f"{self.name} waits for the event on {event.stream.name}")


class Event:
    def record(self, stream):
        self.stream = stream


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda with one current stream; `begins`, `ends` and `call` may be set to an error."""
    told: list[str] = []
    streams = iter([Stream(told, "side"), Stream(told, "third")])
    world = SimpleNamespace(told=told, current=Stream(told, "main"), begins=None, ends=None)

    @contextlib.contextmanager
    def stream(new):
        former, world.current = world.current, new
        try:
            yield
        finally:
            world.current = former

    class Graph:
        def capture_begin(self, pool, capture_error_mode):
            told.append(f"begin on {world.current.name}, pool {pool}, {capture_error_mode}")
            if world.begins:
                raise world.begins

        def capture_end(self):
            told.append(f"end on {world.current.name}")
            if world.ends:
                raise world.ends

        def replay(self):
            told.append(f"replay on {world.current.name}")

    class Generator:
        def clone_state(self):
            return "fresh state"

        def graphsafe_set_state(self, state):
            told.append(f"generator gets a {state}")

    pools = iter((7, n) for n in range(9))
    for name, value in dict(
        stream=stream, CUDAGraph=Graph, Stream=lambda device: next(streams), current_stream=lambda _: world.current,
        synchronize=lambda _: told.append("synchronize"), graph_pool_handle=lambda: next(pools), Event=Event,
        default_generators=[None, Generator()],
    ).items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value, raising=False)
    ends = lambda device, pool: told.append(f"allocations to {pool} end")  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", ends, raising=False)
    return world


def device():
    return CudaDevice(torch.device("cuda", 1))


def test_captures_share_their_memory_and_their_stream(cuda):
    one = device()
    for _ in range(2):
        replay = one.capture(lambda: cuda.told.append(f"call on {cuda.current.name}"))
        replay()
    once = [
        "synchronize", "begin on side, pool (7, 0), thread_local", "call on side", "end on side", "replay on main"
    ]  # fmt: skip
    assert cuda.told == once * 2


def fail():
    raise RuntimeError("reads a value")


@pytest.mark.parametrize("where", ["begins", "call", "ends", "call and ends"])
def test_a_failed_capture_leaves_stream_generator_and_memory_as_before(cuda, where):
    one, call = device(), lambda: None
    for name in where.split(" and "):
        if name == "call":
            call = fail
        else:
            setattr(cuda, name, RuntimeError(name))
    with pytest.raises(RuntimeError, match="reads a value" if "call" in where else where):
        one.capture(call)
    assert cuda.current.name == "main" and gc.isenabled()
    assert cuda.told[-2:] == ["allocations to (7, 0) end", "generator gets a fresh state"]
    assert ("end on side" in cuda.told) == (where != "begins")
    cuda.begins = cuda.ends = None
    one.capture(lambda: None)
    assert "begin on side, pool (7, 1), thread_local" in cuda.told, "not the memory of the failed one"


def test_nothing_is_collected_during_a_capture(cuda):
    enabled = []
    device().capture(lambda: enabled.append(gc.isenabled()))
    assert enabled == [False] and gc.isenabled()
    gc.disable()
    try:
        one = device()
        one._streams["capture"] = cuda.current
        one.capture(lambda: None)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_call_beside_runs_between_two_waits(cuda):
    device().run_beside(lambda: cuda.told.append(f"call on {cuda.current.name}"))
    assert cuda.told == ["side waits for main", "call on side", "main waits for side"]


@pytest.mark.parametrize("waits", [True, False])
def test_a_prefill_beside(cuda, waits):
    with device().beside(waits) as wait:
        cuda.told.append(f"encode on {cuda.current.name}")
    assert cuda.told == ["side waits for main"] * waits + ["encode on side"]
    wait()
    assert cuda.told[-1] == "main waits for the event on side"


def test_reads_are_on_a_stream_that_waits_for_nothing(cuda):
    with device().reading():
        cuda.told.append(f"read on {cuda.current.name}")
    assert cuda.told == ["read on side"] and cuda.current.name == "main"


def test_a_copy_is_complete_when_its_event_happens(cuda):
    event, target = Event(), torch.zeros(2)
    device().copy(torch.ones(2), target, event)
    assert target.tolist() == [1, 1] and event.stream is cuda.current
