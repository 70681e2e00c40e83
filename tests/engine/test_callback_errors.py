"""Exceptions of callbacks fail their own request: hostile requests run together with good ones."""

import gc
import itertools
import random
import weakref

import pytest
import torch

from bertgen import (
    CallbackError,
    ConfigError,
)
from bertgen.cache.block_allocator import Violation
from bertgen.engine import Engine, Request
from tests.support.hostile import CRITERIA, HOSTILE, PATIENCE, PROCESSORS, Falsy, Late, check_idle, later, raising
from tests.support.made_up_model import Model, alone, options, result


@pytest.mark.parametrize("seed", range(4))
def test_hostile_requests_do_not_affect_others(generator, texts, expected, seed):
    """All kinds in one mix: each fails with its own error, of bertgen or of the callback; the others succeed."""
    r = random.Random(seed)
    work = [(kind, 1 if "on_tokens" in kind[0] else r.choice([1, 3])) for kind in HOSTILE]
    work += [(None, r.choice([1, 3])) for _ in range(60)]
    r.shuffle(work)
    futures = []
    for kind, beams in work:
        text = r.choice(texts)
        given = {} if kind is None else dict(kind[0], seed=1, do_sample=beams == 1 and r.random() < 0.3)
        futures.append((generator.submit(text, num_beams=beams, min_new_tokens=4, **given), kind))
    for future, kind in futures:
        if kind is None:
            assert len(future.result(PATIENCE).token_ids) >= 4
        else:
            assert type(future.exception(PATIENCE)) is kind[1], kind
    good = [(generator.submit(text, num_beams=beams), text, beams) for text in texts for beams in (1, 3)]
    assert {(text, beams): future.result(PATIENCE).text for future, text, beams in good} == expected
    check_idle(generator)


def test_neighbours_of_failing_requests_get_the_tokens_that_they_get_alone(generator, texts, expected):
    for function, error in [*PROCESSORS.values(), *CRITERIA.values()]:
        name = "logits_processor" if (function, error) in PROCESSORS.values() else "stopping_criteria"
        with generator.engine.lock:  # all begin together
            good = [(generator.submit(text, num_beams=beams), text, beams) for text in texts[:3] for beams in (1, 3)]
            bad = generator.submit(texts[0], num_beams=2, min_new_tokens=4, **{name: [later(function, 2)]})
            more = [(generator.submit(text, num_beams=beams), text, beams) for text in texts[3:5] for beams in (3, 1)]
        assert type(bad.exception(PATIENCE)) is error
        assert all(future.result(PATIENCE).text == expected[text, beams] for future, text, beams in good + more)


def test_tensor_subclasses_do_not_affect_other_requests(generator, texts, expected):
    """Values are read, the class is not."""
    given = dict(
        logits_processor=[lambda history, scores: scores.as_subclass(Late)],
        stopping_criteria=[lambda history, scores: torch.zeros(len(history), dtype=torch.bool).as_subclass(Late)],
    )
    with generator.engine.lock:
        good = [(generator.submit(text, num_beams=beams), text, beams) for text in texts[:4] for beams in (1, 3)]
        strange = [
            (generator.submit(text, num_beams=beams, **given), text, beams) for text in texts[:4] for beams in (1, 3)
        ]
    for future, text, beams in good + strange:
        assert future.result(PATIENCE).text == expected[text, beams]


def test_falsy_callbacks_are_called_and_do_not_affect_others(generator, texts, expected):
    class Collector(list):
        def __call__(self, tokens):
            self.extend(tokens)

    collector = Collector()
    with generator.engine.lock:
        good = [(generator.submit(text), text) for text in texts]
        forced = generator.submit("one", prefix_allowed_tokens_fn=Falsy(lambda index, tokens: [5]), max_new_tokens=3)
        told = generator.submit("one two", on_tokens=collector)
    assert forced.result(PATIENCE).token_ids == (5, 5, 5)
    assert tuple(collector) == told.result(PATIENCE).token_ids
    assert all(future.result(PATIENCE).text == expected[text, 1] for future, text in good)


def test_async_functions_are_refused_at_once(generator):
    async def function(*arguments):
        return None

    for given in (
        dict(on_tokens=function),
        dict(logits_processor=[function]),
        dict(stopping_criteria=[function]),
        dict(prefix_allowed_tokens_fn=function),
    ):
        with pytest.raises(ConfigError, match="not a coroutine function"):
            generator.submit("one", **given)
    with pytest.raises(ConfigError, match="progress must be a plain function"):
        generator.generate(["one"], progress=function)


