"""Static steps in the engine: which requests take them, what is told of it, and what happens when they fail."""

import logging
import random
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from bertgen.kernels.linear import few_rows

from bertgen import GenerationConfig, Generator
from bertgen.cache.block_allocator import Violation
from bertgen.config import EngineConfig
from bertgen.decoding import resolve_generation_config
from bertgen.engine import Engine, Request
from bertgen.engine.static_batch import StaticBatch
from bertgen.model.cpp_steps import CppSteps
from bertgen.ops import extension
from tests.support.checkpoints import sentence
from tests.support.fake_cuda_device import LateEvent, graphs_on_a_cpu
from tests.support.hostile import PATIENCE, check_idle, raising

pytestmark = pytest.mark.skipif(not extension.available(), reason="static steps of a CPU need the extension")


def plain_steps(generator):
    statistics = generator.engine.statistics
    return statistics.steps - statistics.static_steps


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, None),
        (dict(num_beams=4, no_repeat_ngram_size=3), None),
        (dict(do_sample=True, num_return_sequences=3, top_p=0.9), None),
        (dict(do_sample=True, num_beams=3), "beams are sampled"),
        (dict(stop_strings=["eins"]), "a stopping criterion runs in Python"),
        (dict(logits_processor=[lambda history, scores: scores]), "a logits_processor of the caller runs in Python"),
        (dict(encoder_no_repeat_ngram_size=2), "a processor depends on the source of a row"),
        (dict(max_time=99.0), "a stopping criterion runs in Python"),
    ],
    ids=lambda value: "-".join(value) or "none" if isinstance(value, dict) else str(value),
)
def test_a_request_takes_the_way_that_explain_tells(generator, given, reason):
    told = generator.explain(**given)
    before, static = plain_steps(generator), generator.engine.statistics.static_steps
    generator.generate(["one two", "three"], seed=1, **given)
    if reason is None:
        assert "one call of the C++ extension" in told and plain_steps(generator) == before
        assert generator.engine.statistics.static_steps > static
    else:
        assert told.startswith(f"each step runs on its own, from Python: {reason}") and plain_steps(generator) > before
        assert generator.engine.statistics.static_steps == static
        assert any(n >= 2 and why.startswith(reason) for why, n in generator.engine.statistics.plain.items())
    check_idle(generator)


def test_on_tokens_is_called_after_every_step(generator):
    assert "on_tokens" in generator.explain(on_tokens=print)
    seen = []
    expected = generator.generate(["one two three"])[0].token_ids
    assert generator.submit("one two three", on_tokens=seen.append).result(PATIENCE).token_ids == expected
    assert [token for tokens in seen for token in tokens] == list(expected)


def test_many_rows_are_left_to_products_of_many_rows(generator):
    r = random.Random(1)
    texts = [sentence(r) for _ in range(few_rows() + 1)]
    before = generator.engine.statistics.static_steps
    many = generator.generate(texts)
    assert generator.engine.statistics.static_steps == before
    assert any(f"more than {few_rows()}" in reason for reason in generator.engine.statistics.plain)
    assert [generator.generate([text])[0].token_ids for text in texts[:8]] == [one.token_ids for one in many[:8]]
    assert generator.engine.statistics.static_steps > before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_as_many_rows_as_the_products_are_good_for_give_the_outputs_of_one(dtype, tiny_checkpoint):
    most, r = few_rows(dtype), random.Random(2)
    generator = Generator(tiny_checkpoint, dtype=dtype, max_rows=most, encode_tokens=most)
    texts = [sentence(r) for _ in range(most)]
    many = generator.generate(texts, max_new_tokens=6)
    assert plain_steps(generator) == 0 and generator.engine.statistics.static_steps > 0
    alone = [generator.generate([text], max_new_tokens=6)[0].token_ids for text in texts]
    assert [one.token_ids for one in many] == alone


def test_requests_with_other_limits_of_sampling_share_a_search_and_are_as_alone(generator):
    limits = [dict(temperature=0.5), dict(top_k=3), dict(top_p=0.6), dict(min_p=0.2), dict(temperature=3.0, top_k=0)]
    texts = ["one two", "three", "four five six", "one", "two three"]
    alone = [
        generator.submit(text, do_sample=True, seed=4, **one).result(PATIENCE).token_ids
        for text, one in zip(texts, limits)
    ]
    engine, done, requests = Engine(generator.model, EngineConfig()), [], []
    for text, one in zip(texts, limits):
        given = GenerationConfig(do_sample=True, **one).over(generator.model.generation_config)
        ids = generator.tokenizer(text)["input_ids"]
        requests.append(Request(ids, resolve_generation_config(given), seed=4))
    engine.submit(requests, done.append)
    engine.step()
    assert len(engine._static._stage.groups) == 1 and engine._static.rows == len(texts)
    while engine.busy:
        engine.step()
    assert [request.outputs[0] for request in requests] == [list(one) for one in alone]
    assert len({*map(str, (request.outputs for request in requests))}) > 1


def test_rows_of_steps_are_counted_exactly(generator):
    engine = Engine(generator.model, EngineConfig(max_rows=40))
    r, done = random.Random(2), []
    for number in range(20):
        options = GenerationConfig(max_length=r.randint(3, 20)).over(generator.model.generation_config)
        resolved = resolve_generation_config(options)
        engine.submit([Request([5 + number % 9, 6], resolved, number=number)], done.append)
    while engine.busy:
        engine.step()
    total = sum(len(request.outputs[0]) for request in done)
    found = engine.statistics
    assert found.row_steps == total and found.steps == found.static_steps > 0 and found.tokens == total


