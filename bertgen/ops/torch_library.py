"""Operators as torch.compile and torch.export see them: `torch.ops.bertgen.<name>`.

Each has the schema it is given, one implementation for all devices, a fake that says the shape, and a gradient that
runs the implementation again on the way back and differentiates it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

NAMESPACE = "bertgen"


def define(
    name: str,
    schema: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    differentiable: bool = False,
) -> None:
    """Register an operator.

    Args:
        schema: arguments and result, as in "(Tensor x, float eps) -> Tensor"; "Tensor(a!)" is written to.
        function: computes it; never returns what it was given.
        fake: (the same arguments) -> empty tensors like the results.
        differentiable: there is one result, and gradients flow to every floating tensor of the arguments.
    """
    full = f"{NAMESPACE}::{name}"
    torch.library.define(full, schema)
    torch.library.impl(full, ("CPU", "CUDA"), function)
    torch.library.register_fake(full, fake)
    if differentiable:
        _define_gradient(name, schema, function)


def _define_gradient(name: str, schema: str, function: Callable[..., torch.Tensor]) -> None:
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

    def keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        tensors = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor)]
        ctx.places, ctx.others = tensors, [None if i in tensors else x for i, x in enumerate(inputs)]
        ctx.save_for_backward(*(inputs[i] for i in tensors))

    def gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs = list(ctx.others)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            inputs[place] = tensor
        wanted = [i for i in ctx.places if ctx.needs_input_grad[i] and inputs[i].is_floating_point()]
        operator = getattr(getattr(torch.ops, NAMESPACE), f"{name}_backward")
        found = dict(zip(wanted, operator(grad.contiguous(), wanted, *inputs), strict=True))
        return tuple(found.get(i) for i in range(len(inputs)))

    torch.library.register_autograd(f"{NAMESPACE}::{name}", gradients, setup_context=keep)
