"""The engine on a made-up model, where a step takes no time."""

import dataclasses
import random

import pytest

from bertgen.cache.block_allocator import Violation
from bertgen.config import EngineConfig
from bertgen.engine import Engine, Request
from tests.support.hostile import raising
from tests.support.made_up_model import KINDS, SLOT, Model, alone, drive, options, requests, result


def workloads(seeds):
    """Random requests that arrive at random times, in a cache that holds little more than the largest."""
    for seed in seeds:
        r = random.Random(seed)
        wanted = requests(r, 200)
        most = max(request.rows * -(-(request.options.max_length - 1) // 16) for request in wanted)
        model, done = Model(), []
        engine = Engine(model, EngineConfig(
            max_rows=max(request.rows for request in wanted), encode_tokens=r.choice([1, 40]),
            cache_bytes=int(1.1 * most) * 16 * SLOT,
        ))  # fmt: skip
        waiting = list(wanted)
        while waiting:
            engine.submit([waiting.pop(0) for _ in range(min(len(waiting), r.randint(1, 60)))], done.append)
            for _ in range(r.randint(0, 8)):
                engine.step()
        drive(engine, done, 200)
        yield model, done


def test_random_workloads_end():
    for _, done in workloads(range(4)):
        assert all(request.error is None for request in done)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_thousand_random_workloads_end():
    for _, done in workloads(range(1000)):
        assert all(request.error is None for request in done)


@pytest.mark.parametrize(
    "limits", [{"max_rows": 4}, {"max_rows": 5, "refill": 0}, {"max_rows": 64, "encode_tokens": 9}]
)
def test_outputs_depend_on_the_request_alone(limits):
    """Other requests and their order change nothing: the made-up logits are equal to the last bit."""
    wanted = requests(random.Random(7), 60)
    expected = {request.number: alone(request) for request in wanted}
    for seed in range(2):
        random.Random(seed).shuffle(wanted)
        engine, done = Engine(Model(), EngineConfig(**limits)), []
        engine.submit([dataclasses.replace(request) for request in wanted], done.append)
        drive(engine, done, 60)
        assert {request.number: result(request) for request in done} == expected


def test_first_come_first_served():
    engine, order = Engine(Model(), EngineConfig(max_rows=4)), []
    wanted = requests(random.Random(1), 30)
    done = []
    submitted = engine.submit(wanted, done.append)
    while engine.busy:
        engine.step()
        order += [request for request in engine.scheduler.running if request not in order]
    assert [request.serial for request in order] == sorted(request.serial for request in order) and len(submitted) == 30


def test_requeued_requests_come_first_and_in_their_order():
    model = Model()
    engine = Engine(model, EngineConfig(max_rows=8))
    submitted = engine.submit(requests(random.Random(1), 30), lambda request: None)
    engine.step()
    running = len(engine.scheduler.running)
    model.failing = 1
    engine.step()
    assert running > 2 and engine.statistics.restarts == 1
    assert [*engine.scheduler.waiting] == [request for request in submitted if not request.done]


def test_a_source_in_flight_is_encoded_once():
    model = Model()
    engine, done = Engine(model), []
    engine.submit([Request([5, 6, 7], kind, number=i) for i, kind in enumerate(KINDS)], done.append)
    drive(engine, done, len(KINDS))
    assert model.encodings == [[[5, 6, 7]]] and engine.statistics.shared == len(KINDS) - 1
    engine.submit([Request([5, 6, 7], KINDS[0])], done.append)
    drive(engine, done, len(KINDS) + 1)
    assert len(model.encodings) == 2, "its keys were given back in between"


def test_sources_are_encoded_longest_first_within_the_limit():
    model = Model()
    engine, done = Engine(model, EngineConfig(encode_tokens=20)), []
    engine.submit([Request([5] * n, KINDS[0]) for n in (3, 9, 8, 30, 1)], done.append)
    drive(engine, done, 5)
    assert [[len(ids) for ids in batch] for batch in model.encodings] == [[30], [9, 8, 3], [1]]


def test_waiting_requests_enter_together():
    """With `refill`, requests enter beside running ones only after that share of the rows is free."""
    for refill, fewest in ((0.5, 4), (0.0, 1)):
        model, done, sizes = Model(), [], []
        engine = Engine(model, EngineConfig(max_rows=8, refill=refill))
        lengths = [options(max_length=n, min_length=n) for n in range(4, 9)]
        engine.submit([Request([5, i + 5], lengths[i % 5]) for i in range(8)], done.append)
        engine.submit([Request([6] * n, KINDS[0]) for n in range(1, 30)], done.append)
        while engine.busy:
            running = bool(engine.scheduler.running)
            model.encodings.clear()
            engine.step()
            if running and model.encodings and engine.scheduler.waiting:
                sizes.append(sum(map(len, model.encodings)))
        assert sizes and min(sizes) >= fewest and (refill or min(sizes) < 4)


def test_an_error_of_the_model_fails_the_running_requests():
    model, done = Model(), []
    engine = Engine(model, EngineConfig(max_rows=4, refill=0))
    engine.submit([Request([5 + i], KINDS[0], number=i) for i in range(6)], done.append)
    head, model.decoder.head = model.decoder.head, None
    engine.step()
    assert [type(request.error) for request in done] == [TypeError] * 4 and len(engine.scheduler.waiting) == 2
    model.decoder.head = head
    drive(engine, done, 6)
    assert all(request.outputs for request in done[4:])


def test_cancelled_requests_leave_at_once():
    wanted = requests(random.Random(4), 40)
    expected = {request.number: alone(request) for request in wanted}
    engine, done = Engine(Model(), EngineConfig(max_rows=16)), []
    submitted = engine.submit(wanted, done.append)
    r, gone = random.Random(0), set()
    while engine.busy:
        engine.step()
        some = [request for request in r.sample(submitted, 2) if not request.done]
        engine.cancel(some)
        gone |= set(some)
        assert engine.cache.allocator.check() == Violation.SOUND
    assert gone and set(done) | gone == set(submitted) and not set(done) & gone
    assert {t.number: result(t) for t in done}.items() <= expected.items()
    assert engine.statistics.pages_used == 0


def test_a_source_that_cannot_be_encoded_fails_alone():
    """Running requests continue, and the rows of failed ones are free."""
    model, done = Model(), []
    engine = Engine(model, EngineConfig(max_rows=3, refill=0))
    running = Request([5, 6], options(min_length=15))
    expected = alone(running)
    engine.submit([running], done.append)
    engine.step()
    prefill, model.prefill = model.prefill, raising(ZeroDivisionError())
    failed = engine.submit([Request([7], options()), Request([5, 6], options())], done.append)
    engine.step()
    assert [type(request.error) for request in failed] == [ZeroDivisionError] * 2
    model.prefill = prefill
    engine.submit([Request([7], options(min_length=9)), Request([8], options(min_length=9))], done.append)
    engine.step()
    assert engine.statistics.running == 3
    while engine.busy:
        engine.step()
    assert len(done) == 5 and result(next(t for t in done if t is running)) == expected
    assert engine.cache.allocator.check() == Violation.SOUND
