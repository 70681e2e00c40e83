"""Checks of kernels: what a case is, when an answer is accepted, and what is compiled without a device.

A case names the arguments of an operator. It drives the tests (in the interpreter and on a GPU), the benchmark and
`bertgen info --check`. A variant names a kernel with its constants; it drives the compilation for every architecture.
The cases and variants of an operator stand beside its kernel, in NAME_cases.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """Arguments of an operator.

    Attributes:
        name: what is special about it; unique among the operator's cases.
        make: (dtype, device) -> the operator's arguments by name; seeded, so that two calls give equal tensors.
        gradients: names of the arguments whose gradients are compared too.
        core: part of the short run of every commit.
        written: names of arguments that the operator writes; they are compared as its output is.
    """

    name: str
    make: Callable[[torch.dtype, torch.device], dict[str, Any]]
    gradients: tuple[str, ...] = ()
    core: bool = False
    written: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """A kernel with its constants, to be compiled without a device.

    Attributes:
        name: unique among the operator's variants.
        kernel: what `triton.jit` returned.
        signature: type of each argument that is no constant, such as "*bf16", "*i32", "i32", "i64", "fp32".
        constants: value of each constexpr argument.
        num_warps, num_stages: of the launch.
        unaligned: pointers and integers that are no multiples of 16 (bytes, or elements).
        present: SASS instructions that must be there, by architecture: {90: ("HGMMA",)}.
        per: (what, how many): the hot loop's instructions are reported per so many scores or weights.
        architectures: that it is compiled for.
        launch: the rule of tuning.py that gave the tiles, and its arguments but for the architecture.
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
    """An operator under test: the definition, what must agree with it, and on what."""

    reference: Callable[..., Any]
    triton: Callable[..., Any]
    cases: tuple[Case, ...]
    variants: tuple[Variant, ...]


def answers(function: Callable[..., Any], case: Case, arguments: Mapping[str, Any]) -> list[torch.Tensor]:
    """What a function returns for the arguments of a case, and what it has written."""
    result = function(**arguments)
    returned = [result] if isinstance(result, torch.Tensor) else [t for t in result or () if t is not None]
    return returned + [arguments[name] for name in case.written]


def gradients(function: Callable[..., Any], case: Case, arguments: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """Of a weighted sum of what a function returns, by the arguments that a case names; no dtype rounds the weights."""
    wanted = [arguments[name].requires_grad_() for name in case.gradients]
    generator = torch.Generator("cpu").manual_seed(1)
    total = torch.zeros((), dtype=torch.float64, device=wanted[0].device)
    for part in answers(function, case, arguments):
        weights = (
            (torch.randn(part.shape, generator=generator, dtype=torch.float32, device="cpu") * 32)
            .round()
            .div(32)
            .to(part)
        )
        total = total + (part * weights).sum()
    return torch.autograd.grad(total, wanted)


def trial(
    check: Check, case: Case, dtype: torch.dtype, device: torch.device, function: Callable[..., Any] | None = None
) -> str | None:
    """Run a case on a device, and its gradients where it has some; what is wrong, None where all is accepted.

    Args:
        function: what is tried instead of the kernel's launcher.
    """
    found = None
    for run in (answers, gradients) if case.gradients else (answers,):
        got = run(function or check.triton, case, case.make(dtype, device))
        plain = run(check.reference, case, case.make(dtype, device))
        exact = run(check.reference, case, as_float64(case.make(dtype, device)))
        for place, parts in enumerate(zip(got, plain, exact, strict=True)):
            part = f"{'gradient' if run is gradients else 'answer'} {place}: "
            found = found or (part + wrong if (wrong := difference(*parts)) else None)
    return found


def as_float64(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments with every floating tensor in float64."""
    return {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def difference(got: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> str | None:
    """What is wrong with an answer; None where it is accepted.

    Accepted is an answer with the shape and dtype of plain torch's, with infinities and nans where `exact` has them,
    and with at most twice plain torch's largest error, plus the rounding of the dtype itself.

    Args:
        got: the answer. plain: of the reference in the same dtype. exact: of the reference in float64.
    """
    if got.shape != plain.shape or got.dtype != plain.dtype:
        return f"{got.dtype} {tuple(got.shape)} instead of {plain.dtype} {tuple(plain.shape)}"
    if got.numel() == 0:
        return None
    if not got.is_floating_point():
        wrong = int((got != plain).sum())
        return f"{wrong} of {got.numel()} integers differ" if wrong else None
    rounded = exact.to(got.dtype)
    for name, test in (("nan", torch.isnan), ("inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = int((test(got) != test(rounded)).sum())
        if wrong:
            return f"{wrong} of {got.numel()} places have {name} or lack it"
    finite = rounded.isfinite()
    if not bool(finite.any()):
        return None
    exact, ours, theirs = exact[finite], got[finite].double(), plain[finite].double()
    shifted = (exact.to(got.dtype) + 0.3 - 0.3).double()
    floor = 2 * (exact - shifted).abs().max()
    bound = 2 * (theirs - exact).abs().nan_to_num(0.0, 0.0, 0.0).max() + floor
    error = (ours - exact).abs().max()
    if not bool(error <= bound):
        return f"error {float(error):.3g}, allowed are {float(bound):.3g} (plain torch: {float(bound - floor) / 2:.3g})"
    return None
