"""Every kernel against its reference, on every case: the answer, the gradients, and the memory around them.

KERNEL names one operator to look at; CORE=1 takes only the cases of the short run.
"""

from __future__ import annotations

import os

import pytest
import torch
from bertgen.kernels.all_cases import CHECKS
from bertgen.kernels.checks import as_float64, difference
from guards import damaged, guarded, guarded_allocations, unwritten

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16)  # bfloat16 is wrong in the interpreter
CASES = [
    pytest.param(check, case, dtype, id=f"{name}-{case.name}-{str(dtype)[6:]}")
    for name, check in CHECKS.items()
    for case in check.cases
    for dtype in DTYPES
    if os.environ.get("KERNEL", name) == name and (case.core or os.environ.get("CORE") != "1")
]


def outputs(result) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else [t for t in result if t is not None]


@pytest.mark.parametrize(("check", "case", "dtype"), CASES)
def test_case(check, case, dtype, monkeypatch):
    arguments = case.make(dtype, CPU)
    fenced, wholes = {}, {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            fenced[name], wholes[name] = guarded(value)
        else:
            fenced[name] = value
    with guarded_allocations(monkeypatch) as allocated:
        got = outputs(check.triton(**fenced))
    plain_arguments, exact_arguments = case.make(dtype, CPU), as_float64(case.make(dtype, CPU))
    plain, exact = (outputs(check.reference(**a)) for a in (plain_arguments, exact_arguments))
    for name in case.written:
        got.append(fenced[name]), plain.append(plain_arguments[name]), exact.append(exact_arguments[name])
    assert len(got) == len(plain)
    for ours, theirs, truth in zip(got, plain, exact):
        problem = difference(ours, theirs, truth.double() if truth.is_floating_point() else truth)
        assert problem is None, problem
        if not any(ours is fenced[name] for name in case.written):
            assert not unwritten(ours)
    assert not any(map(damaged, allocated))
    for name, whole in wholes.items():
        assert not damaged(whole), f"memory around {name} was written"
        if name not in case.written:
            assert torch.equal(fenced[name].nan_to_num(), arguments[name].nan_to_num()), f"{name} was changed"


@pytest.mark.parametrize(("check", "case", "dtype"), [p for p in CASES if p.values[1].gradients])
def test_gradients(check, case, dtype):
    def gradients(function, arguments):
        wanted = [arguments[name].requires_grad_() for name in case.gradients]
        results = outputs(function(**arguments))
        torch.manual_seed(1)
        weights = [torch.randn(r.shape, dtype=torch.float32).to(dtype) for r in results]
        total = sum((r * w.to(r.dtype)).sum() for r, w in zip(results, weights))
        return torch.autograd.grad(total, wanted)

    got, plain = (gradients(f, case.make(dtype, CPU)) for f in (check.triton, check.reference))
    exact = gradients(check.reference, as_float64(case.make(dtype, CPU)))
    for name, ours, theirs, truth in zip(case.gradients, got, plain, exact):
        problem = difference(ours, theirs, truth)
        assert problem is None, f"{name}: {problem}"
