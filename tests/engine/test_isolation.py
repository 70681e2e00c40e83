"""One request never harms another: hostile requests beside good ones, on a made-up model and on a tiny trained one."""

import _thread
import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

from bertgen import (
    BackendError,
    BertgenError,
    CallbackError,
    ConfigError,
    EncoderDecoderModel,
    Generator,
    InputError,
    UnsupportedError,
)
from bertgen.cache.block_allocator import Violation
from bertgen.config import EngineConfig
from bertgen.engine import Engine, Request
from tests.support.checkpoints import sentence
from tests.support.made_up_model import Model, alone, options, requests, result

PATIENCE = 120  # seconds after which something hangs


@pytest.fixture(scope="module")
def generator(tiny_checkpoint):
    return Generator(tiny_checkpoint)


@pytest.fixture(scope="module")
def texts():
    r = random.Random(8)
    return [sentence(r) for _ in range(20)]


@pytest.fixture(scope="module")
def expected(generator, texts):
    return {(text, beams): generator.generate([text], num_beams=beams)[0].text for text in texts for beams in (1, 3)}


def raising(error):
    def function(*arguments):
        raise error

    return function


def later(function, step):
    """A processor or criterion that does nothing before some step."""

    def wrapped(history, scores):
        if history.shape[1] > step:
            return function(history, scores)
        return scores if isinstance(scores, torch.Tensor) else False

    return wrapped


class Unspeakable(Exception):
    """An error whose own code fails wherever somebody looks at it."""

    def __init__(self, error):
        super().__init__("mine")
        self.own = error

    def __str__(self):
        raise self.own

    __repr__ = __str__

    @property
    def __traceback__(self):
        raise self.own


class Late(torch.Tensor):
    """Scores or flags with code of their own, which would run where the rows of all requests are put together."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function is torch.cat:
            raise LookupError("mine")
        return super().__torch_function__(function, types, arguments, options or {})


class Falsy:
    """A function that is an object with a truth and a length of its own."""

    def __init__(self, function):
        self.__call = function

    def __call__(self, *arguments):
        return self.__call(*arguments)

    def __len__(self):
        return 0


def lazily(error):
    def function(index, tokens):
        yield 5
        raise error

    return function


PROCESSORS = {
    "none": (lambda history, scores: None, InputError),
    "a list": (lambda history, scores: scores.tolist(), InputError),
    "too narrow": (lambda history, scores: scores[:, :-1], InputError),
    "another batch": (lambda history, scores: scores.repeat(2, 1), InputError),
    "one row": (lambda history, scores: scores[0], InputError),
    "integers": (lambda history, scores: scores.long(), InputError),
    "bools": (lambda history, scores: scores > 0, InputError),
    "complex": (lambda history, scores: scores.to(torch.complex64), InputError),
    "another device": (lambda history, scores: scores.to("meta"), InputError),
    "sparse": (lambda history, scores: scores.to_sparse(), InputError),
    "resized in place": (lambda history, scores: scores.resize_(2, 3), InputError),
    "nan": (lambda history, scores: scores * torch.nan, InputError),
    "an id out of range": (lambda history, scores: scores.index_fill(1, torch.tensor([10**6]), 0.0), IndexError),
    "its own": (raising(LookupError("mine")), LookupError),
    "like memory": (raising(torch.OutOfMemoryError("mine")), torch.OutOfMemoryError),
    "no memory": (raising(MemoryError("mine")), MemoryError),
    "the end": (raising(SystemExit(3)), CallbackError),
    "an interrupt": (raising(KeyboardInterrupt()), CallbackError),
    "a generator's end": (raising(GeneratorExit()), CallbackError),
    "cancelled": (raising(asyncio.CancelledError()), CallbackError),
    "an iterator's end": (raising(StopIteration()), CallbackError),
    "unspeakable": (raising(Unspeakable(ValueError())), Unspeakable),
    "unspeakable, the end": (raising(Unspeakable(SystemExit())), Unspeakable),
    "no Exception": (raising(BaseException("mine")), CallbackError),
    "compressed rows": (lambda history, scores: scores.to_sparse_csr(), InputError),
    "nested": (lambda history, scores: torch.nested.nested_tensor(list(scores)), InputError),
}
PREFIXES = {
    "none": (lambda index, tokens: None, InputError),
    "nothing": (lambda index, tokens: [], InputError),
    "negative": (lambda index, tokens: [5, -1], InputError),
    "out of range": (lambda index, tokens: [5, 64], InputError),
    "fractions": (lambda index, tokens: [5.5], InputError),
    "a number": (lambda index, tokens: 5, InputError),
    "a text": (lambda index, tokens: "12", InputError),
    "fractions in a tensor": (lambda index, tokens: torch.tensor([5.0]), InputError),
    "its own": (raising(LookupError("mine")), LookupError),
    "its own, lazily": (lazily(LookupError("mine")), LookupError),
    "the end, lazily": (lazily(SystemExit()), CallbackError),
    "falsy": (Falsy(lambda index, tokens: [-1]), InputError),
}
CRITERIA = {
    "none": (lambda history, scores: None, InputError),
    "a text": (lambda history, scores: "no", InputError),
    "too many": (lambda history, scores: [False] * 99, InputError),
    "its own": (raising(LookupError("mine")), LookupError),
    "the end": (raising(SystemExit(3)), CallbackError),
}
HOSTILE = [
    *((dict(logits_processor=[function]), error) for function, error in PROCESSORS.values()),
    *((dict(logits_processor=[later(function, 3)]), error) for function, error in PROCESSORS.values()),
    *((dict(prefix_allowed_tokens_fn=function), error) for function, error in PREFIXES.values()),
    *((dict(stopping_criteria=[function]), error) for function, error in CRITERIA.values()),
    *((dict(on_tokens=raising(error)), kind) for error, kind in [
        (LookupError("mine"), LookupError), (SystemExit(), CallbackError), (asyncio.CancelledError(), CallbackError),
        (Unspeakable(ValueError()), Unspeakable), (Unspeakable(SystemExit()), Unspeakable),
    ]),
]  # fmt: skip


def sound(generator):
    """Nothing is left, and the books are right."""
    until = time.monotonic() + PATIENCE
    while generator.engine.busy and time.monotonic() < until:
        time.sleep(0.01)
    assert not generator.engine.busy and generator.statistics.pages_used == 0
    assert generator.engine.cache.pages.check() == Violation.SOUND


@pytest.mark.parametrize("seed", range(4))
def test_hostile_requests_harm_nobody(generator, texts, expected, seed):
    """All kinds in one mix: each fails with its own error, typed unless it is the function's; the others are right."""
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
    sound(generator)


