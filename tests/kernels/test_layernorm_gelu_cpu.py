"""add_layer_norm and gelu_layer_norm of the C++ extension against their references."""

from __future__ import annotations

import pytest
import torch
from bertgen.kernels.activations import KERNEL_ACTIVATIONS
from bertgen.kernels.checks import Case, check_case
from bertgen.kernels.layernorm_gelu import add_layer_norm_reference, gelu_layer_norm_reference
from bertgen.kernels.layernorm_gelu_cases import CHECKS
from bertgen.kernels.layernorm_gelu_cpp import (
    add_layer_norm_cpp,
    gelu_layer_norm_cpp,
    why_not_add_layer_norm_cpp,
    why_not_gelu_layer_norm_cpp,
)

from bertgen import ops
from bertgen.kernels import cpp
from bertgen.ops import extension

pytestmark = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")

CPU = torch.device("cpu")
ADD, GELU = CHECKS["add_layer_norm"], CHECKS["gelu_layer_norm"]


def inference(case: Case) -> Case:
    return Case(case.name, case.make, (), case.core, case.written)


@pytest.mark.parametrize("case", ADD.cases, ids=lambda case: case.name)
def test_the_cases_of_add_layer_norm(case):
    """The function has no bias and no dropout: these are added before."""

    def computed(x, bias, residual, dropout=0.0, **given):
        x = x if bias is None else x + bias
        if dropout:
            return add_layer_norm_reference(x, None, residual, dropout=dropout, **given)
        given |= {name: given[name].contiguous() for name in ("weight", "shift")}
        return add_layer_norm_cpp(x.contiguous(), None, None if residual is None else residual.contiguous(), **given)

    with torch.no_grad():
        assert check_case(ADD, inference(case), torch.float32, CPU, computed) is None


@pytest.mark.parametrize(
    "case", [c for c in GELU.cases if c.name not in KERNEL_ACTIVATIONS], ids=lambda case: case.name
)
def test_the_cases_of_gelu_layer_norm(case):
    def computed(x, weight, shift, eps, activation="gelu"):
        assert why_not_gelu_layer_norm_cpp(x.contiguous(), weight, shift, eps, activation) is None
        return gelu_layer_norm_cpp(x.contiguous(), weight, shift, eps, activation)

    with torch.no_grad():
        assert check_case(GELU, inference(case), torch.float32, CPU, computed) is None


def arguments(rows: int, columns: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(rows)
    return torch.randn(rows, columns) + 3, torch.randn(rows, columns), torch.randn(columns), torch.randn(columns)


@pytest.mark.parametrize("columns", [1, 7, 8, 31, 32, 33, 768, 1000])
def test_neither_rows_nor_threads_nor_a_residual_of_zeros_change_a_bit(columns):
    x, residual, weight, shift = arguments(40, columns)
    whole, before = add_layer_norm_cpp(x, None, residual, weight, shift, 1e-12), torch.get_num_threads()
    activated = gelu_layer_norm_cpp(x, weight, shift, 1e-12)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for rows in (1, 2, 39, 40):
                part = add_layer_norm_cpp(x[:rows], None, residual[:rows], weight, shift, 1e-12)
                assert torch.equal(part, whole[:rows])
                assert torch.equal(gelu_layer_norm_cpp(x[:rows], weight, shift, 1e-12), activated[:rows])
    finally:
        torch.set_num_threads(before)
    zeros = add_layer_norm_cpp(x, None, torch.zeros_like(x), weight, shift, 1e-12)
    assert torch.equal(add_layer_norm_cpp(x, None, None, weight, shift, 1e-12), zeros)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [7, 32, 100])
