"""linear in 16 bits by widened blocks of the weight, against its equation in float64."""

from __future__ import annotations

import pytest
import torch
from bertgen.kernels.checks import difference
from bertgen.kernels.linear import few_rows, linear_reference
from bertgen.kernels.linear_wide import linear_wide, why_not_linear_wide

from bertgen import ops
from bertgen.kernels import linear
from bertgen.kernels import linear_wide as module
from bertgen.ops import operators

DTYPES = [torch.bfloat16, torch.float16]


def product(dtype, *rows, outputs=70, inputs=33):
    torch.manual_seed(0)
    numbers = torch.randn(*rows, inputs), torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)
    return [x.to(dtype) for x in numbers]


@pytest.mark.parametrize(
    ("capability", "multiplied", "expected"),
    [
        ("AVX2", [], "64 rows (float32) or 256 rows (bfloat16, float16)"),
        ("AVX512", [torch.bfloat16], "64 rows (float32, bfloat16) or 256 rows (float16)"),
        ("AVX512", DTYPES, "64 rows (float32, bfloat16, float16)"),
        ("DEFAULT", [], "8 rows (float32) or 32 rows (bfloat16, float16)"),
    ],
    ids=str,
)
def test_how_many_rows_are_few(capability, multiplied, expected, monkeypatch):
    monkeypatch.setattr(linear, "onednn_multiplies", lambda dtype: dtype in multiplied)
    monkeypatch.setattr(linear, "few_rows", few_rows.__wrapped__)  # not what an earlier call has found
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert linear.few_rows_by_dtype() == expected


@pytest.mark.parametrize("block", [1, 33 * 8, 2**22])
@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products(dtype, activation, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    for rows in ((1,), (100,), (3, 5)):
        x, weight, bias = product(dtype, *rows)
        for b in (bias, None):
            plain = linear_reference(x, weight, b, activation)
            exact = linear_reference(x.double(), weight.double(), None if b is None else b.double(), activation)
            assert difference(linear_wide(x, weight, b, activation), plain, exact) is None


def test_products_of_nothing():
    x, weight, bias = product(torch.bfloat16, 9)
    assert linear_wide(x, weight[:0], bias[:0]).shape == (9, 0)
    assert why_not_linear_wide(x.detach()[:0], weight) is not None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_operator_widens_where_the_processor_cannot_multiply(dtype, monkeypatch):
    x, weight, bias = product(dtype, few_rows(dtype) + 1)
    calls = []
    monkeypatch.setattr(operators, "linear_wide", lambda *a: calls.append(1) or linear_wide(*a))
    monkeypatch.setattr(module, "onednn_multiplies", lambda dtype: False)
    with torch.no_grad():
        assert torch.equal(ops.linear(x, weight, bias), linear_wide(x, weight, bias)) and calls == [1]
        assert why_not_linear_wide(x, weight.float()) == "x and the weight are not both bfloat16 or both float16"
        assert why_not_linear_wide(x[:, ::2], weight[:, ::2]) == "x or the weight is not contiguous"
        assert why_not_linear_wide(x[:7], weight) == "x has few rows"
        monkeypatch.setattr(module, "onednn_multiplies", lambda dtype: True)
        assert torch.equal(ops.linear(x, weight, bias), linear_reference(x, weight, bias)) and calls == [1]
        assert why_not_linear_wide(x, weight) == f"oneDNN multiplies {dtype} on this processor"
    monkeypatch.undo()
    assert why_not_linear_wide(x, weight) == "gradients are enabled"
    assert isinstance(module.onednn_multiplies(dtype), bool)
