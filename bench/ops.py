"""Operators against eager torch, torch.compile, torch's own kernels and those of other installed packages.

Every output is compared with float64 before it is timed. An output that is not accepted is not timed, and the exit code
is 1 where it is bertgen's. Two kinds of cases: shapes of real models (shapes.py), with known bytes and FLOPs; and the
small and odd cases of the kernels' tests, against the reference in plain torch. Contenders take turns (clock.py).
"""

from __future__ import annotations

import argparse
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bertgen.kernels.all_cases import CHECKS
from bertgen.kernels.checks import Case, Check, as_float64, difference, outputs

from bertgen import ops
from bertgen.errors import BackendError
from bertgen.optional_imports import load_triton

from . import machine, output
from .clock import race
from .result import Row
from .shapes import MAKERS, SIZES, Contender, Shape, shapes

ROTATED = 2**26  # bytes: on a CPU calls cycle through copies of their arguments that exceed the caches
COPIES = 8  # maximum number of copies
ROUNDING = 32  # units in the last place of the largest element
CASES = ("none", "core", "all")
NAMES = tuple(dict.fromkeys((*MAKERS, *CHECKS)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which cases to time, and for how long."""
    output.add_arguments(parser, device=True)
    parser.add_argument("--size", choices=SIZES, help="sizes of the shapes (default: full on a GPU, small on a CPU)")
    parser.add_argument("--op", choices=NAMES, metavar="NAME", help=f"one operator only: {', '.join(NAMES)}")
    parser.add_argument(
        "--cases", choices=CASES, default="all", help="which cases of the kernels' tests (default: all)"
    )
    parser.add_argument("--seconds", type=float, default=0.2, metavar="S", help="time per contender (default: 0.2)")
    parser.add_argument("--no-compile", nargs="*", choices=MAKERS, metavar="NAME",
                        help="skip torch.compile for these operators (no NAME: for all)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print a table, and return the exit code."""
    device = torch.device(args.device)
    result = output.begin("ops", args, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    limit = result.environment["limits"] = machine.limits(device, dtype)
    print(f"limits: {limit['B'] / 1e9:.1f} GB/s, {limit['FLOP'] / 1e9:.0f} GFLOP/s; {str(dtype)[6:]} on {device}")
    output.head()
    with torch.no_grad():
        size = args.size or ("full" if device.type == "cuda" else "small")
        for shape in shapes(size, device, dtype, args.op):
            spared = args.no_compile == [] or shape.op in (args.no_compile or ())
            output.add(result, of_shape(shape, device, limit, args.seconds, not spared))
        for rows in of_cases(args.cases, args.op, device, dtype, args.seconds / 4):
            output.add(result, rows)
    return output.end(result, args)


def of_shape(
    shape: Shape, device: torch.device, limit: dict[str, float], seconds: float, compile: bool = True
) -> list[Row]:
    """One row per contender."""
    torch.compiler.reset()  # else it silently stops compiling at its limit of shapes
    contenders = dict(shape.contenders)
    if shape.op in ops.OPS and "bertgen" in contenders:
        ours = contenders["bertgen"]
        contenders["bertgen reference"] = Contender(
            lambda **arguments: by_backend("reference", ours.make(**arguments)), ours.view
        )
    size = sum(value.nbytes for value in shape.arguments.values() if isinstance(value, torch.Tensor))
    copies = 1 if device.type == "cuda" else max(1, min(COPIES, ROTATED // size))
    argument_sets = [cloned(shape.arguments) for _ in range(copies)]
    plain, exact = shape.reference(**cloned(shape.arguments)), shape.reference(**as_float64(cloned(shape.arguments)))
    work = {"B": shape.bytes, "FLOP": shape.flop}
    unit = max(work, key=lambda unit: work[unit] / limit[unit])  # the tighter limit
    rows, calls = [], {}
    for name, contender in contenders.items():
        row = Row(shape.op, shape.params, name, amount=work[unit], unit=unit, limit=limit[unit])
        row.extra = {"bytes": shape.bytes, "flop": shape.flop}
        rows.append(row)
        if name == "compiled" and not compile:
            row.absent = "--no-compile"
            continue
        try:
            calls[name] = [contender.make(**arguments) for arguments in argument_sets]
            answer = contender.view(calls[name][0]())
        except Exception as error:  # other packages raise any type
            row.absent = f"{type(error).__name__}: {error}".splitlines()[0]
            if row.ours:
                row.wrong, row.absent = row.absent, None
            calls.pop(name, None)
            continue
        problem = difference(answer, plain, exact) if contender.judged else None
        if problem and not row.ours and rounded(answer, exact):
            row.correct = f"rounds more: {problem}"
        elif not judge(row, problem, contender.judged):
            del calls[name]
    return timed(rows, calls, device, seconds)


def judge(row: Row, problem: str | None, judged: bool = True) -> bool:
    """Whether a contender may be timed. A wrong output of bertgen fails the run; others are reported as missing."""
    if problem is not None and row.ours:
        row.wrong = problem
    elif problem is not None:
        row.absent = f"its answer is not accepted: {problem}"
    elif judged:
        row.correct = "within twice the error of plain torch"
    return problem is None


def rounded(answer: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether rounding explains the error of another package, which does not promise bertgen's bound."""
    if answer.shape != exact.shape or not answer.is_floating_point():
        return False
    error = (answer.double() - exact).abs().max()
    return bool(error <= ROUNDING * torch.finfo(answer.dtype).eps * exact.abs().max())


def timed(rows: list[Row], calls: dict[str, list[Callable[[], Any]]], device: torch.device, seconds: float) -> list:
    """The rows with the times of those that have calls."""
    for name, taken in race(calls, device, seconds).items():
        next(row for row in rows if row.contender == name).seconds = taken
    return rows


def cloned(arguments: dict[str, Any]) -> dict[str, Any]:
    return {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}


def of_cases(
    which: str, only: str | None, device: torch.device, dtype: torch.dtype, seconds: float
) -> Iterator[list[Row]]:
    """Rows of the cases of the kernels' tests: the reference in plain torch, and the operator."""
    for name, check in CHECKS.items():
        for case in check.cases if only in (None, name) else ():
            if which == "all" or (which == "core" and case.core):
                yield of_case(name, check, case, device, dtype, seconds)


def own(name: str, check: Check, device: torch.device, arguments: dict[str, Any]) -> Callable[..., Any]:
    """bertgen's function for a case on this device: the kernel on a GPU, the C++ function on a CPU.

    Raises:
        BackendError: there is no such function, or it leaves these arguments to the reference.
    """
    if device.type == "cuda":
        load_triton("the kernel")
        return check.triton
    op = ops.OPS.get(name)
    if op is None or op.cpp is None:
        raise BackendError("on a CPU the definition itself runs, its kernel needs a CUDA device")
    first, *rest = inspect.signature(op.reference).parameters
    if op.infers:
        named = {name: arguments[name] for name in rest if name in arguments}
        if (reason := op.why_not("cpp", arguments[first], **named)) is not None:
            raise BackendError(f"the definition itself runs: {reason}")
    return by_backend("cpp", op)


def by_backend(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function under another backend."""

    def run(*arguments: Any, **named: Any) -> Any:
        before = ops.set_backend(name)
        try:
            return function(*arguments, **named)
        finally:
            ops.set_backend(before)

    return run


def of_case(name: str, check: Check, case: Case, device: torch.device, dtype: torch.dtype, seconds: float) -> list[Row]:
    """Rows of the reference and of `own`. Cases are made for the kernels: the C++ functions do not take all of them."""
    rows = [Row(name, {"case": case.name}, contender) for contender in ("eager", "bertgen")]
    makers = {"eager": lambda: check.reference, "bertgen": lambda: own(name, check, device, case.make(dtype, device))}
    calls, plain, exact = {}, [], []
    for row in rows:
        try:
            function = makers[row.contender]()
            got = outputs(function, case, case.make(dtype, device))
            if row.contender == "eager":
                plain, exact = got, outputs(function, case, as_float64(case.make(dtype, device)))
        except Exception as error:
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            broken = row.ours and device.type == "cuda"
            row.wrong, row.absent = (text, None) if broken else (None, text)
            continue
        problems = (difference(*parts) for parts in zip(got, plain, exact, strict=True) if row.ours)
        if judge(row, next((problem for problem in problems if problem), None), row.ours):
            calls[row.contender] = [functools.partial(function, **case.make(dtype, device))]
    return timed(rows, calls, device, seconds)
