"""Ctrl-C at any place loses no request."""

import _thread
import random
import threading

import pytest

from bertgen.config import EngineConfig
from bertgen.decoding import BeamSearch, Sampling
from bertgen.engine import Engine
from tests.support.hostile import (
    PATIENCE,
    check_idle,
    later,
    raising,
)
from tests.support.made_up_model import Model, alone, drive, requests, result


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


class Stop(BaseException):
    """Raised by a signal handler."""


@pytest.mark.parametrize("method", ["advance", "results"])
def test_an_exception_of_a_signal_handler_is_no_failure_of_a_request(monkeypatch, method):
    """Callbacks are guarded: what else a search raises in the main thread, and is no Exception, came by a signal."""
    wanted = requests(random.Random(2), 20)
    expected = {request.number: alone(request) for request in wanted}
    done, calls = [], []
    engine = Engine(Model(), EngineConfig(max_rows=12))
    engine.submit(wanted, done.append)

    def interrupting(function):
        def call(*rest):
            calls.append(1)
            if len(calls) == 6:
                raise Stop
            return function(*rest)

        return call

    for search in (Sampling, BeamSearch):
        monkeypatch.setattr(search, method, interrupting(getattr(search, method)))
    with pytest.raises(Stop):
        drive(engine, done, 20)
    drive(engine, done, 20)
    assert {request.number: result(request) for request in done} == expected


def test_interrupts_at_any_place_lose_nothing(generator):
    """Also while this thread steps for requests of other threads."""
    expected = generator.generate(["one two three"])[0].text
    r = random.Random(0)
    for _ in range(12):
        futures = [generator.submit("one two three") for _ in range(30)]
        timer = threading.Timer(r.random() * 0.05, _thread.interrupt_main)
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            while True:
                generator.generate(["one two"] * 30)
        assert {future.result(PATIENCE).text for future in futures} == {expected}
    assert generator.generate(["one two three"])[0].text == expected
    check_idle(generator)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_callback_ends_the_call_and_affects_no_other_request(generator, texts, expected, error):
    """In the main thread it may be Ctrl-C, so the call raises it; the request of the callback fails."""
    engine = generator.engine
    with engine.lock:  # the worker waits: this thread drives
        futures = [generator.submit(text) for text in texts]
        with pytest.raises(error):
            generator.generate(["one"], logits_processor=[later(raising(error()), 2)], min_new_tokens=5)
    assert [future.result(PATIENCE).text for future in futures] == [expected[text, 1] for text in texts]
    assert generator.generate(["one"])[0].text == "eins"
    check_idle(generator)
