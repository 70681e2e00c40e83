"""The current GPU: kernels, steps of the engine and `generate` run with the device of the model as the current one."""

from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch

import bertgen
from bertgen import ops
from bertgen.engine import Engine, Request
from bertgen.ops.device_guard import device_guard, on_own_device
from tests.support.made_up_model import Model, options

SECOND = torch.device("cuda:1")


class Guards:
    """Takes the place of `device_guard`; remembers which devices are current."""

    def __init__(self):
        self.entered, self.current = [], []

    @contextlib.contextmanager
    def __call__(self, device):
        self.entered.append(device)
        self.current.append(device)
        yield
        self.current.pop()


@pytest.fixture
def guards(monkeypatch):
    found = Guards()
    for place in ("ops.device_guard", "ops.registry", "engine.engine"):
        monkeypatch.setattr(f"bertgen.{place}.device_guard", found)
    return found


def test_the_guard_of_a_gpu_is_torchs_and_that_of_a_cpu_is_none():
    guard = device_guard(SECOND)
    assert isinstance(guard, torch.cuda.device) and guard.idx == 1
    assert device_guard(torch.device("cpu")) is device_guard(torch.device("cpu"))


def test_a_kernel_is_launched_on_the_device_of_its_tensors(guards, monkeypatch):
    x = SimpleNamespace(is_cuda=True, device=SECOND)
    for name in ("_why_not_device", "why_not_kernel"):
        monkeypatch.setattr(f"bertgen.ops.registry.{name}", lambda *_: None)
    current = lambda x: list(guards.current)  # noqa: E731
    kernel = dataclasses.replace(ops.bias_gelu, triton=current, why_not_triton=lambda x: None)
    assert kernel.run(x) == [SECOND] and guards.current == []


def test_tensors_on_a_cpu_cost_no_guard(guards):
    x = torch.randn(2, 8)
    kernel = dataclasses.replace(ops.bias_gelu, cpp=lambda x, bias: x, why_not_cpp=lambda x, bias: None)
    if ops.extension.available():
        assert kernel.run(x, None) is x
    ops.bias_gelu.run(x, None)
    assert guards.entered == []


def test_a_step_of_the_engine_and_calls_that_touch_its_rows(guards):
    model, done, seen = Model(), [], []
    packed = model.packed

    def on_second(*arguments):
        seen.append(list(guards.current))
        return packed(*arguments)

    model.decoder.body.packed = on_second
    model.device = torch.device("cpu:0")  # of one name, unlike all others
    engine = Engine(model)
    engine.submit([Request([5, 6], options(min_length=9)), Request([5], options(min_length=9))], done.append)
    assert guards.entered == [model.device]
    engine.step()
    assert seen and all(current == [model.device] for current in seen)
    for call in (lambda: engine.cancel(list(engine.scheduler.running)[:1]), engine.clear):
        guards.entered.clear()
        call()
        assert guards.entered == [model.device] and guards.current == []


def test_generate(guards, monkeypatch):
    model = bertgen.EncoderDecoderModel.from_pretrained("demo")
    monkeypatch.setattr("bertgen.model.static_generation._why_not", lambda *_: "run_search is looked at")
    monkeypatch.setattr("bertgen.decoding.run_search", lambda *_: SimpleNamespace(sequences=list(guards.current)))
    assert model.generate(torch.tensor([[5, 6]]), return_dict_in_generate=False) == [model.device]


def test_a_method_of_an_object_without_a_gpu_returns_and_raises_as_before():
    class Thing:
        device = torch.device("cpu")

        @on_own_device
        def add(self, x, *, to=1):
            """Add."""
            return x + to

    assert Thing().add(2, to=3) == 5 and Thing.add.__doc__ == "Add."
    with pytest.raises(TypeError):
        Thing().add("a")
