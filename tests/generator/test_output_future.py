"""Futures of submitted texts."""

import asyncio
import concurrent.futures
import threading
import time

import pytest

from bertgen import (
    CallbackError,
    ConfigError,
    InputError,
)
from tests.support.hostile import PATIENCE, check_idle, raising


def test_submitted_texts_share_the_engine(generator, texts):
    expected = generator.generate(texts)
    futures = [generator.submit(text) for text in texts]
    assert [future.result(60).text for future in futures] == [output.text for output in expected]
    assert generator.submit("").result(1).text == ""
    assert not generator.engine.busy
    with pytest.raises(InputError, match="must be a str"):
        generator.submit(3)


def test_threads_get_their_own_outputs(generator, texts):
    expected = [output.text for output in generator.generate(texts)]
    found = {}

    def work(i):
        found[i] = [output.text for output in generator.generate(texts[i:] + texts[:i])]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    futures = [generator.submit(text, num_beams=2) for text in texts[:5]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == {i: expected[i:] + expected[:i] for i in range(6)}
    beams = generator.generate(texts[:5], num_beams=2)
    assert [future.result(60).token_ids for future in futures] == [output.token_ids for output in beams]


def test_tokens_as_they_are_chosen(generator):
    got = []
    output = generator.submit("one two three", on_tokens=got.append).result(60)
    assert [token for (token,) in got] == list(output.token_ids)
    with pytest.raises(ConfigError, match="on_tokens cannot be used with num_beams 2"):
        generator.submit("one", num_beams=2, on_tokens=print)

    def fail(tokens):
        raise LookupError("not mine")

    other = generator.submit("two")
    with pytest.raises(LookupError, match="not mine"):
        generator.submit("one", on_tokens=fail).result(60)
    assert other.result(60).text == "zwei"


def test_all_tokens_of_a_text_that_came_later(generator):
    """It joined a search that was ahead of it, and that later lost its first text."""
    got, later = [], []
    options = dict(min_new_tokens=12, max_new_tokens=12)

    def follow(tokens):
        if not later:
            later.append(generator.submit("two", on_tokens=got.extend, **options))

    generator.submit("one two three", on_tokens=follow, **options).result(60)
    assert list(later[0].result(60).token_ids) == got


def test_a_done_callback_may_cancel_a_request_that_ends_in_the_same_step(generator):
    options = dict(min_new_tokens=6, max_new_tokens=6)
    with generator.engine.lock:
        first, second = (generator.submit(text, **options) for text in ("one", "two"))
        longer = generator.submit("one two three", min_new_tokens=12, max_new_tokens=12)
        first.add_done_callback(lambda _: second.cancel())
    assert len(first.result(60).token_ids) == 6 and len(longer.result(60).token_ids) == 12
    assert second.cancelled() and not generator.engine.busy and generator.statistics.pages_used == 0


def test_a_cancelled_text_leaves(generator):
    started, go = threading.Event(), threading.Event()

    def wait(tokens):
        started.set()
        go.wait(60)

    slow = generator.submit("one two three", on_tokens=wait, min_new_tokens=20, max_new_tokens=30)
    assert started.wait(60)
    waiting = generator.submit("two")
    assert waiting.cancel()
    go.set()
    assert len(slow.result(60).token_ids) >= 20 and waiting.cancelled()
    assert not generator.engine.busy and generator.statistics.pages_used == 0


def test_waiting_for_several_futures_notices_cancelled_ones(generator):
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
    check_idle(generator)


def test_a_stop_iteration_reaches_an_awaiting_task(generator):
    """asyncio's futures refuse a StopIteration: the task would wait for ever."""

    async def wait():
        future = generator.submit("one", logits_processor=[raising(StopIteration())])
        await asyncio.wait_for(asyncio.wrap_future(future), PATIENCE)

    with pytest.raises(CallbackError, match="StopIteration"):
        asyncio.run(wait())
    with pytest.raises(CallbackError, match="StopIteration"):
        generator.generate(["one"], logits_processor=[raising(StopIteration())])