def test_neighbours_have_the_tokens_that_they_have_alone(generator, texts, expected):
    for function, error in [*PROCESSORS.values(), *CRITERIA.values()]:
        name = "logits_processor" if (function, error) in PROCESSORS.values() else "stopping_criteria"
        with generator.engine.lock:  # all begin together
            good = [(generator.submit(text, num_beams=beams), text, beams) for text in texts[:3] for beams in (1, 3)]
            bad = generator.submit(texts[0], num_beams=2, min_new_tokens=4, **{name: [later(function, 2)]})
            more = [(generator.submit(text, num_beams=beams), text, beams) for text in texts[3:5] for beams in (3, 1)]
        assert type(bad.exception(PATIENCE)) is error
        assert all(future.result(PATIENCE).text == expected[text, beams] for future, text, beams in good + more)


def test_tensors_with_code_of_their_own_harm_nobody(generator, texts, expected):
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


def test_functions_that_are_falsy_act_and_harm_nobody(generator, texts, expected):
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
        with pytest.raises(ConfigError, match="nobody awaits"):
            generator.submit("one", **given)
    with pytest.raises(ConfigError, match="progress must be a plain function"):
        generator.generate(["one"], progress=function)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_state_of_the_thread_that_drives_is_no_matter_of_the_requests(generator, texts, expected, beams):
    with generator.engine.lock:  # this thread drives
        futures = [generator.submit(text, num_beams=beams) for text in texts]
        with torch.autocast("cpu", torch.bfloat16):
            assert generator.generate([texts[0]], num_beams=beams)[0].text == expected[texts[0], beams]
    assert [future.result(PATIENCE).text for future in futures] == [expected[text, beams] for text in texts]


