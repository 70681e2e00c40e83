"""The engine: scheduling on a made-up model, where a step takes no time; answers on a tiny trained one."""

import dataclasses
import random
import threading

import pytest
import torch

from bertgen import BackendError, CapacityError
from bertgen.cache.block_allocator import Violation
from bertgen.config import EngineConfig
from bertgen.engine import Engine, Request
from tests.support.made_up_model import KINDS, SLOT, Model, alone, options, requests, result


def drive(engine, done, count):
    """To the end; no step is without progress."""
    while len(done) < count:
        before = engine._counts.row_steps, len(done), engine._counts.restarts
        engine.step()
        assert (engine._counts.row_steps, len(done), engine._counts.restarts) != before
        assert engine.cache.pages.check() == Violation.SOUND
    assert not engine.busy and engine.statistics.pages_used == 0 and engine.cache.rows == 0
    assert not engine.scheduler._sources and not engine.scheduler._groups and not engine._batch.groups


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
def test_answers_depend_on_the_request_alone(limits):
    """Whatever runs beside it and in whatever order: the made-up logits are the same to the last bit."""
    wanted = requests(random.Random(7), 60)
    expected = {request.number: alone(request) for request in wanted}
    for seed in range(2):
        random.Random(seed).shuffle(wanted)
        engine, done = Engine(Model(), EngineConfig(**limits)), []
        engine.submit([dataclasses.replace(request) for request in wanted], done.append)
        drive(engine, done, 60)
        assert {request.number: result(request) for request in done} == expected


def test_return_sequences_keep_their_places():
    """Each is the draw of a number of its own, whichever ends first."""
    several, one = (options(do_sample=True, temperature=2.0, num_return_sequences=n) for n in (4, 1))
    for number in range(8):
        expected = [alone(Request([5, 6], one, seed=1, number=number + (i << 40)))[0][0] for i in range(4)]
        assert alone(Request([5, 6], several, seed=1, number=number))[0] == expected
        assert len({len(tokens) for tokens in expected}) > 1


def test_first_come_first_served():
    engine, order = Engine(Model(), EngineConfig(max_rows=4)), []
    wanted = requests(random.Random(1), 30)
    done = []
    submitted = engine.submit(wanted, done.append)
    while engine.busy:
        engine.step()
        order += [request for request in engine.scheduler.running if request not in order]
    assert [request.serial for request in order] == sorted(request.serial for request in order) and len(submitted) == 30


def test_what_has_to_begin_again_comes_first_and_in_its_order():
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
    """With `refill`, none enters beside running ones before so many rows are free."""
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
    """A step fails, and then nothing runs: the memory of the cache was taken by someone else."""
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


def test_an_interrupt_loses_nothing():
    wanted = requests(random.Random(2), 20)
    expected = {request.number: alone(request) for request in wanted}
    model, done = Model(), []
    engine = Engine(model, EngineConfig(max_rows=12))
    engine.submit(wanted, done.append)
    head, calls = model.decoder.head, []

    def interrupted(hidden):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return head(hidden)

    model.decoder.head = interrupted
    with pytest.raises(KeyboardInterrupt):
        drive(engine, done, 20)
    drive(engine, done, 20)
    assert {request.number: result(request) for request in done} == expected


def test_an_error_of_the_model_is_that_of_what_ran():
    model, done = Model(), []
    engine = Engine(model, EngineConfig(max_rows=4, refill=0))
    engine.submit([Request([5 + i], KINDS[0], number=i) for i in range(6)], done.append)
    head, model.decoder.head = model.decoder.head, None
    engine.step()
    assert [type(request.error) for request in done] == [TypeError] * 4 and len(engine.scheduler.waiting) == 2
    model.decoder.head = head
    drive(engine, done, 6)
    assert all(request.outputs for request in done[4:])


def test_requests_that_can_never_run_are_refused():
    engine, done = Engine(Model(), EngineConfig(max_rows=3)), []
    for request, message in (
        (Request([5], options(num_beams=4)), "a request of 4 rows; max_rows is 3"),
        (Request([5] * 65, options()), "a source of 65 positions; there is room for 64"),
        (Request([5], options(max_length=66)), "a request of 65 positions; a row holds 64"),
    ):
        with pytest.raises(CapacityError, match=message):
            engine.submit([Request([5], options()), request], done.append)
    assert not engine.busy, "all or none"


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
        assert engine.cache.pages.check() == Violation.SOUND
    assert gone and set(done) | gone == set(submitted) and not set(done) & gone
    assert {t.number: result(t) for t in done}.items() <= expected.items()
    assert engine.statistics.pages_used == 0


def test_threads_drive_one_engine():
    """Eight threads submit and drive; each gets its own answers."""
    wanted = requests(random.Random(5), 160)
    expected = {request.number: alone(request) for request in wanted[:80]}
    engine, found = Engine(Model(), EngineConfig(max_rows=16)), {}

    def work(part):
        done = []
        engine.submit(part, done.append)
        while len(done) < len(part):
            engine.step()
        found.update({request.number: result(request) for request in done})

    threads = [threading.Thread(target=work, args=(wanted[i:80:8],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == expected and not engine.busy


def test_statistics():
    engine, done = Engine(Model()), []
    engine.submit(requests(random.Random(6), 30), done.append)
    assert engine.statistics.waiting == 30 and engine.statistics.running == 0
    engine.step()
    running = engine.statistics
    assert running.running == engine.cache.rows > 0 and running.pages_used > 0
    drive(engine, done, 30)
    found = engine.statistics
    assert found.requests == 30 and found.tokens == sum(len(row) for request in done for row in request.outputs)
    assert found.tokens_per_second > 0 and found.steps > 5 and found.row_steps > found.steps
