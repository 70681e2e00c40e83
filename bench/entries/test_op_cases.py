"""Entry points for pytest-benchmark: every case of the kernels' tests, by the reference and by bertgen.

    pytest bench --benchmark-only [--benchmark-autosave] [--benchmark-compare] [-k NAME]

Outputs are compared before they are timed. A contender without a function for this device is skipped with a reason.
"""

from __future__ import annotations

import pytest
import torch
from bertgen.bench.ops import own
from bertgen.kernels.all_cases import CHECKS
from bertgen.kernels.checks import as_float64, difference, outputs

from bertgen.errors import BackendError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
CASES = [pytest.param(name, case, id=f"{name}-{case.name}") for name, check in CHECKS.items() for case in check.cases]


@pytest.mark.parametrize("who", ["eager", "bertgen"])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_op(benchmark, name, case, who):
    check = CHECKS[name]
    try:
        function = check.reference if who == "eager" else own(name, check, DEVICE)
        with torch.no_grad():
            got = outputs(function, case, case.make(DTYPE, DEVICE))
    except (BackendError, RuntimeError, TypeError) as error:
        if DEVICE.type == "cuda":
            raise
        pytest.skip(f"not on a CPU: {error}")
    if who == "bertgen":
        plain, exact = (
            outputs(check.reference, case, arguments)
            for arguments in (case.make(DTYPE, DEVICE), as_float64(case.make(DTYPE, DEVICE)))
        )
        assert [difference(*parts) for parts in zip(got, plain, exact, strict=True)] == [None] * len(got)
    arguments = case.make(DTYPE, DEVICE)
    benchmark.group = f"{name}: {case.name}"
    benchmark.extra_info = {"op": name, "case": case.name, "contender": who, "device": DEVICE.type}

    def call():
        function(**arguments)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    with torch.no_grad():
        benchmark(call)
