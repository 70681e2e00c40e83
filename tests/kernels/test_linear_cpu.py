"""linear and linears of the C++ extension against their equation in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from bertgen.kernels.checks import difference
from bertgen.kernels.linear import linear_cpp, linears_cpp

from bertgen.kernels import cpp
from bertgen.ops import extension

pytestmark = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")


def product(rows, shape):
    torch.manual_seed(rows)
    outputs, inputs = shape
    return torch.randn(rows, inputs), torch.randn(outputs, inputs) / math.sqrt(inputs), torch.randn(outputs)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 7, 8, 13, 64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (4, 16), (5, 17), (49, 33), (96, 64), (257, 1031), (64, 3072)])
def test_products(rows, shape):
    x, weight, bias = product(rows, shape)
    for b in (bias, None):
        plain, exact = F.linear(x, weight, b), F.linear(x.double(), weight.double(), None if b is None else b.double())
        assert difference(linear_cpp(x, weight, b), plain, exact) is None


HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=["portable", "best"])
def instructions(request):
    before = extension.instruction_set()
    extension.use_instruction_set(before if request.param == "best" else request.param)
    yield
    extension.use_instruction_set(before)


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 64])
@pytest.mark.parametrize("shape", [(1, 1), (4, 16), (5, 17), (49, 45), (96, 64), (257, 1031)])
@pytest.mark.parametrize("dtype", HALVES)
def test_products_in_16_bits(dtype, rows, shape, instructions):
    """Those in float32 with the widened weight, to the last bit; rounded once where x is in 16 bits, too."""
    x, weight, bias = (t.to(dtype) for t in product(rows, shape))
    for b in (bias, None):
        wide = linear_cpp(x.float(), weight, b)
        assert wide.dtype == torch.float32
        assert torch.equal(wide, linear_cpp(x.float(), weight.float(), None if b is None else b.float()))
        assert torch.equal(linear_cpp(x, weight, b), wide.to(dtype))
        several = linears_cpp(x, [weight, weight], [] if b is None else [b, b])
        assert torch.equal(several, torch.cat((wide, wide), 1).to(dtype))
    activated = linear_cpp(x, weight, bias, "gelu")
    assert torch.equal(activated, F.gelu(linear_cpp(x.float(), weight, bias)).to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_all_numbers_of_16_bits_are_read(dtype, instructions):
    """Alone, and in vectors, where what is not finite would spread."""
    numbers = torch.arange(2**16).to(torch.int16).view(dtype)
    got = linear_cpp(torch.ones(1, 1), numbers[:, None].contiguous())[0]
    assert torch.equal(got.isnan(), numbers.isnan()) and torch.equal(got.nan_to_num(), numbers.float().nan_to_num())
    finite = numbers[numbers.isfinite()].view(-1, 8)
    assert torch.equal(linear_cpp(torch.eye(8), finite), finite.float().T)


def test_neither_rows_nor_threads_change_a_bit_of_a_product():
    x, weight, bias = product(64, (257, 1031))
    whole, before = linear_cpp(x, weight, bias), torch.get_num_threads()
    for rows in range(1, 64):
        assert torch.equal(linear_cpp(x[:rows].contiguous(), weight, bias), whole[:rows])
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            assert torch.equal(linear_cpp(x, weight, bias), whole)
    finally:
        torch.set_num_threads(before)


def test_products_of_what_is_not_finite_and_of_nothing():
    x, weight, bias = product(3, (50, 40))
    x[1, 39], weight[7, 3], weight[8, 33] = math.nan, math.inf, -math.inf
    got, plain = linear_cpp(x, weight, bias), F.linear(x, weight, bias)
    assert torch.equal(got.isnan(), plain.isnan()) and torch.equal(got.isinf(), plain.isinf())
    assert torch.equal(linear_cpp(torch.empty(3, 0), torch.empty(50, 0), bias), bias.expand(3, 50))
    assert linear_cpp(x, torch.empty(0, 40), None).shape == (3, 0)


def test_products_that_do_not_fit_are_refused():
    x, weight, bias = product(3, (50, 40))
    for refused, message in [
        (lambda: linear_cpp(x[:, :39].contiguous(), weight, bias), "weight has size 40 in dimension 1"),
        (lambda: linear_cpp(x, weight, bias[:49]), "bias has size 49 in dimension 0, not 50"),
        (lambda: linear_cpp(x[:, ::2], weight[:, ::2].contiguous(), bias), "x is not contiguous"),
        (lambda: linear_cpp(x.double(), weight, bias), "x has dtype float64, not float32"),
        (lambda: linear_cpp(x, weight, bias.half()), "bias has dtype float16, not float32"),
        (lambda: linear_cpp(x, weight.bfloat16(), bias.half()), "bias has dtype float16, not bfloat16"),
        (lambda: linear_cpp(x, weight.double()), "weight has dtype float64, not float32, bfloat16 or float16"),
        (lambda: cpp.linear(x[0], weight, bias, torch.empty(50)), "x has 1 dimensions, not 2"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            refused()


@pytest.mark.parametrize("shape", [(1, 1), (49, 33), (96, 64), (700, 40), (0, 8)])
def test_products_of_several_weights_are_those_of_each(shape):
    x = product(5, shape)[0]
    layers, before = [product(seed, shape)[1:] for seed in (1, 2, 3)], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for some in (layers, layers[:1]):
                weights, biases = ([*part] for part in zip(*some))
                for given in (biases, []):
                    alone = [linear_cpp(x, w, b) for w, b in zip(weights, given or [None] * 3)]
                    assert torch.equal(linears_cpp(x, weights, given), torch.cat(alone, 1))
    finally:
        torch.set_num_threads(before)


def test_several_weights_that_do_not_fit_are_refused():
    x, weight, bias = product(3, (50, 40))
    for weights, biases, message in [
        ([], [], "there is no weight"),
        ([weight, weight], [bias], "lists of 2 and of 1 tensors"),
        ([weight, weight[:49]], [], "weight has size 49 in dimension 0, not 50"),
        ([weight, weight.double()], [], "weight has dtype float64, not float32"),
        ([weight.half(), weight], [], "weight has dtype float32, not float16"),
        ([weight[:, :39].contiguous()], [], "weight has size 39 in dimension 1, not 40"),
        ([weight, weight], [bias, bias[:49]], "bias has size 49 in dimension 0, not 50"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            cpp.linears(x, weights, biases, torch.empty(3, 50 * len(weights)))
