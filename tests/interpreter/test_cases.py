"""Every kernel against its reference, on every case: outputs, gradients, and the memory around them.

CORE=1 takes only the cases of the short run.
"""

from __future__ import annotations

import os

import pytest
import torch
from bertgen.kernels.all_cases import CHECKS
from bertgen.kernels.checks import as_float64, difference, gradients, outputs

from tests.interpreter.guards import damaged, guarded, guarded_allocations, unwritten

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16)  # bfloat16 is wrong in the interpreter
CASES = [
    pytest.param(check, case, dtype, id=f"{name}-{case.name}-{str(dtype)[6:]}")
    for name, check in CHECKS.items()
    for case in check.cases
    for dtype in DTYPES
    if case.core or os.environ.get("CORE") != "1"
]


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
        got = outputs(check.triton, case, fenced)
    plain = outputs(check.reference, case, case.make(dtype, CPU))
    exact = outputs(check.reference, case, as_float64(case.make(dtype, CPU)))
    assert len(got) == len(plain)
    for ours, theirs, truth in zip(got, plain, exact):
        wrong = difference(ours, theirs, truth)
        assert wrong is None, wrong
        if not any(ours is fenced[name] for name in case.written):
            assert not unwritten(ours)
    assert not any(map(damaged, allocated))
    for name, whole in wholes.items():
        assert not damaged(whole), f"memory around {name} was written"
        if name not in case.written:
            assert torch.equal(fenced[name].nan_to_num(), arguments[name].nan_to_num()), f"{name} was changed"


@pytest.mark.parametrize(("check", "case", "dtype"), [p for p in CASES if p.values[1].gradients])
def test_gradients(check, case, dtype):
    got = gradients(check.triton, case, case.make(dtype, CPU))
    plain = gradients(check.reference, case, case.make(dtype, CPU))
    exact = gradients(check.reference, case, as_float64(case.make(dtype, CPU)))
    for name, ours, theirs, truth in zip(case.gradients, got, plain, exact):
        wrong = difference(ours, theirs, truth)
        assert wrong is None, f"{name}: {wrong}"
