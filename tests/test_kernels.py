"""The kernels, as far as a CPU goes: their cases in Triton's interpreter, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bertgen.kernels.all_cases import CHECKS
from bertgen.kernels.checks import difference
from bertgen.kernels.language import HAS_TRITON

ROOT = Path(__file__).parents[1]


def interpreted(kernel: str, core: bool) -> int:
    """How many tests of a kernel ran and passed."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "KERNEL": kernel, "CORE": "1" if core else "0"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/interpreter"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
    return int(re.search(r"(\d+) passed", done.stdout).group(1))


@pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
@pytest.mark.parametrize("kernel", CHECKS)
def test_the_core_cases_of_a_kernel(kernel):
    cases = [case for case in CHECKS[kernel].cases if case.core]
    expected = sum(2 if case.gradients else 1 for case in cases) * 2  # float32 and float16
    assert cases and interpreted(kernel, core=True) == expected


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kernel", CHECKS)
def test_all_cases_of_a_kernel(kernel):
    interpreted(kernel, core=False)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_variant_compiles_as_the_table_says():
    """No spills, wide loads and tensor cores where they belong, and no more registers than a committed table has."""
    command = [sys.executable, "bench/offline.py"]
    if (ROOT / "bench/results/offline.json").exists():
        command += ["--check", "bench/results/offline.json"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


# The rule by which answers are accepted


def test_an_answer_is_accepted_within_twice_the_error_of_plain_torch():
    exact = torch.randn(50, dtype=torch.float64)
    plain = (exact + 1e-4).float()
    assert difference(plain, plain, exact) is None
    assert difference((exact - 1.9e-4).float(), plain, exact) is None
    assert "allowed are" in difference((exact + 2.1e-4).float(), plain, exact)
    assert "allowed are" in difference((exact + 1e-6).float(), exact.float(), exact)


def test_nans_infinities_shapes_and_dtypes_are_looked_at_first():
    exact = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf], dtype=torch.float64)
    plain = exact.float()
    assert difference(plain, plain, exact) is None
    for place, name in ((0, "nan"), (1, "nan"), (2, "inf"), (3, "-inf")):
        wrong = plain.clone()
        wrong[place] = 0.0 if place else torch.nan
        assert f"have {name} or lack it" in difference(wrong, plain, exact)
    assert "instead of" in difference(plain.half(), plain, exact)
    assert "instead of" in difference(plain[:2], plain, exact)
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 3]), torch.tensor([1, 3])) == "1 of 2 integers differ"
    assert difference(torch.zeros(0), torch.zeros(0), torch.zeros(0).double()) is None
