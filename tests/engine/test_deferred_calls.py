"""Calls that arrive during a step, from callbacks or the garbage collector, and calls after it."""

import gc
import random
import threading

import pytest

from bertgen import (
    BackendError,
    UnsupportedError,
)
from bertgen.cache.block_allocator import Violation
from bertgen.config import EngineConfig
from bertgen.engine import Engine, Request
from tests.support.hostile import PATIENCE, check_idle, raising
from tests.support.made_up_model import Model, alone, options, requests, result


@pytest.mark.parametrize("seed", range(12))
def test_a_request_cancelled_during_a_step_leaves_after_it(seed):
    r = random.Random(seed)
    wanted = requests(r, 25)
    expected = {request.number: alone(request) for request in wanted}
    engine, done, gone = Engine(Model(), EngineConfig(max_rows=24)), [], set()

    def cancel(history, scores):
        some = [request for request in r.sample(submitted, 2) if not request.done]
        gone.update(some)
        engine.cancel(some)
        return scores

    rules = [Request([9], options(min_length=9, num_beams=b), logits_processor=[cancel], number=99) for b in (1, 2)]
    engine.submit(rules[:1], lambda request: None)
    submitted = engine.submit(wanted, done.append)
    engine.submit(rules[1:], lambda request: None)
    while engine.busy:
        engine.step()
        assert engine.cache.allocator.check() == Violation.SOUND
    assert gone and set(done) | gone == set(submitted) and not set(done) & gone
    assert {t.number: result(t) for t in done}.items() <= expected.items()
    assert engine.statistics.pages_used == 0


@pytest.mark.parametrize("beams", [1, 3])
def test_a_stream_closed_by_the_garbage_collector_during_a_step(generator, texts, expected, beams):
    """The stream is part of a cycle with an exception, as after a failed test or in a notebook."""

    def abandon():
        stream = generator.stream(texts, num_beams=2, min_new_tokens=20)
        next(stream)
        error = ValueError()
        error.stream, stream_of = stream, [error]
        error.own = stream_of

    def collect(history, scores):
        gc.collect()
        return scores

    gc.disable()
    try:
        for _ in range(3):
            abandon()
        futures = [generator.submit(text, num_beams=beams) for text in texts]
        collector = generator.submit("one", logits_processor=[collect], min_new_tokens=4)
        futures += [generator.submit(text, num_beams=beams) for text in texts]
        assert len(collector.result(PATIENCE).token_ids) >= 4
        found = [future.result(PATIENCE).text for future in futures]
    finally:
        gc.enable()
    assert found == [expected[text, beams] for text in texts] * 2
    check_idle(generator)


def test_an_engine_cleared_during_a_step(generator, texts):
    def clear(history, scores):
        generator.close()
        assert generator.statistics.running > 0, "it waits for the end"
        return scores

    with generator.engine.lock:
        futures = [generator.submit(text) for text in texts]
        futures.append(generator.submit("one", logits_processor=[clear]))
    assert all(isinstance(future.exception(PATIENCE), BackendError) for future in futures)
    assert generator.generate(["one"])[0].text == "eins"


def test_what_a_callback_may_do_during_a_step(generator):
    """It may submit, but not wait for the next step."""
    submitted = []

    def ask(call):
        def process(history, scores):
            call()
            return scores

        return generator.submit("one", logits_processor=[process])

    future = ask(lambda: submitted.append(generator.submit("two")))
    assert future.result(PATIENCE).text == "eins" and submitted[0].result(PATIENCE).text == "zwei"
    for call in (
        lambda: generator.generate(["two"]),
        lambda: next(generator.stream(["two"])),
        lambda: generator.submit("two").result(),
        lambda: generator.submit("two").exception(),
        generator.warm_up,
        generator.engine.step,
    ):
        with pytest.raises(UnsupportedError, match="a callback runs inside a step"):
            ask(call).result(PATIENCE)
    score = ask(lambda: submitted.append(generator.score(["two"], ["zwei"])))
    assert score.result(PATIENCE).text == "eins" and submitted[-1][0].score > -1
    with pytest.raises(UnsupportedError, match="a callback runs inside a step"):
        generator.generate(["one"], logits_processor=[lambda history, scores: generator.generate(["two"])])
    check_idle(generator)


def test_done_callbacks_may_do_anything(generator):
    """The step is over, and the lock is free."""
    found, ready = [], threading.Event()

    def chain(future):
        found.append(generator.generate(["two"])[0].text)
        found.append(generator.submit("three").result(PATIENCE).text)
        thread = threading.Thread(target=lambda: found.append(generator.generate(["four"])[0].text))
        thread.start()
        thread.join(PATIENCE)
        ready.set()

    generator.submit("one").add_done_callback(chain)
    assert ready.wait(PATIENCE) and found == ["zwei", "drei", "vier"]


def test_done_callbacks_may_raise_anything(generator):
    for error in (LookupError(), SystemExit(3), KeyboardInterrupt(), GeneratorExit()):
        with generator.engine.lock:
            first, second = generator.submit("one"), generator.submit("two")
            first.add_done_callback(raising(error))
        assert first.result(PATIENCE).text == "eins" and second.result(PATIENCE).text == "zwei"
    assert generator.submit("three").result(PATIENCE).text == "drei"
