"""The graphs of an engine: their bound, the reasons against them."""

from __future__ import annotations

import gc

import torch

from bertgen.model.graph_pool import GraphPool, why_not_graphs
from bertgen.model.graph_steps import GraphSteps
from tests.support.fake_cuda_device import Counter, FakeCudaDevice


def test_the_capture_unused_for_longest_is_dropped_for_a_new_one():
    device = FakeCudaDevice()
    pool = GraphPool(device, limit=2)
    first, second, third = (GraphSteps(Counter(device, [9] * 4), pool) for _ in range(3))
    for steps in (first, second, first, third):
        steps.run(4)
    assert pool.captures == 3 and len(pool._held) == 2
    assert device.told[-4:] == ["run beside", "synchronize", "capture", "replay"]
    first.run(4)
    assert pool.captures == 3
    second.run(4)  # captured again
    assert pool.captures == 4 and len(pool._held) == 2
    device.work()
    assert [steps._decoder.counts for steps in (first, second, third)] == [[9] * 4, [8] * 4, [4] * 4]


def test_why_not_graphs(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 1)
    assert why_not_graphs(cpu) == "CUDA graphs need a CUDA device, and the device is cpu"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert why_not_graphs(cuda) == "this torch was built without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr("bertgen.ops.registry.WHY_NOT_TRITON", None)
    assert why_not_graphs(cuda) is None
    monkeypatch.setattr("bertgen.ops.registry._backend", "reference")
    assert "BERTGEN_BACKEND" in why_not_graphs(cuda)
    monkeypatch.setattr("bertgen.ops.registry._backend", "auto")
    monkeypatch.setattr("bertgen.ops.registry.WHY_NOT_TRITON", "triton is not installed")
    assert "triton is not installed" in why_not_graphs(cuda)
    monkeypatch.setenv("BERTGEN_GRAPHS", "0")
    assert why_not_graphs(cuda) == "BERTGEN_GRAPHS=0 is set"
    monkeypatch.setenv("BERTGEN_GRAPHS", "1")
    monkeypatch.setattr("bertgen.ops.registry.WHY_NOT_TRITON", None)
    assert why_not_graphs(cuda) is None


def test_a_capture_goes_with_its_owner():
    device = FakeCudaDevice()
    pool = GraphPool(device)
    first, second = (GraphSteps(Counter(device, [9] * 4), pool) for _ in range(2))
    first.run(2), second.run(2)
    device.work()
    del first
    gc.collect()
    assert len(pool._held) == 1 and pool.replay_of(second) is not None
