"""The clock of steps: a GPU's work is timed by events that are read late."""

import time

import pytest
import torch

from bertgen.engine import step_clock
from bertgen.engine.step_clock import StepClock, new_point

CPU = torch.device("cpu")


class Event:
    """Takes the place of torch.cuda.Event: has passed when the test says so; numbers are milliseconds."""

    now, passed, waited = 0, -1, False

    def __init__(self, enable_timing=False):
        assert enable_timing

    def record(self):
        self.time = Event.now

    def query(self):
        return self.time <= Event.passed

    def elapsed_time(self, end_event):
        assert self.query() and end_event.query(), "it would raise an error"
        return end_event.time - self.time

    def synchronize(self):
        raise AssertionError("a step must not wait")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    Event.now, Event.passed = 0, -1
    return StepClock(torch.device("cuda:1"), ("encode", "decode"))


def test_work_of_a_cpu_is_timed_at_once():
    clock = StepClock(CPU, ("encode", "decode"))
    clock.lap("encode")  # nothing came before
    clock.start()
    time.sleep(0.02)
    clock.lap("decode")
    clock.lap("encode")
    seconds = clock.seconds()
    assert 0.02 <= seconds["decode"] < 1 and seconds["encode"] < 0.01


def test_time_between_steps_counts_as_nothing(gpu):
    Event.passed = 100
    for Event.now in (0, 50):
        gpu.start()
        Event.now += 3
        gpu.lap("decode")
    assert gpu.seconds() == {"encode": 0.0, "decode": 0.006}


def test_work_of_a_gpu_counts_after_the_device_has_passed_it(gpu):
    gpu.start()
    for Event.now, kind in ((2, "encode"), (5, "decode"), (9, "decode")):
        gpu.lap(kind)
    assert gpu.seconds() == {"encode": 0.0, "decode": 0.0}
    Event.passed = 5
    assert gpu.seconds() == {"encode": 0.002, "decode": 0.003}
    Event.passed = 9
    gpu.start()  # a later step adds it too
    assert not gpu._laps and gpu.seconds() == {"encode": 0.002, "decode": 0.007}


def test_the_point_of_a_device_follows_its_type(gpu):
    assert isinstance(new_point(torch.device("cuda")), Event)
    assert isinstance(new_point(CPU), step_clock.HostPoint) and new_point(CPU).query()