def test_a_thread_without_stack_left_fails_alone(generator, texts, expected):
    def deep(depth):
        return deep(depth - 1) if depth else generator.generate(["one"])

    seen = set()
    with generator.engine.lock:
        futures = [generator.submit(text) for text in texts]
        for depth in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit()):
            try:
                deep(depth)
            except RecursionError:
                seen.add("failed")
            else:
                seen.add("done")
    assert [future.result(PATIENCE).text for future in futures] == [expected[text, 1] for text in texts]
    assert "failed" in seen
    sound(generator)


def test_who_waits_for_several_is_told_of_those_that_are_cancelled(generator):
    slow = dict(logits_processor=[lambda history, scores: time.sleep(0.01) or scores])
    futures = [generator.submit("one two three", **slow) for _ in range(4)]
    threads = [threading.Thread(target=future.cancel) for future in [futures[1]] * 4]
    for thread in threads:
        thread.start()
    assert set(concurrent.futures.as_completed(futures, PATIENCE)) == set(futures)
    assert not concurrent.futures.wait(futures, PATIENCE).not_done
    for thread in threads:
        thread.join()
    assert futures[1].cancelled() and futures[1].cancel() and not futures[0].cancel()
    sound(generator)


def test_the_end_of_an_iterator_reaches_who_awaits(generator):
    """asyncio's futures do not take a StopIteration: who awaits would wait for ever."""

    async def wait():
        future = generator.submit("one", logits_processor=[raising(StopIteration())])
        await asyncio.wait_for(asyncio.wrap_future(future), PATIENCE)

    with pytest.raises(CallbackError, match="StopIteration"):
        asyncio.run(wait())
    with pytest.raises(CallbackError, match="StopIteration"):
        generator.generate(["one"], logits_processor=[raising(StopIteration())])


def test_bad_values_are_named():
    def message(**given):
        engine, done = Engine(Model()), []
        engine.submit([Request([5], options(), **given)], done.append)
        engine.step()
        return str(done[0].error)

    assert "returned NoneType; expected scores (1, 13)" in message(logits_processor=[lambda history, scores: None])
    assert "returned torch.int64 (1, 13) on cpu" in message(logits_processor=[lambda history, scores: scores.long()])
    assert "must be at least one id from 0 to 12" in message(prefix_allowed_tokens_fn=lambda index, tokens: [-1])
    assert "returned None; expected one bool" in message(stopping_criteria=[lambda history, scores: None])
    assert "raised GeneratorExit()" in message(logits_processor=[raising(GeneratorExit())])
    assert "returned nan after 1 tokens" in message(logits_processor=[lambda history, scores: scores * torch.nan])


def test_failing_requests_do_not_hold_up_the_others():
    """A good request takes as many steps as it has tokens, whoever fails beside it in each of them."""
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
    assert engine.statistics.restarts == 0 and engine.cache.pages.check() == Violation.SOUND


def test_a_search_in_common_that_fails_takes_only_its_own_along(monkeypatch):
    """Nobody is to blame, but what other requests have is whole."""
    from bertgen.decoding import BeamSearch

    engine, done = Engine(Model()), []
    several = [Request([5 + i], options(min_length=9, num_beams=1 + i % 2), number=i) for i in range(6)]
    expected = {request.number: alone(request) for request in several}
    engine.submit(several, done.append)
    engine.step()
    monkeypatch.setattr(BeamSearch, "_top_candidates", raising(ZeroDivisionError()))
    engine.step()
    assert [type(request.error) for request in done] == [ZeroDivisionError] * 3
    monkeypatch.undo()
    while engine.busy:
        engine.step()
    assert {t.number: result(t) for t in done[3:]} == {i: expected[i] for i in (0, 2, 4)}


def test_a_source_that_cannot_be_encoded_takes_nobody_along():
    """What runs goes on, and the rows of those that failed are free."""
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
    assert engine.cache.pages.check() == Violation.SOUND


def test_an_error_that_is_kept_holds_nothing_of_the_other_requests():
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


def test_scores_that_a_function_changes_in_place_are_not_the_models(generator):
    def change(history, scores):
        scores *= 2
        return scores

    given = dict(scores=True, max_new_tokens=4)
    plain, changed = (
        generator.generate(["one two"], **given, **more)[0] for more in ({}, dict(logits_processor=[change]))
    )
    assert changed.token_ids == plain.token_ids and changed.score == pytest.approx(plain.score, abs=1e-5)


# what arrives during a step


