"""The limit of torch's threads in the calling thread."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

import bertgen
from bertgen.engine import Engine, Request
from bertgen.ops import torch_threads
from bertgen.ops.device_guard import device_guard
from bertgen.ops.torch_threads import thread_limit
from tests.support.made_up_model import Model, options

CPU = torch.device("cpu")


@pytest.fixture
def cpus(monkeypatch):
    """Sets how many CPUs are available; torch has four threads."""
    found = SimpleNamespace(count=2, readings=0)

    def read():
        found.readings += 1
        return found.count

    monkeypatch.setattr(torch_threads, "available_cpus", read)
    monkeypatch.setattr(torch_threads, "_count", torch_threads._Count())
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield found
    torch.set_num_threads(before)


needs_openmp = pytest.mark.skipif(
    "OpenMP" not in torch.__config__.parallel_info(), reason="torch has other threads than those of OpenMP"
)


@needs_openmp
def test_torch_has_as_many_threads_as_there_are_cpus(cpus):
    with device_guard(CPU):
        assert torch.get_num_threads() == 2
        with device_guard(CPU):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 4


@needs_openmp
def test_other_threads_keep_theirs(cpus):
    seen = []
    with thread_limit():
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert seen == [4]


@needs_openmp
def test_the_number_is_put_back_after_an_error(cpus):
    with pytest.raises(ZeroDivisionError), thread_limit():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 4


@needs_openmp
def test_a_number_that_is_set_meanwhile_stays(cpus):
    with thread_limit():
        torch.set_num_threads(3)
    assert torch.get_num_threads() == 3


def test_without_openmp_nothing_changes(cpus, monkeypatch):
    monkeypatch.setattr(torch_threads, "_setter", lambda: lambda count: None)
    with thread_limit():
        assert torch.get_num_threads() == 4


def test_enough_cpus_need_no_limit(cpus):
    cpus.count = 4
    assert thread_limit() is thread_limit()


@needs_openmp
def test_cpus_are_counted_again_when_a_second_has_passed(cpus, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(torch_threads.time, "monotonic", lambda: now[0])
    for count, passed, expected in [(2, 0, 2), (1, 0.9, 2), (1, 0.2, 1), (3, 1.1, 3)]:
        cpus.count, now[0] = count, now[0] + passed
        with thread_limit():
            assert torch.get_num_threads() == expected
    assert cpus.readings == 3


@needs_openmp
def test_steps_generation_and_scores_run_under_the_limit(cpus, monkeypatch):
    seen = []
    model = Model()
    packed = model.packed
    model.decoder.body.packed = lambda *arguments: seen.append(torch.get_num_threads()) or packed(*arguments)
    engine = Engine(model)
    engine.submit([Request([5, 6], options(min_length=3))], lambda request: None)
    engine.step()
    assert seen and set(seen) == {2}
    generator = bertgen.Generator("demo")
    seen.clear()
    generator.model.encoder.embeddings.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    generator.score(["one"], ["eins"])
    assert seen and set(seen) == {2}
    seen.clear()
    generator.model.generate(torch.tensor([[5, 6]]), max_new_tokens=2)
    assert seen and set(seen) == {2}
