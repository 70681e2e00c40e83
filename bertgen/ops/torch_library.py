"""Registers operators with torch.library, for torch.compile and torch.export: `torch.ops.bertgen.NAME`.

Each has a schema, one implementation for all devices, a fake implementation that returns the shapes, and a gradient
that runs the implementation again in the backward pass and differentiates it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

NAMESPACE = "bertgen"
ARGUMENTS: dict[str, dict[str, Any]] = {}  # of each registered operator, its arguments and their defaults


def define(
    name: str,
    schema: str,
    defaults: dict[str, Any],
    function: Callable[..., Any],
    fake: Callable[..., Any],
    differentiable: bool = False,
) -> None:
    """Register an operator.

    Args:
        schema: arguments and result, as in "(Tensor x, float eps) -> Tensor"; "Tensor(a!)" is written to.
        defaults: the default of each argument in the order of the schema; `inspect.Parameter.empty` where it has none.
        function: computes it; never returns one of its arguments.
        fake: (the same arguments) -> empty tensors of the shapes of the results.
        differentiable: whether there is one result, and gradients flow to all floating tensors of the arguments.
    """
    ARGUMENTS[name] = defaults
    full = f"{NAMESPACE}::{name}"
    torch.library.define(full, schema)
    torch.library.impl(full, ("CPU", "CUDA"), function)
    torch.library.register_fake(full, fake)
    if differentiable:
        _define_backward(name, schema, function)


def _define_backward(name: str, schema: str, function: Callable[..., torch.Tensor]) -> None:
    """Register NAME_backward, and the autograd formula of NAME that calls it."""
    arguments = schema[1 : schema.index(") ->")]
    torch.library.define(f"{NAMESPACE}::{name}_backward", f"(Tensor grad, int[] wanted, {arguments}) -> Tensor[]")

    def backward(grad: torch.Tensor, wanted: Sequence[int], *inputs: Any) -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_() if i in wanted else x for i, x in enumerate(inputs)]
        with torch.enable_grad():
            output = function(*leaves)
        return list(torch.autograd.grad(output, [leaves[i] for i in wanted], grad))

    def fake(grad: torch.Tensor, wanted: Sequence[int], *inputs: Any) -> list[torch.Tensor]:
        return [torch.empty_like(inputs[i]) for i in wanted]

    torch.library.impl(f"{NAMESPACE}::{name}_backward", ("CPU", "CUDA"), backward)
    torch.library.register_fake(f"{NAMESPACE}::{name}_backward", fake)

    def save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.indices = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor)]
        ctx.others = [None if i in ctx.indices else x for i, x in enumerate(inputs)]
        ctx.save_for_backward(*(inputs[i] for i in ctx.indices))

    def gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs = list(ctx.others)
        for i, tensor in zip(ctx.indices, ctx.saved_tensors, strict=True):
            inputs[i] = tensor
        wanted = [i for i in ctx.indices if ctx.needs_input_grad[i] and inputs[i].is_floating_point()]
        operator = getattr(getattr(torch.ops, NAMESPACE), f"{name}_backward")
        by_index = dict(zip(wanted, operator(grad.contiguous(), wanted, *inputs), strict=True))
        return tuple(by_index.get(i) for i in range(len(inputs)))

    torch.library.register_autograd(f"{NAMESPACE}::{name}", gradients, setup_context=save)
