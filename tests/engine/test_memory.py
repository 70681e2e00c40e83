"""Memory that runs out on a made-up model: everything starts again with half the rows."""

import gc
import random
import weakref

import pytest
import torch

from bertgen import (
    BackendError,
)
from bertgen.config import EngineConfig
from bertgen.decoding import KeyedRng
from bertgen.engine import Engine, Request
from tests.support.made_up_model import Model, alone, drive, options, requests, result


@pytest.mark.parametrize("step", [*range(1, 12), 20, 35, 50])
def test_memory_that_fails_at_any_step_loses_nothing(step):
    wanted = requests(random.Random(step), 25 + step)
    expected = {request.number: alone(request) for request in wanted}
    model, done = Model(), []
    model.failing = step
    engine = Engine(model, EngineConfig(max_rows=12))
    engine.submit(wanted, done.append)
    drive(engine, done, len(wanted))
    assert {request.number: result(request) for request in done} == expected
    assert engine.statistics.restarts == 1 and engine.scheduler.row_limit == 12, "idle, it tries again with all rows"


def test_a_cache_that_cannot_be_made_again_is_an_error():
    """A step fails, and then there is no memory for a new cache."""
    model, done = Model(), []
    model.failing = 3
    engine = Engine(model, EngineConfig(max_rows=12))
    engine.submit(requests(random.Random(1), 5), done.append)

    def fail():
        raise torch.OutOfMemoryError("out of memory")

    engine._new_cache = fail
    for _ in range(100):
        engine.step()
    failed = [request.error for request in done if request.outputs is None]
    assert len(done) == 5 and failed and not engine.busy
    assert all(isinstance(error, BackendError) and "cache_bytes" in str(error) for error in failed)


@pytest.mark.parametrize("place", ["search", "prefill"])
def test_the_failed_step_is_freed_before_the_next(monkeypatch, place):
    """Memory that runs out in a search or in the encoder: the old cache is gone before there is a new one."""
    model, done, calls, caches = Model(), [], [], []
    engine = Engine(model, EngineConfig(max_rows=12))
    owner, name = (KeyedRng, "choose") if place == "search" else (Model, "prefill")
    function, new_cache = getattr(owner, name), engine._new_cache

    def fail_once(*arguments):
        calls.append(place)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return function(*arguments)

    def make_cache():
        assert all(reference() is None for reference in caches)
        cache = new_cache()
        caches.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(owner, name, fail_once)
    engine._new_cache = make_cache
    work = [Request([5, 6, 7], options(min_length=9), number=i) for i in range(30)]
    gc.collect()
    gc.disable()
    try:
        engine.submit(work, done.append)
        for _ in range(100):
            engine.step()
    finally:
        gc.enable()
    assert not engine.busy and engine.statistics.restarts == 1 and len(caches) == 2
    assert all(request.error is None for request in done) and len(done) == 30
