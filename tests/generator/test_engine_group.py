"""Several devices: outputs, errors, cancelling and the end are those of one device. Here both are the CPU."""

from __future__ import annotations

import concurrent.futures
import copy
import gc
import pickle
import threading
import time
import weakref

import pytest
import torch

from bertgen import BackendError, ConfigError, Generator, InputError, UnsupportedError
from bertgen.engine import Request
from bertgen.generator.call_options import CallOptions
from bertgen.generator.engine_group import EngineGroup
from tests.support.hostile import raising

TWO = ["cpu", "cpu"]
PATIENCE = 30  # seconds after which something hangs


@pytest.fixture(scope="module")
def pair(tiny_checkpoint):
    with Generator(tiny_checkpoint, devices=TWO, max_rows=4) as generator:
        yield generator
        assert_idle(generator)


def assert_idle(generator):
    end = time.monotonic() + PATIENCE
    while generator.engine.busy and time.monotonic() < end:
        time.sleep(0.01)
    assert not generator.engine.busy and generator.statistics.pages_used == generator.statistics.waiting == 0


def tokens_of(outputs):
    return [[one.token_ids for one in (output, *output.alternatives)] for output in outputs]


def both_worked(generator):
    return all(engine.statistics.requests > 0 for engine in generator.engine.engines)


@pytest.mark.parametrize(
    "options", [{}, dict(num_beams=3), dict(do_sample=True, seed=4, num_return_sequences=2, max_new_tokens=6)], ids=str
)
def test_outputs_are_those_of_one_device_in_the_order_of_the_texts(pair, generator, texts, options):
    expected = generator.generate(texts * 4, **options)
    for _ in range(2):
        found = pair.generate(texts * 4, **options)
        assert [output.index for output in found] == list(range(len(expected)))
        assert tokens_of(found) == tokens_of(expected)
    assert both_worked(pair)


def test_each_text_is_streamed_once(pair, generator, texts):
    expected = {output.index: output.text for output in generator.generate(texts * 9)}
    found = list(pair.stream(iter(texts * 9), lookahead=20))
    assert len(found) == len(expected) and {index: output.text for index, output in found} == expected


def test_models_are_copies_on_their_devices(pair):
    first, second = (engine.model for engine in pair.engine.engines)
    assert pair.model is first and first is not second and pair.devices == [torch.device("cpu")] * 2
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other) and one.data_ptr() != other.data_ptr()


def test_both_engines_step_at_a_time_in_threads_of_their_own(pair):
    together = threading.Barrier(2)
    threads = set()

    def meet(tokens):
        threads.add(threading.current_thread())
        together.wait(PATIENCE)

    options = dict(min_new_tokens=5, max_new_tokens=5, on_tokens=meet)
    # Each fills an engine, and waits in its step for the other.
    futures = [pair.submit(text, num_return_sequences=4, do_sample=True, **options) for text in ("one", "two")]
    assert all(future.result(PATIENCE) for future in futures)
    assert len(threads) == 2 and threading.main_thread() not in threads