@pytest.mark.parametrize("seed", range(12))
def test_a_request_that_is_cancelled_in_the_middle_of_a_step_leaves_behind_it(seed):
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
        assert engine.cache.pages.check() == Violation.SOUND
    assert gone and set(done) | gone == set(submitted) and not set(done) & gone
    assert {t.number: result(t) for t in done}.items() <= expected.items()
    assert engine.statistics.pages_used == 0


@pytest.mark.parametrize("beams", [1, 3])
def test_a_stream_that_the_garbage_collector_closes_in_the_middle_of_a_step(generator, texts, expected, beams):
    """It hangs in a cycle with an exception, as after a failed test or in a notebook."""

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
    sound(generator)


def test_an_engine_that_is_cleared_in_the_middle_of_a_step(generator, texts):
    def clear(history, scores):
        generator.close()
        assert generator.statistics.running > 0, "it waits for the end"
        return scores

    with generator.engine.lock:
        futures = [generator.submit(text) for text in texts]
        futures.append(generator.submit("one", logits_processor=[clear]))
    assert all(isinstance(future.exception(PATIENCE), BackendError) for future in futures)
    assert generator.generate(["one"])[0].text == "eins"


def test_what_a_function_in_the_middle_of_a_step_may_do(generator):
    """It may submit, but nothing that would wait for the next step."""
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
        with pytest.raises(UnsupportedError, match="in the middle of a step"):
            ask(call).result(PATIENCE)
    score = ask(lambda: submitted.append(generator.score(["two"], ["zwei"])))
    assert score.result(PATIENCE).text == "eins" and submitted[-1][0].score > -1
    with pytest.raises(UnsupportedError, match="in the middle of a step"):
        generator.generate(["one"], logits_processor=[lambda history, scores: generator.generate(["two"])])
    sound(generator)


def test_what_is_called_when_an_answer_is_there_may_do_anything(generator):
    """The step is over, and nobody holds the engine."""
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


def test_what_is_called_when_an_answer_is_there_may_raise_anything(generator):
    for error in (LookupError(), SystemExit(3), KeyboardInterrupt(), GeneratorExit()):
        with generator.engine.lock:
            first, second = generator.submit("one"), generator.submit("two")
            first.add_done_callback(raising(error))
        assert first.result(PATIENCE).text == "eins" and second.result(PATIENCE).text == "zwei"
    assert generator.submit("three").result(PATIENCE).text == "drei"


# interrupts


def test_interrupts_at_any_place_lose_nothing(generator):
    """Ctrl-C while this thread drives what others wait for, too."""
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
    sound(generator)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_function_of_a_request_ends_the_call_and_harms_nobody(generator, texts, expected, error):
    """In the main thread it may be Ctrl-C, so it goes on; the request of the function has failed."""
    engine = generator.engine
    with engine.lock:  # the worker waits: this thread drives
        futures = [generator.submit(text) for text in texts]
        with pytest.raises(error):
            generator.generate(["one"], logits_processor=[later(raising(error()), 2)], min_new_tokens=5)
    assert [future.result(PATIENCE).text for future in futures] == [expected[text, 1] for text in texts]
    assert generator.generate(["one"])[0].text == "eins"
    sound(generator)


def test_a_stream_with_errors_answers_what_a_function_of_a_request_raises(generator):
    def allowed(index, tokens):
        if index == 1:
            raise ZeroDivisionError("mine")
        return range(1, 60)

    found = dict(generator.stream(["one", "two", "three"], prefix_allowed_tokens_fn=allowed, return_errors=True))
    assert (found[0].text, found[1].text, found[2].text) == ("eins", "", "drei")
    assert isinstance(found[1].error, CallbackError) and isinstance(found[1].error.__cause__, ZeroDivisionError)


# options


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


@pytest.mark.parametrize("penalty, score", [(1000.0, 0.0), (-1000.0, -float("inf"))])
def test_a_length_penalty_beyond_all_numbers_gives_the_score_of_beams(generator, penalty, score):
    one = generator.submit("one two", scores=True, length_penalty=penalty)
    other = generator.submit("two")
    assert one.result(PATIENCE).score == score and other.result(PATIENCE).text == "zwei"
    assert generator.score(["one two"], ["eins zwei"], length_penalty=penalty)[0].score == score
    beams = generator.generate(["one two"], num_beams=2, length_penalty=penalty)[0]
    assert beams.score == score or penalty < 0