def test_parameters_in_16_bits_are_widened(columns, dtype):
    x, residual, *norm = arguments(5, columns)
    halves, wide = [t.to(dtype) for t in norm], [t.to(dtype).float() for t in norm]
    assert why_not_add_layer_norm_cpp(x, None, residual, *halves, 1e-12) is None
    for r in (residual, None):
        got = ops.add_layer_norm(x, None, r, *halves, 1e-12)
        assert torch.allclose(got, add_layer_norm_cpp(x, None, r, *wide, 1e-12), rtol=1e-6, atol=1e-6)
        assert torch.allclose(got, add_layer_norm_reference(x, None, r, *halves, 1e-12), atol=1e-5)
    got = ops.gelu_layer_norm(x, *halves, 1e-12)
    assert torch.allclose(got, gelu_layer_norm_cpp(x, *wide, 1e-12), rtol=1e-6, atol=1e-6)
    assert got.dtype == torch.float32
    assert why_not_add_layer_norm_cpp(x, None, residual, halves[0], norm[1], 1e-12)


def test_rows_of_equal_numbers_give_the_shift():
    for value in (0.0, 0.1, -7.3, 1e6):
        for columns in (1, 9, 100, 768):
            weight, shift = torch.ones(columns), torch.arange(columns, dtype=torch.float32)
            x = torch.full((2, columns), value)
            assert torch.allclose(
                add_layer_norm_cpp(x, None, None, weight, shift, 1e-12), shift.expand(2, -1), atol=1e-5
            )


def test_what_the_functions_decline():
    x, residual, weight, shift = arguments(4, 16)
    good = [x, None, residual, weight, shift, 1e-12]
    assert why_not_add_layer_norm_cpp(*good) is None and why_not_gelu_layer_norm_cpp(x, weight, shift, 1e-12) is None
    for place in (0, 2, 3, 4):
        for wrong in (
            good[place].double(),
            torch.cat((good[place],) * 2, -1)[..., ::2],
            good[place].clone().requires_grad_(),
        ):
            assert why_not_add_layer_norm_cpp(*good[:place], wrong, *good[place + 1 :]), place
            if place != 2:
                norm = [wrong if place == i else good[i] for i in (0, 3, 4)]
                assert why_not_gelu_layer_norm_cpp(*norm, 1e-12), place
    assert why_not_add_layer_norm_cpp(*good, dropout=0.1) and why_not_add_layer_norm_cpp(x, shift, *good[2:])
    assert why_not_add_layer_norm_cpp(x, None, residual[:1], weight, shift, 1e-12)
    assert why_not_add_layer_norm_cpp(x[None], None, None, weight, shift, 1e-12)
    assert why_not_gelu_layer_norm_cpp(x, weight, shift, 1e-12, "relu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert why_not_add_layer_norm_cpp(*good)
    with torch.no_grad():
        parameter = torch.nn.Parameter(weight)
        assert why_not_add_layer_norm_cpp(x, None, residual, parameter, shift, 1e-12) is None


def test_a_call_that_is_declined_runs_the_reference_under_any_backend():
    x, residual, weight, shift = arguments(4, 16)
    before = ops.set_backend("cpp")
    try:
        weight.requires_grad_()
        y = ops.add_layer_norm(x, None, residual, weight, shift, 1e-12)
        assert y.requires_grad and torch.equal(y, add_layer_norm_reference(x, None, residual, weight, shift, 1e-12))
        half = [t.detach().bfloat16() for t in (x, weight, shift)]
        assert torch.equal(ops.gelu_layer_norm(*half, 1e-12), gelu_layer_norm_reference(*half, 1e-12))
        with torch.no_grad():
            y = ops.add_layer_norm(x, None, residual, weight, shift, 1e-12)
            assert torch.equal(y, add_layer_norm_cpp(x, None, residual, weight, shift, 1e-12))
    finally:
        ops.set_backend(before)


def test_arguments_that_do_not_fit_are_refused():
    x, residual, weight, shift = arguments(4, 16)
    for call, message in [
        (lambda: cpp.add_layer_norm(x, residual[:3], weight, shift, 1e-12, x.clone()), "residual has size 3"),
        (lambda: cpp.add_layer_norm(x, None, weight[:3], shift, 1e-12, x.clone()), "weight has size 3"),
        (lambda: cpp.add_layer_norm(x, residual, weight, shift, 1e-12, residual), "out shares memory"),
        (lambda: cpp.gelu_layer_norm(x, weight, shift, 1e-12, x), "out shares memory"),
        (lambda: cpp.gelu_layer_norm(x[0], weight, shift, 1e-12, x), "x has 1 dimensions, not 2"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
