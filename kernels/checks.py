"""Checks of kernels: cases, the rule that accepts an output, and variants to compile without a device.

A case has the arguments of an operator. The tests (in the interpreter and on a GPU), the benchmarks and
`bertgen info --check` run cases. A variant is a kernel with its constants, which is compiled for every architecture.
NAME_cases.py has the cases and variants of the operator in NAME.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """Arguments of an operator.

    Attributes:
        name: unique among the cases of the operator.
        make: (dtype, device) -> the operator's arguments by name; seeded, so that two calls give equal tensors.
        gradients: names of the arguments for which gradients are compared too.
        core: whether it is part of the short run of every commit.
        written: names of arguments that the operator writes; they are compared like its outputs.
    """

    name: str
    make: Callable[[torch.dtype, torch.device], dict[str, Any]]
    gradients: tuple[str, ...] = ()
    core: bool = False
    written: tuple[str, ...] = ()


def arg_names(kernel: Any) -> list[str]:
    """Names of the arguments of a kernel, which is a plain function where triton is not installed."""
    return list(inspect.signature(getattr(kernel, "fn", kernel)).parameters)


@dataclass(frozen=True)
class Variant:
    """A kernel with its constants, to be compiled without a device.

    Attributes:
        name: unique among the variants of the operator.
        kernel: a function decorated by `triton.jit`.
        signature: type of each argument that is not a constant, such as "*bf16", "*i32", "i32", "i64", "fp32".
        constants: value of each constexpr argument.
        num_warps, num_stages: of the launch.
        unaligned: names of pointers and integers that are not multiples of 16 (bytes, or elements).
        present: SASS instructions that must be present, by architecture: {90: ("HGMMA",)}.
        per: (unit, count): instructions of hot loops are reported per unit, of which an iteration has `count`.
        architectures: for which it is compiled.
        launch: the rule of tuning.py for its tiles, and the arguments of the rule after the architecture.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    unaligned: tuple[str, ...] = ()
    present: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    per: tuple[str, int] | None = None
    architectures: tuple[int, ...] = (80, 90, 100)
    launch: tuple[str, tuple[Any, ...]] | None = None


@dataclass(frozen=True)
class Check:
    """An operator under test: its reference, its kernel, cases to compare them on, and variants to compile."""

    reference: Callable[..., Any]
    triton: Callable[..., Any]
    cases: tuple[Case, ...]
    variants: tuple[Variant, ...]


def outputs(function: Callable[..., Any], case: Case, arguments: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors that a function returns for the arguments of a case, and those that it writes."""
    result = function(**arguments)
    returned = [result] if isinstance(result, torch.Tensor) else [t for t in result or () if t is not None]
    return returned + [arguments[name] for name in case.written]


def gradients(function: Callable[..., Any], case: Case, arguments: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """Gradients of a weighted sum of the outputs, by the arguments in case.gradients; all dtypes have these weights."""
    inputs = [arguments[name].requires_grad_() for name in case.gradients]
    generator = torch.Generator("cpu").manual_seed(1)
    total = torch.zeros((), dtype=torch.float64, device=inputs[0].device)
    for output in outputs(function, case, arguments):
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float32, device="cpu")
        total = total + (output * (weights * 32).round().div(32).to(output)).sum()
    return torch.autograd.grad(total, inputs)


def check_case(
    check: Check, case: Case, dtype: torch.dtype, device: torch.device, function: Callable[..., Any] | None = None
) -> str | None:
    """Why the outputs or gradients of a case on a device are not accepted; None where they are.

    Args:
        function: is checked instead of the kernel's launcher.
    """
    reason = None
    for run in (outputs, gradients) if case.gradients else (outputs,):
        actual = run(function or check.triton, case, case.make(dtype, device))
        plain = run(check.reference, case, case.make(dtype, device))
        exact = run(check.reference, case, as_float64(case.make(dtype, device)))
        for index, tensors in enumerate(zip(actual, plain, exact, strict=True)):
            name = f"{'gradient' if run is gradients else 'output'} {index}"
            reason = reason or (f"{name}: {error}" if (error := difference(*tensors)) else None)
    return reason


def as_float64(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with every floating tensor in float64."""
    return {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def difference(actual: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> str | None:
    """Why an output is not accepted; None where it is.

    It is accepted with the shape and dtype of plain torch's, with infinities and NaN where `exact` has them, and with
    at most twice plain torch's largest error plus the rounding of the dtype.

    Args:
        actual: the output. plain: of the reference in the same dtype. exact: of the reference in float64.
    """
    if actual.shape != plain.shape or actual.dtype != plain.dtype:
        return f"{actual.dtype} {tuple(actual.shape)} instead of {plain.dtype} {tuple(plain.shape)}"
    if actual.numel() == 0:
        return None
    if not actual.is_floating_point():
        count = int((actual != plain).sum())
        return f"{count} of {actual.numel()} integers differ" if count else None
    rounded = exact.to(actual.dtype)
    for name, test in (("nan", torch.isnan), ("inf", torch.isposinf), ("-inf", torch.isneginf)):
        count = int((test(actual) != test(rounded)).sum())
        if count:
            return f"{count} of {actual.numel()} places have {name} or lack it"
    finite = rounded.isfinite()
    if not bool(finite.any()):
        return None
    exact, ours, theirs = exact[finite], actual[finite].double(), plain[finite].double()
    shifted = (exact.to(actual.dtype) + 0.3 - 0.3).double()
    rounding = 2 * (exact - shifted).abs().max()
    bound = 2 * (theirs - exact).abs().nan_to_num(0.0, 0.0, 0.0).max() + rounding
    error = (ours - exact).abs().max()
    if not bool(error <= bound):
        plain_error = float(bound - rounding) / 2
        return f"error {float(error):.3g}, allowed are {float(bound):.3g} (plain torch: {plain_error:.3g})"
    return None