@pytest.mark.parametrize("name", ["pad_token_id", "decoder_start_token_id", "eos_token_id"])
def test_special_ids_outside_the_vocabulary_are_refused(generator, name):
    """An end token out there never comes, but becomes the pad id where there is none."""
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


def test_ids_that_the_encoder_has_not_are_refused_by_the_engine(generator):
    engine = Engine(Model())
    for ids, message in (([], "at least one, got"), ([5, 13], r"0 to 12.*\[13\]"), ([-1], r"\[-1\]"), ([5.0], "integ")):
        with pytest.raises(InputError, match=message):
            engine.submit([Request(ids, options())], print)
    for ids in ([[5, 64]], [[5, -1]]):
        for name in ("input_ids", "decoder_input_ids"):
            with pytest.raises(InputError, match=f"{name} holds (64|-1)"):
                generator.model.generate(**{"input_ids": torch.tensor([[5]]), name: torch.tensor(ids)})


def test_a_list_of_ids_that_changes_later_changes_nothing():
    ids, done = [5, 6], []
    expected = alone(Request([5, 6], options()))
    engine = Engine(Model())
    engine.submit([Request(ids, options())], done.append)
    ids.clear()
    while not done:
        engine.step()
    assert result(done[0]) == expected


# texts


def test_an_id_without_a_piece_spells_nothing(tiny_checkpoint):
    """A vocabulary that was padded: as in transformers, the text lacks it and the tokens have it."""
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    model.decoder.resize_token_embeddings(72)
    generator = Generator(model, tiny_checkpoint)
    plain = generator.generate(["one two"])[0]
    odd = generator.submit("one two", forced_bos_token_id=70, min_new_tokens=3)
    other = generator.submit("one two")
    found = odd.result(PATIENCE)
    assert found.token_ids[0] == 70 and found.text == generator.tokenizer.decode(
        [token for token in found.token_ids if token < 64], skip_special_tokens=True
    )
    assert other.result(PATIENCE).token_ids == plain.token_ids


def test_a_text_that_cannot_be_spelled_is_the_error_of_its_request(generator, monkeypatch):
    decode = generator.tokenizer.batch_decode

    def failing(rows, **given):
        if len(rows[0]) == 5:
            raise ZeroDivisionError("no text")
        return decode(rows, **given)

    monkeypatch.setattr(generator.tokenizer, "batch_decode", failing)
    with generator.engine.lock:
        bad, good = generator.submit("one", min_new_tokens=5, max_new_tokens=5), generator.submit("two")
    assert good.result(PATIENCE).text == "zwei"
    with pytest.raises(ZeroDivisionError, match="no text"):
        bad.result(PATIENCE)


# nan and infinity


def everywhere(generator, processor, **given):
    """What `model.generate` and a Generator make of a processor: tokens, or the error."""
    ids = torch.tensor(generator.tokenizer.encode_batch(["one two"]))

    def outcome(call):
        try:
            return call()
        except BertgenError as error:
            return type(error), str(error)

    first = outcome(lambda: generator.model.generate(ids, logits_processor=[processor], **given)[0, 1:].tolist())
    second = outcome(
        lambda: [*generator.generate(["one two"], seed=1, logits_processor=[processor], **given)[0].token_ids]
    )
    return first, second


SEARCHES = [dict(), dict(do_sample=True), dict(num_beams=3), dict(num_beams=2, do_sample=True)]


@pytest.mark.parametrize("given", SEARCHES, ids=str)
def test_nan_is_an_error_that_names_the_place(generator, given):
    def one(history, scores):
        return scores.index_fill(1, torch.tensor([9]), torch.nan) if history.shape[1] == 3 else scores

    for kind, message in everywhere(generator, one, min_new_tokens=5, **given):
        assert kind is InputError and "logits_processor returned nan after 3 tokens" in message


@pytest.mark.parametrize("given", SEARCHES, ids=str)
def test_plus_infinity_forces_a_token(generator, given):
    def force(history, scores):
        return scores.index_fill(1, torch.tensor([9]), torch.inf) if history.shape[1] == 2 else scores

    for tokens in everywhere(generator, force, min_new_tokens=4, max_new_tokens=6, **given):
        assert tokens[1] == 9 and (given.get("do_sample") or tokens[0] != 9)
    if given.get("num_beams"):
        scores = generator.generate(["one"], logits_processor=[force], min_new_tokens=3, **given)[0].score
        assert -20 < scores < 0


