"""How a call of an operator chooses its backend, and what `explain` returns about it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from bertgen.kernels.linear import has_onednn

from bertgen import BackendError, Int4Config, ops
from bertgen.ops import extension
from bertgen.ops.registry import BACKENDS
from bertgen.quantization.int4 import quantize


@pytest.fixture
def selected():
    """Selects a backend until the end of the test."""
    before = ops.backend()
    yield ops.set_backend
    ops.set_backend(before)


def test_every_operator_is_explained_and_callable():
    explained = dict(ops.explain("cpu"))
    assert set(explained) == set(ops.OPS) and ("onednn" in explained["linear"]) == has_onednn()
    assert all(callable(getattr(ops, name)) for name in ops.OPS)


def calls():
    """A call of each kind of operator: with C++ and a kernel, with a kernel only, with neither."""
    torch.manual_seed(0)
    packed, scale, _ = quantize(torch.randn(6, 64), Int4Config(group_size=32))
    table, rows = torch.arange(8, dtype=torch.int32).view(2, 4), torch.randn(3, 2, 2, 8)
    pools, lengths = torch.randn(2, 8, 2, 8), torch.tensor([3, 1], dtype=torch.int32)
    return {
        "decode_attention": (*rows, *pools, table[:, 3], table, lengths),
        "int4_matmul": (torch.randn(3, 64), packed, scale),
        "add_layer_norm": (torch.randn(2, 8), None, None, torch.ones(8), torch.zeros(8), 1e-12),
        "bias_gelu": (torch.randn(2, 8), None, "gelu"),
        "warp": (torch.randn(2, 8), 0.5),
    }


@pytest.mark.parametrize("loaded", [True, False], ids=["extension", "no extension"])
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("op", calls())
def test_a_call_runs_the_backend_that_is_explained(op, name, loaded, selected, monkeypatch):
    """Also where the backend cannot run: the explanation then announces the error, with its reason."""
    operator = ops.OPS[op]
    if not loaded:
        monkeypatch.setattr(extension, "why_not", lambda: "it was taken away")
    elif not extension.available():
        pytest.skip("no C++ extension")
    called = []
    for backend in ("triton", "cpp", "reference"):
        if (function := getattr(operator, backend)) is not None:
            recorder = lambda *a, backend=backend, function=function, **b: called.append(backend) or function(*a, **b)  # noqa: E731
            monkeypatch.setitem(vars(operator), backend, recorder)
    selected(name)
    explained = operator.explain("cpu")
    if explained.startswith("an error: "):
        with pytest.raises(BackendError) as error:
            operator(*calls()[op])
        assert explained == f"an error: {str(error.value).removeprefix(f'{op}: ')}" and not called
    else:
        operator(*calls()[op])
        assert explained.startswith(called[0]) and len(called) == 1


def test_a_backend_that_an_operator_lacks_is_not_explained_as_a_missing_kernel(selected):
    selected("cpp")
    assert ops.bias_gelu.explain("cpu") == "reference: plain torch, the operator has no cpp backend"
    assert ops.linear.explain("cuda") == "torch's product (cuBLAS)"
    explained = ops.decode_attention.explain("cuda")
    assert explained == "an error: the backend is set to cpp, but the tensors are on a cuda device and not on a CPU"
    selected("reference")
    assert {text for _, text in ops.explain("cuda")} == {"reference: selected by BERTGEN_BACKEND or set_backend"}


def test_without_the_extension_the_reason_is_explained(monkeypatch):
    monkeypatch.setattr(extension, "why_not", lambda: "it was taken away")
    explained = dict(ops.explain("cpu"))
    for name in ("linear", "decode_attention", "cross_decode_attention", "int4_matmul"):
        assert "the C++ extension cannot be used: it was taken away" in explained[name]
        assert "cpp" not in explained[name]


def test_a_backend_asked_for_by_name_says_why_it_cannot_run(monkeypatch):
    x = torch.randn(2, 4)
    arguments = (x, None, None, torch.ones(4), torch.zeros(4), 1e-12)
    with pytest.raises(BackendError, match="'tritn' is not one of auto, reference, triton"):
        ops.set_backend("tritn")
    monkeypatch.setattr(ops.registry, "WHY_NOT_TRITON", None)
    kernel = dataclasses.replace(ops.add_layer_norm, triton=lambda *a: "the kernel")
    assert isinstance(kernel(*arguments), torch.Tensor)  # auto, on a CPU
    assert ops.set_backend("triton") == "auto"
    try:
        with pytest.raises(BackendError, match="add_layer_norm: the backend is set to triton, but .* CUDA device"):
            kernel(*arguments)
        monkeypatch.setattr(ops.registry, "INTERPRETED", True)
        assert kernel(*arguments) == "the kernel"
        declining = dataclasses.replace(kernel, why_not_triton=lambda x, *rest: f"{x.shape[1]} columns are too few")
        with pytest.raises(BackendError, match="but 4 columns are too few"):
            declining(*arguments)
        ops.set_backend("reference")
        assert isinstance(kernel(*arguments), torch.Tensor)
    finally:
        ops.set_backend("auto")


def test_a_backend_of_the_environment_is_checked():
    code = "import bertgen.ops"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"BERTGEN_BACKEND": "gpu"}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "backend 'gpu' is not one of auto, reference, triton" in done.stderr


def test_arguments_by_name():
    torch.manual_seed(0)
    x, weight = torch.randn(3, 8), torch.randn(8)
    named = {"x": x, "bias": None, "residual": x, "weight": weight, "shift": weight, "eps": 1e-5}
    assert torch.equal(ops.add_layer_norm(**named), ops.add_layer_norm(*named.values()))
