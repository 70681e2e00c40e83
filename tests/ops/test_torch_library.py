"""Registration with torch.library, by an operator that only this file has."""

from __future__ import annotations

import inspect

import pytest
import torch

from bertgen.ops import torch_library

NAME = "scaled_sum_of_a_test"
CALLS: list[bool] = []


def scaled_sum(x: torch.Tensor, y: torch.Tensor | None, index: torch.Tensor, factor: float) -> torch.Tensor:
    CALLS.append(torch.is_grad_enabled())
    total = x if y is None else x + y * y
    return total[index] * factor


@pytest.fixture(scope="module")
def operator():
    empty = inspect.Parameter.empty
    torch_library.define(
        NAME,
        "(Tensor x, Tensor? y, Tensor index, float factor) -> Tensor",
        {"x": empty, "y": None, "index": empty, "factor": 2.0},
        scaled_sum,
        lambda x, y, index, factor: x.new_empty(index.shape),
        differentiable=True,
    )
    yield getattr(torch.ops.bertgen, NAME)
    del torch_library.ARGUMENTS[NAME]


@pytest.mark.parametrize("absent", [True, False], ids=["no y", "y"])
@pytest.mark.parametrize("learned", ["x", "y", "x and y", ""])
def test_gradients_flow_to_the_floating_tensors_that_require_them(operator, learned, absent):
    torch.manual_seed(0)
    x, y, index = torch.randn(5), torch.randn(5), torch.tensor([3, 0, 3])
    for name, tensor in (("x", x), ("y", y)):
        tensor.requires_grad_(name in learned)
    arguments = (x, None if absent else y, index, 3.0)
    output, expected = operator(*arguments), scaled_sum(*arguments)
    assert torch.equal(output, expected) and output.requires_grad == expected.requires_grad
    leaves = [tensor for tensor in arguments[:2] if tensor is not None and tensor.requires_grad]
    if leaves:
        ours, theirs = (torch.autograd.grad(out.square().sum(), leaves) for out in (output, expected))
        assert all(map(torch.equal, ours, theirs))


def test_the_backward_runs_the_function_again_and_keeps_no_graph_of_the_forward(operator):
    x = torch.randn(5, requires_grad=True)
    CALLS.clear()
    output = operator(x, None, torch.tensor([1]), 2.0)
    assert CALLS == [False]
    output.sum().backward()
    assert CALLS == [False, True] and x.grad.tolist() == [0.0, 2.0, 0.0, 0.0, 0.0]


def test_the_registered_operator_passes_opcheck(operator):
    x, y = (torch.randn(5, requires_grad=True) for _ in range(2))
    torch.library.opcheck(operator.default, (x, y, torch.tensor([3, 0]), 2.0))
    assert [*torch_library.ARGUMENTS[NAME]] == ["x", "y", "index", "factor"]