@pytest.mark.parametrize("given", SEARCHES, ids=str)
def test_minus_infinity_forbids_a_token(generator, given):
    def forbid(history, scores):
        return scores.index_fill(1, torch.arange(5, 60), -torch.inf)

    for tokens in everywhere(generator, forbid, max_new_tokens=6, **given):
        assert not set(tokens) & {*range(5, 60)}


@pytest.mark.parametrize("given", SEARCHES[:2], ids=str)
def test_without_any_token_left_there_is_an_error(generator, given):
    def nothing(history, scores):
        return torch.full_like(scores, -torch.inf) if history.shape[1] == 3 else scores

    for kind, message in everywhere(generator, nothing, min_new_tokens=5, **given):
        assert kind is InputError and "-inf for every token after 3 tokens" in message


@pytest.mark.parametrize("given", SEARCHES[2:], ids=str)
def test_beams_without_any_token_left_come_to_their_end(generator, given):
    """What ended before is the answer; where nothing did it is empty."""

    def nothing(history, scores):
        return torch.full_like(scores, -torch.inf) if history.shape[1] >= 3 else scores

    for tokens in everywhere(generator, nothing, min_new_tokens=5, **given):
        assert tokens == []
    for tokens in everywhere(generator, nothing, forced_bos_token_id=1, **given):
        assert tokens == [1]