def test_threads_get_their_own_outputs(pair, generator, texts):
    expected = [output.text for output in generator.generate(texts)]
    found = {}

    def work(i):
        found[i] = [output.text for output in pair.generate(texts[i:] + texts[:i])]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    futures = [pair.submit(text) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == {i: expected[i:] + expected[:i] for i in range(5)}
    done = concurrent.futures.wait(futures, PATIENCE).done
    assert len(done) == len(texts) and [future.result().text for future in futures] == expected


def test_an_error_is_that_of_its_text(pair, texts):
    with pytest.raises(LookupError, match="mine"):
        pair.submit("one", logits_processor=[raising(LookupError("mine"))]).result(PATIENCE)
    with pytest.raises(InputError, match="text 1: "):
        pair.generate(["one", 3])
    assert pair.generate(["two"])[0].text == "zwei"


def test_a_device_that_fails_gives_its_requests_the_error(tiny_checkpoint, monkeypatch, texts):
    pair = Generator(tiny_checkpoint, devices=TWO, max_rows=4)
    error = RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail(*arguments):
        raise error

    monkeypatch.setattr(pair.engine.engines[1], "_remove_finished", fail)
    futures = [pair.submit(text) for text in texts * 4]
    errors = [future.exception(PATIENCE) for future in futures]
    assert None in errors and error in errors and set(errors) == {None, error}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        pair.generate(texts * 4)
    assert_idle(pair)


def test_cancelled_texts_leave_the_queue_and_the_engines(pair, texts):
    go, started = threading.Event(), threading.Semaphore(0)

    def wait(tokens):
        started.release()
        go.wait(PATIENCE)

    slow = [pair.submit("one", on_tokens=wait, num_return_sequences=4, do_sample=True) for _ in TWO]
    for _ in TWO:
        assert started.acquire(timeout=PATIENCE)
    waiting = [pair.submit(text) for text in texts]
    assert len(pair.engine._queue.waiting) == len(texts) and waiting[-1].cancel() and waiting[0].cancel()
    go.set()
    assert [future.cancelled() for future in waiting[:2]] == [True, False]
    for future in [*slow, *waiting[1:-1]]:
        future.result(PATIENCE)
    stream = pair.stream(texts * 5)
    next(stream)
    stream.close()
    assert_idle(pair)


def test_a_request_is_submitted_once(pair):
    request, done = Request([5, 6], CallOptions.checked(pair.model, {}).generation), []
    for again in ([request, request], [request], [request]):
        if len(again) == 1 and not done:
            pair.engine.submit(again, done.append)
            while not done:
                pair.engine.step()
        else:
            with pytest.raises(InputError, match="was submitted before"):
                pair.engine.submit(again, done.append)
    assert_idle(pair)
    assert done == [request]


def test_callbacks(pair):
    """Inside of a step a result cannot be awaited; after it, by any thread of the group."""
    raised, outputs = [], []

    def inside(tokens):
        if not raised:
            for call in (lambda: pair.generate(["two"]), lambda: pair.submit("two").result()):
                with pytest.raises(UnsupportedError):
                    call()
                raised.append(call)

    def after(future):
        outputs.append(pair.submit("two").result(PATIENCE).text)
        outputs.append(pair.generate(["one"])[0].text)

    first = pair.submit("one", on_tokens=inside)
    first.add_done_callback(after)
    first.result(PATIENCE)
    end = time.monotonic() + PATIENCE
    while len(outputs) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(raised) == 2 and outputs == ["zwei", "eins"]


@pytest.mark.parametrize("from_callback", [False, True])
def test_close_frees_the_memory_and_fails_what_is_not_done(tiny_checkpoint, from_callback, texts):
    generator = Generator(tiny_checkpoint, devices=TWO, max_rows=2)
    generator.warm_up()
    assert all(engine.statistics.cache_bytes > 0 for engine in generator.engine.engines)
    closing = threading.Event()

    def close(tokens):
        if from_callback:
            generator.close()
        closing.set()
        time.sleep(0.05)

    futures = [generator.submit(text, on_tokens=close, min_new_tokens=30) for text in texts]
    assert closing.wait(PATIENCE)
    generator.close()
    for future in futures:
        assert isinstance(future.exception(PATIENCE), BackendError)
    assert_idle(generator)
    assert generator.statistics.cache_bytes == 0
    assert generator.generate(["one"])[0].text == "eins"


def test_statistics_are_sums(pair):
    parts, total = [engine.statistics for engine in pair.engine.engines], pair.statistics
    assert total.tokens == sum(part.tokens for part in parts) > 0 and total.tokens_per_second > 0
    assert total.requests == sum(part.requests for part in parts)


def test_a_pickle_and_a_copy_have_the_same_devices(pair, tiny_checkpoint):
    for other in (pickle.loads(pickle.dumps(pair)), copy.copy(pair), copy.deepcopy(pair)):
        assert isinstance(other.engine, EngineGroup) and other.devices == pair.devices
        assert other.generate(["one", "two"])[1].text == "zwei"


def test_threads_end_with_the_generator(tiny_checkpoint):
    generator = Generator(tiny_checkpoint, devices=TWO)
    assert generator.generate(["one"])[0].text == "eins"
    threads = [worker._thread for worker in generator.engine._workers]
    reference = weakref.ref(generator)
    del generator
    gc.collect()
    assert reference() is None
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_one_device_needs_no_group(tiny_checkpoint):
    generator = Generator(tiny_checkpoint, devices=["cpu"])
    assert not isinstance(generator.engine, EngineGroup) and generator.generate(["one"])[0].text == "eins"


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(devices=[]), ConfigError, "at least one device, got an empty list"),
        (dict(devices="cpu"), ConfigError, "must be a list of devices, got 'cpu'"),
        (dict(devices=2), ConfigError, "must be a list of devices, got 2"),
        (dict(devices=TWO, device="cpu"), ConfigError, "device or devices, not both"),
        (dict(devices=TWO, device_map="auto"), ConfigError, "device_map or devices, not both"),
        (dict(devices=["cpu", "gpu"]), BackendError, "'gpu' is not a device"),
        (dict(devices=["cpu", "cuda:99"]), BackendError, "'cuda:99' does not exist"),
    ],
)
def test_devices_that_are_none(tiny_checkpoint, options, error, message):
    with pytest.raises(error, match=message):
        Generator(tiny_checkpoint, **options)


def test_an_on_done_that_raises_leaves_no_other_request_untold(pair, monkeypatch, caplog):
    group = EngineGroup([engine.model for engine in pair.engine.engines], pair.engine.config)
    monkeypatch.setattr(group, "wake", lambda: None)  # so that all of them wait in the queue
    told = []

    def on_done(request):
        told.append(request)
        raise LookupError("mine")

    call = CallOptions.checked(pair.model, {})
    requests = group.submit([Request([5, 6], call.generation, number=i) for i in range(3)], on_done)
    group.clear()
    assert told == requests and all(isinstance(request.error, BackendError) for request in requests)
    assert not group.busy and "mine" in caplog.text