def test_a_failure_of_static_steps_is_told_once_and_changes_nothing(generator, caplog, monkeypatch):
    texts = ["one two", "three", "four five six"]
    expected = [output.token_ids for output in generator.generate(texts)]
    engine = Engine(generator.model, EngineConfig())
    former, generator.engine = generator.engine, engine
    try:
        run, calls = CppSteps.run, []

        def failing(self, *arguments):
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("no such kernel")
            return run(self, *arguments)

        monkeypatch.setattr(CppSteps, "run", failing)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert [output.token_ids for output in generator.generate(texts)] == expected
                assert [output.token_ids for output in generator.generate(texts)] == expected
        assert len([one for one in caplog.records if "no such kernel" in one.getMessage()]) == 1
        assert "no such kernel" in generator.explain() and len(calls) == 2
        assert engine.cache.allocator.check() == Violation.SOUND and engine.statistics.pages_used == 0
    finally:
        generator.engine = former


@pytest.mark.parametrize("method", ["join", "run", "remove_finished"])
def test_memory_that_runs_out_in_static_steps_loses_nothing(generator, monkeypatch, method):
    texts = [f"one {word}" for word in ("one", "two", "three", "four", "five")] * 3
    expected = [output.token_ids for output in generator.generate(texts)]
    restarts = generator.engine.statistics.restarts
    function, calls = getattr(StaticBatch, method), []

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return function(self, *arguments)

    monkeypatch.setattr(StaticBatch, method, failing)
    assert [output.token_ids for output in generator.generate(texts)] == expected
    assert generator.engine.statistics.restarts == restarts + 1
    check_idle(generator)


def test_a_hook_that_comes_while_static_steps_run_is_called(generator):
    """The request begins again, step by step."""
    expected = generator.generate(["one two three four"])[0].token_ids
    seen = []
    future = generator.submit("one two three four")
    layer = generator.model.decoder.body.encoder.layer[0]
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    try:
        assert future.result(PATIENCE).token_ids == expected
        assert generator.generate(["one two three four"])[0].token_ids == expected and seen
        assert "each step runs on its own" in generator.explain()
    finally:
        handle.remove()


def test_an_interrupt_in_static_steps_loses_nothing(generator, monkeypatch):
    expected = generator.generate(["one two three"])[0].token_ids
    with generator.engine.lock:
        futures = [generator.submit("one two three") for _ in range(5)]
        monkeypatch.setattr(CppSteps, "run", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            generator.engine.step()
        monkeypatch.undo()
    assert [future.result(PATIENCE).token_ids for future in futures] == [expected] * 5
    check_idle(generator)


@pytest.mark.parametrize("length", [3, 6, 9])
def test_an_end_that_is_noticed_by_a_cancellation_is_returned(generator, monkeypatch, length):
    """On a GPU the end of one request may become known while the last other one is removed."""
    options = generator.model.generation_config

    def request(number, length):
        given = GenerationConfig(max_length=length, min_length=length).over(options)
        return Request([5 + number, 6], resolve_generation_config(given), number=number)

    with graphs_on_a_cpu():
        engine, done = Engine(generator.model, EngineConfig(max_rows=8)), []
        long, short = engine.submit([request(0, 30), request(1, length)], done.append)
        engine.step()
        assert not done
        monkeypatch.setattr(LateEvent, "query", lambda self: True)
        engine.cancel([long])
        for _ in range(4):
            engine.step()
    assert done == [short] and len(short.outputs[0]) == length - 1
    assert not engine.busy and engine.statistics.pages_used == 0


def test_memory_that_runs_out_in_a_cancellation_loses_nothing(generator, monkeypatch):
    options = resolve_generation_config(GenerationConfig(min_length=30).over(generator.model.generation_config))
    engine, done = Engine(generator.model, EngineConfig(max_rows=8)), []
    cancelled, other = engine.submit([Request([5 + i, 6], options, number=i) for i in range(2)], done.append)
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(StaticBatch, "remove", raising(torch.OutOfMemoryError("out of memory")))
        engine.cancel([cancelled])
    while engine.busy:
        engine.step()
    assert done == [other] and len(other.outputs[0]) >= 29 and cancelled.outputs is None
    assert engine.statistics.restarts == 1 and engine.statistics.pages_used == 0


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("change", ["hook", "training"])
def test_a_model_that_changes_while_static_steps_run(generator, graphs, change):
    """All that runs begins again from Python; static steps come back with the model as it was."""
    model, seen = generator.model, []
    layer = model.decoder.body.encoder.layer[0]
    given = GenerationConfig(max_length=24, min_length=20).over(model.generation_config)
    options = resolve_generation_config(given)

    def submitted(engine):
        requests = [Request([5 + i, 6, 7 + i], options, number=i) for i in range(3)]
        return engine.submit(requests, lambda request: None)

    def outputs(engine, requests):
        while engine.busy:
            engine.step()
        return [request.outputs for request in requests]

    with graphs_on_a_cpu() if graphs else nullcontext():
        engine = Engine(model, EngineConfig(max_rows=8))
        expected = outputs(engine, submitted(engine))
        engine._static.limits = replace(engine._static.limits, steps=2, waiting_steps=2)
        requests = submitted(engine)
        engine.step()
        assert engine._static.rows > 0
        steps = engine.statistics.static_steps
        try:
            handle = layer.register_forward_hook(lambda *_: seen.append(1)) if change == "hook" else None
            if change == "training":
                for module in model.decoder.modules():
                    module.training = True
            engine.step()
            assert engine.statistics.static_steps == steps and engine._running_rows == 0
            if change == "hook":
                assert outputs(engine, requests) == expected and len(seen) >= 20
                assert engine.statistics.static_steps == steps
                handle.remove()
        finally:
            model.eval()
        assert outputs(engine, requests) == expected
        assert outputs(engine, submitted(engine)) == expected
        assert engine.statistics.static_steps > steps and engine._static_failure is None