@pytest.mark.parametrize("given", SEARCHES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_rows_that_are_done_may_have_any_scores(generator, given, value):
    """A processor that knows nothing behind an end token, in a batch whose other rows go on."""

    def process(history, scores):
        ended = (
            (history[:, 1:] == 1).any(1) if given.get("num_beams", 1) == 1 else torch.zeros(len(history), dtype=bool)
        )
        return scores.masked_fill(ended[:, None], value)

    ids = torch.tensor([[5, 0, 0], [5, 6, 7]])
    options = dict(attention_mask=(ids > 0).long(), max_new_tokens=12, **given)
    torch.manual_seed(0)
    expected = generator.model.generate(ids, **options)
    torch.manual_seed(0)
    assert torch.equal(generator.model.generate(ids, logits_processor=[process], **options), expected)


# processes


def script(tmp_path, tiny_checkpoint, body, threads=1):
    """Run a script with a Generator; returns its exit code and what it wrote."""
    head = f"""
        import os, sys, threading, time
        import torch
        from bertgen import Generator, process_events
        torch.set_num_threads({threads})
        generator = Generator({str(tiny_checkpoint)!r}, max_rows=32)
        long = dict(min_new_tokens=30, max_new_tokens=38)
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    folder = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])}
    found = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False
    )
    return found.returncode, found.stdout + found.stderr


ENDS = {
    "futures that wait": ("f = [generator.submit('one two three', **long) for _ in range(200)]", 0),
    "futures in flight": (
        "f = [generator.submit('one', **long) for _ in range(200)]; time.sleep(0.05); sys.exit(3)", 3),
    "an error": ("f = [generator.submit('one', **long) for _ in range(200)]; raise ValueError('mine')", 1),
    "a stream": ("s = generator.stream(['one two'] * 80, **long); next(s)", 0),
    "a stream and an error": (
        "s = generator.stream(['one'] * 80, **long); next(s); f = generator.submit('two'); 1 / 0", 1),
    "a thread that drives": (
        "t = threading.Thread(target=generator.generate, args=(['one'] * 800,), kwargs=long, daemon=True);"
        "t.start(); time.sleep(0.1); sys.exit(5)", 5),
    "a thread that is waited for": (
        "t = threading.Thread(target=lambda: print(generator.generate(['one'])[0].text)); t.start()", 0),
    "a function that never returns": (
        "f = generator.submit('one', on_tokens=lambda _: threading.Event().wait()); time.sleep(0.1); sys.exit(4)", 4),
    "a slow step": (
        "f = [generator.submit('one two', logits_processor=[lambda h, s: time.sleep(0.3) or s]) for _ in range(9)];"
        "time.sleep(0.1); sys.exit(6)", 6),
    "what is done when it ends": (
        "import atexit; atexit.register(lambda: print(generator.generate(['one'])[0].text));"
        "f = [generator.submit('one two three', **long) for _ in range(200)]", 0),
    "what is submitted when it has ended": (  # by what was registered before the engine was made
        "import atexit; from bertgen import Generator;"
        "atexit.register(lambda: print(other.submit('one').result(60).text)); atexit.unregister(process_events._end);"
        "process_events._registered = False; other = Generator(generator.model, generator.tokenizer)", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_an_interpreter_may_end_at_any_time(tmp_path, tiny_checkpoint, name):
    body, code = ENDS[name]
    found, output = script(tmp_path, tiny_checkpoint, body)
    assert found == code, output
    assert "terminate called" not in output and "Fatal" not in output
    assert ("eins" in output) == ("print" in body)


def test_futures_are_told_that_the_interpreter_ends(tmp_path, tiny_checkpoint):
    body = """
        futures = [generator.submit('one two three', **long) for _ in range(500)]
        futures[-1].add_done_callback(lambda future: print(repr(future.exception())))
    """
    code, output = script(tmp_path, tiny_checkpoint, body)
    assert code == 0 and "BackendError('the engine was cleared before this was done')" in output


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("busy", [False, True])
def test_a_child_of_a_fork_works(tmp_path, tiny_checkpoint, busy):
    """Also where torch has threads, and a step is being done; what was begun in the parent is refused."""
    body = f"""
        import multiprocessing
        from bertgen import BackendError
        torch.randn(2000, 2000) @ torch.randn(2000, 2000)  # whose threads stay behind
        stream, go, began = generator.stream(['one'] * 80, **long), threading.Event(), threading.Event()
        next(stream)
        held = generator.submit('one', on_tokens=lambda _: began.set() or go.wait(60)) if {busy} else None
        assert held is None or began.wait(60)

        def refused(wait):
            try:
                wait()
            except BackendError as error:
                return 'of which this is a fork' in str(error)

        def child(in_step):
            assert held is None or in_step or refused(held.result)
            assert in_step or refused(lambda: list(stream))
            assert generator.generate(['one'] * 40)[0].text == 'eins'
            assert generator.submit('two').result(60).text == 'zwei'
            assert generator.score(['two'] * 40, ['zwei'] * 40)[0].score > -1

        fork = multiprocessing.get_context('fork')
        children = [fork.Process(target=child, args=(i == 2,)) for i in range(3)]

        def inside(history, scores):  # a fork by the very thread that is in the step
            if history.shape[1] == 2:
                children[2].start()
            return scores

        children[0].start()
        children[1].start()
        go.set()
        assert generator.submit('one', logits_processor=[inside]).result(60).text == 'eins'
        for one in children:
            one.join(60)
        print([one.exitcode for one in children])
        for one in children:
            one.kill()
        assert held is None or held.result(60).text == 'eins'
    """
    code, output = script(tmp_path, tiny_checkpoint, body, threads=2)
    assert code == 0 and "[0, 0, 0]" in output, output


# many at once


@pytest.mark.timeout(300)
def test_threads_that_submit_cancel_and_abandon_at_random(generator, texts, expected):
    """Nothing hangs, and whoever waits gets the right answer."""
    wrong, stop = [], time.monotonic() + 4

    def work(seed):
        r = random.Random(seed)
        while time.monotonic() < stop:
            text, beams, what = r.choice(texts), r.choice([1, 3]), r.random()
            if what < 0.4:
                future = generator.submit(text, num_beams=beams)
                if r.random() < 0.4:
                    future.cancel()
                elif future.result(PATIENCE).text != expected[text, beams]:
                    wrong.append(text)
            elif what < 0.6:
                stream = generator.stream(r.sample(texts, 5), num_beams=beams)
                if next(stream)[1].text not in expected.values():
                    wrong.append(text)
                loop = [stream]
                loop.append(loop)
            elif what < 0.8:
                given, error = r.choice(HOSTILE[: len(PROCESSORS)])
                found = generator.submit(text, num_beams=beams, min_new_tokens=4, **given).exception(PATIENCE)
                if type(found) is not error:
                    wrong.append(found)
            elif what < 0.9:
                gc.collect(0)
            elif generator.generate([text], num_beams=beams)[0].text != expected[text, beams]:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "something hangs"
    assert not wrong
    gc.collect()
    with contextlib.suppress(StopIteration):
        next(generator.stream(["one"]))
    sound(generator)