def test_bad_values_are_named():
    def message(**given):
        engine, done = Engine(Model()), []
        engine.submit([Request([5], options(), **given)], done.append)
        engine.step()
        return str(done[0].error)

    assert "returned NoneType; expected scores (1, 13)" in message(logits_processor=[lambda history, scores: None])
    assert "returned torch.int64 (1, 13) on cpu" in message(logits_processor=[lambda history, scores: scores.long()])
    assert "must be at least one id from 0 to 12" in message(prefix_allowed_tokens_fn=lambda index, tokens: [-1])
    assert "returned None; expected one bool, or one per row" in message(
        stopping_criteria=[lambda history, scores: None]
    )
    assert "raised GeneratorExit()" in message(logits_processor=[raising(GeneratorExit())])
    assert "returned nan after 1 tokens" in message(logits_processor=[lambda history, scores: scores * torch.nan])


def test_failing_requests_do_not_hold_up_the_others():
    """A good request takes as many steps as it has tokens, although another request fails in each step."""
    engine, done, failed = Engine(Model()), [], []
    long = Request([5, 6, 7], options(max_length=40, min_length=40))
    expected = alone(long)
    engine.submit([long, Request([8], options(max_length=30, min_length=30, num_beams=3))], done.append)
    for step in itertools.count():
        bad = dict(logits_processor=[later(raising(LookupError()), step % 3)])
        engine.submit([Request([9], options(min_length=9, num_beams=1 + step % 2), **bad)], failed.append)
        engine.step()
        if len(done) == 2:
            break
    assert step + 1 == 39 and result(done[1]) == expected and len(failed) > 30
    assert {type(request.error) for request in failed} == {LookupError}
    assert engine.statistics.restarts == 0 and engine.cache.allocator.check() == Violation.SOUND


def test_a_kept_error_holds_no_tensors_of_other_requests():
    """Its traceback leads through the step, whose scores are those of all rows."""

    def tensors():
        gc.collect()
        return [one for one in gc.get_objects() if type(one) is torch.Tensor and one.dim() == 2]

    for bad in (raising(LookupError()), lambda history, scores: None):
        others = tensors()  # of other tests
        engine, done = Engine(Model()), []
        engine.submit([Request([5], options(min_length=9)) for _ in range(20)], print)
        engine.submit([Request([5], options(), logits_processor=[bad])], done.append)
        engine.step()
        new = [one for one in tensors() if not any(one is other for other in others)]
        held = [one for one in new if one.shape[1] == 13 and one.untyped_storage().nbytes() > 13 * 4]
        assert done[0].error is not None and not held


def test_scores_changed_in_place_by_a_processor_do_not_change_the_models_score(generator):
    def change(history, scores):
        scores *= 2
        return scores

    given = dict(scores=True, max_new_tokens=4)
    plain, changed = (
        generator.generate(["one two"], **given, **more)[0] for more in ({}, dict(logits_processor=[change]))
    )
    assert changed.token_ids == plain.token_ids and changed.score == pytest.approx(plain.score, abs=1e-5)


def test_a_stream_with_return_errors_yields_the_exception_of_a_callback(generator):
    def allowed(index, tokens):
        if index == 1:
            raise ZeroDivisionError("mine")
        return range(1, 60)

    found = dict(generator.stream(["one", "two", "three"], prefix_allowed_tokens_fn=allowed, return_errors=True))
    assert (found[0].text, found[1].text, found[2].text) == ("eins", "", "drei")
    assert isinstance(found[1].error, CallbackError) and isinstance(found[1].error.__cause__, ZeroDivisionError)


FAILURES = {
    "processor": dict(logits_processor=[raising(LookupError())]),
    "interrupt": dict(logits_processor=[raising(GeneratorExit())]),
    "allowed": dict(prefix_allowed_tokens_fn=raising(LookupError())),
    "on_tokens": dict(on_tokens=raising(LookupError())),
    "result": dict(logits_processor=[lambda history, scores: None]),
}


def fail_and_forget(engine, **callbacks):
    """Run a failing request beside a good one, and return weak references to it and to its cache."""
    done = []
    failing = Request([5], options(min_length=9), **callbacks)
    engine.submit([failing, Request([6, 5], options(num_beams=3))], done.append)
    references = weakref.ref(failing), weakref.ref(engine.cache)
    while engine.busy:
        engine.step()
    assert failing.error is not None
    failing = done = callbacks = None  # a traceback keeps the frames of all callers
    return references


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_is_in_no_reference_cycle(name):
    """Without the garbage collector the request is freed with its error, and the cache when the engine is cleared."""
    gc.collect()
    gc.disable()
    try:
        engine = Engine(Model())
        request, cache = fail_and_forget(engine, **FAILURES[name])
        assert request() is None
        engine.clear()
        assert cache() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", FAILURES)
def test_a_kept_error_does_not_keep_the_cache(name):
    gc.collect()
    gc.disable()
    try:
        engine, done = Engine(Model()), []
        engine.submit([Request([5], options(min_length=9), **FAILURES[name])], done.append)
        cache = weakref.ref(engine.cache)
        while engine.busy:
            engine.step()
        engine.clear()
        assert done[0].error is not None and cache() is None
    finally:
        gc.enable()
