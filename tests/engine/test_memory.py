"""Memory that runs out on a made-up model: everything starts again with half the rows."""

import dataclasses
import gc
import random
import weakref

import pytest
import torch

from bertgen import (
    BackendError,
    CapacityError,
)
from bertgen.config import EngineConfig
from bertgen.decoding import KeyedRng
from bertgen.engine import Engine, Request
from bertgen.engine.engine import CACHE_SHARE, LEAST_SHARE
from tests.support.made_up_model import POSITIONS, SLOT, Model, alone, drive, options, requests, result


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


def test_another_error_of_a_new_cache_is_that_of_all_waiting_requests(monkeypatch):
    """No step would ever do better: it must not be tried for ever."""
    engine, done = Engine(Model(), EngineConfig(max_rows=12)), []
    engine.submit(requests(random.Random(1), 5), done.append)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_new_cache", lambda: [].pop())
        engine.step()
    assert [type(request.error) for request in done] == [IndexError] * 5 and not engine.busy
    drive(engine, done, 5 + len(engine.submit(requests(random.Random(2), 3), done.append)))
    assert all(request.outputs for request in done[5:])


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


def finish(engine, done, count):
    """Step until `count` requests are done."""
    for _ in range(1000):
        if len(done) == count:
            break
        engine.step()
    assert len(done) == count and not engine.busy


def on_gpu_of(free, monkeypatch, most=None, **limits):
    """An engine whose cache is sized as on a GPU with so many free bytes; more than `most` slots cannot be had."""
    engine = Engine(Model(), EngineConfig(max_rows=12, **limits))
    if not limits:
        engine.config = dataclasses.replace(engine.config, cache_bytes=None)
    asked, sizes, new_cache = [], [], engine._new_cache
    monkeypatch.setattr("bertgen.engine.engine.free_memory", lambda device: asked.append(device) or free)

    def make():
        sizes.append(engine.cache_limits.slots)
        if most is not None and sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return new_cache()

    engine._new_cache = make
    return engine, asked, sizes


def test_the_cache_takes_a_share_of_the_free_memory(monkeypatch):
    engine, asked, _ = on_gpu_of(1000 * SLOT, monkeypatch)
    limits = engine.cache_limits
    assert limits.slots == limits.source_slots == int(1000 * CACHE_SHARE) and asked == [engine.model.device]
    assert engine.cache_limits is limits and len(asked) == 1, "measured once"
    engine.clear()
    assert engine.cache_limits == limits and len(asked) == 2, "and again after the memory was given back"


def test_the_cache_is_no_larger_than_all_rows_need(monkeypatch):
    engine, _, _ = on_gpu_of(1 << 50, monkeypatch)
    assert engine.cache_limits.slots == engine.cache_limits.source_slots == 12 * (POSITIONS + 16)


def test_a_given_size_is_kept(monkeypatch):
    engine, asked, _ = on_gpu_of(1000 * SLOT, monkeypatch, cache_bytes=100 * SLOT)
    assert engine.cache_limits.slots == 100 and not asked


def test_submit_makes_no_cache_and_neither_does_a_look_at_the_statistics(monkeypatch):
    engine, _, sizes = on_gpu_of(1 << 50, monkeypatch, most=0)
    engine.submit([Request([5, 6, 7], options())], print)
    assert engine.statistics.cache_bytes == engine.statistics.pages == 0 and engine.statistics.waiting == 1
    engine.clear()
    assert engine.statistics.waiting == 0 and engine._decoder is None and not sizes


def test_a_cache_that_does_not_fit_becomes_smaller(monkeypatch):
    engine, _, sizes = on_gpu_of(1000 * SLOT, monkeypatch, most=150)
    wanted, done = requests(random.Random(3), 9), []
    expected = {request.number: alone(request) for request in wanted}
    engine.submit(wanted, done.append)
    finish(engine, done, len(wanted))
    assert sizes == [400, 200, 100] and engine.statistics.restarts == 2
    fitting = {request.number: result(request) for request in done if request.error is None}
    assert len(fitting) > 4 and fitting == {number: expected[number] for number in fitting}
    for request in done:
        assert request.error is None or request.rows * -(-request.positions // 16) > 100 // 16


def test_what_a_smaller_cache_cannot_hold_fails_and_the_rest_runs(monkeypatch):
    engine, _, _ = on_gpu_of(1000 * SLOT, monkeypatch, most=50)
    large, small = Request([5, 6], options(num_beams=4, max_length=30)), Request([5, 6], options(), number=1)
    done = []
    engine.submit([large, small], done.append)
    finish(engine, done, 2)
    assert isinstance(large.error, CapacityError) and "takes 8 pages" in str(large.error)
    assert result(small) == alone(Request([5, 6], options(), number=1))


@pytest.mark.parametrize("limits", [{}, dict(cache_bytes=1 << 20)], ids=["default", "given"])
def test_no_cache_at_all_is_a_typed_error(monkeypatch, limits):
    engine, _, sizes = on_gpu_of(1 << 30, monkeypatch, most=0, **limits)
    done = []
    engine.submit(requests(random.Random(1), 5), done.append)
    finish(engine, done, 5)
    assert len(sizes) == (1 if limits else 1 + round(CACHE_SHARE / LEAST_SHARE).bit_length() - 1)
    for request in done:
        assert isinstance(request.error, BackendError) and "for the cache itself" in str(request.error)
        assert ("1048576" if limits else "0.6% of the free memory") in str(request.error)
