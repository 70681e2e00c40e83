"""Requests: what the engine refuses to queue, and what a request keeps."""

import dataclasses
import gc
import weakref

import pytest
import torch

from bertgen import (
    CapacityError,
    ConfigError,
    InputError,
)
from bertgen.config import EngineConfig
from bertgen.engine import Engine, Request
from bertgen.engine.request import RequestState
from tests.support.made_up_model import Model, alone, drive, options, result


def test_a_list_of_ids_that_changes_later_changes_nothing():
    ids, done = [5, 6], []
    expected = alone(Request([5, 6], options()))
    engine = Engine(Model())
    engine.submit([Request(ids, options())], done.append)
    ids.clear()
    while not done:
        engine.step()
    assert result(done[0]) == expected


def test_ids_outside_the_encoders_vocabulary_are_refused(generator):
    engine = Engine(Model())
    for ids, message in (([], "at least one, got"), ([5, 13], r"0 to 12.*\[13\]"), ([-1], r"\[-1\]"), ([5.0], "integ")):
        with pytest.raises(InputError, match=message):
            engine.submit([Request(ids, options())], print)
    for ids in ([[5, 64]], [[5, -1]]):
        for name in ("input_ids", "decoder_input_ids"):
            with pytest.raises(InputError, match=f"{name} holds (64|-1)"):
                generator.model.generate(**{"input_ids": torch.tensor([[5]]), name: torch.tensor(ids)})


def test_numbers_beyond_64_bits_are_refused(generator):
    for seed in (2**64, -(2**63) - 1, 10**30):
        with pytest.raises(ConfigError, match="seed must be an integer from"):
            generator.submit("one", seed=seed)
    given = dict(do_sample=True, temperature=3.0)
    assert [generator.generate(["one two"], seed=seed, **given)[0].token_ids for seed in (2**64 - 1, 2**63)] == [
        generator.generate(["one two"], seed=seed, **given)[0].token_ids for seed in (-1, -(2**63))
    ]
    engine = Engine(Model())
    for given in (dict(seed=2**63), dict(number=2**63), dict(seed=1.0)):
        with pytest.raises(InputError, match="must be an integer of 64 bits"):
            engine.submit([Request([5], options(), **given)], print)


@pytest.mark.parametrize("name", ["pad_token_id", "decoder_start_token_id", "eos_token_id"])
def test_special_ids_outside_the_vocabulary_are_refused(generator, name):
    """Such an end token is never generated, but becomes the pad id where there is none."""
    given = {name: 64} | ({"pad_token_id": None} if name == "eos_token_id" else {})
    wanted = "holds 64; (the )?ids (of the decoder )?go from 0 to 63"
    for call in (
        lambda: generator.generate(["one"], **given),
        lambda: generator.submit("one", **given),
        lambda: generator.model.generate(torch.tensor([[5, 6]]), **given),
    ):
        with pytest.raises((ConfigError, InputError), match=wanted):
            call()
    if name != "eos_token_id":
        with pytest.raises(ConfigError, match="holds 64"):
            generator.engine.submit([Request([5], options(**given))], print)


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


def test_a_request_larger_than_the_default_of_a_cpu_runs_alone(monkeypatch):
    monkeypatch.setattr("bertgen.config.engine.KEPT_BYTES", 1)  # of a large model
    engine, done = Engine(Model()), []
    assert engine.config.max_rows == 64
    large = options(do_sample=True, num_return_sequences=100)
    wanted = [Request([5], options()), Request([6], large, seed=1), Request([7], options())]
    engine.submit(wanted, done.append)
    together = []
    while engine.busy:
        engine.step()
        together.append([request.rows for request in engine.scheduler.running])
    assert [100] in together and not [rows for rows in together if len(rows) > 1 and 100 in rows]
    assert sorted(len(request.outputs) for request in done) == [1, 1, 100]
    with pytest.raises(CapacityError, match="a request of 257 rows; max_rows is 256"):
        engine.submit([Request([5], options(do_sample=True, num_return_sequences=257), seed=1)], done.append)


def test_a_request_is_submitted_once():
    engine, done = Engine(Model()), []
    (request,) = engine.submit([Request([5, 6], options())], done.append)
    drive(engine, done, 1)
    assert request.state is RequestState.FINISHED and done == [request]
    with pytest.raises(InputError, match="was submitted before"):
        engine.submit([request], done.append)
    again = dataclasses.replace(request)
    assert (again.state, again.outputs, again.options) == (RequestState.NEW, None, request.options)
    engine.submit([again], done.append)
    drive(engine, done, 2)
    assert result(again) == result(request)


def test_a_request_says_where_it_is():
    engine = Engine(Model(), EngineConfig(max_rows=1))
    first, second, third = engine.submit(
        [Request([5 + i], options(min_length=5)) for i in range(3)], lambda request: None
    )
    engine.step()
    engine.cancel([third])
    assert [one.state.name for one in (first, second, third)] == ["RUNNING", "WAITING", "CANCELLED"]
    assert not any(one.done for one in (first, second, third))
    while engine.busy:
        engine.step()
    assert [one.state.name for one in (first, second, third)] == ["FINISHED", "FINISHED", "CANCELLED"]


def test_a_search_group_that_goes_on_keeps_no_finished_request():
    """Its options are those of its first request, which may have left long ago."""
    engine, done = Engine(Model()), []
    short, long = (options(min_length=n, max_length=n) for n in (5, 30))
    engine.submit([Request([5], short), Request([6], long)], lambda request: done.append(weakref.ref(request)))
    while not done:
        engine.step()
    gc.collect()
    assert done[0]() is None and engine.busy and len(engine._batch.groups) == 1
