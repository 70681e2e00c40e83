"""The kernels in Triton's interpreter, in another process: the short run of tests/interpreter.

`make test-kernels` runs all that is there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bertgen.kernels.all_cases import CHECKS
from bertgen.kernels.language import HAS_TRITON

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
ROOT = Path(__file__).parents[1]


def interpreted(*files: str) -> int:
    """How many tests of some files ran and passed in the interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CORE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [f"tests/interpreter/{file}" for file in files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
    return int(re.search(r"(\d+) passed", done.stdout).group(1))


def test_the_core_cases_of_every_kernel(record_property):
    cases = {name: [case for case in check.cases if case.core] for name, check in CHECKS.items()}
    assert all(cases.values()), cases
    runs = sum(2 if case.gradients else 1 for core in cases.values() for case in core)
    expected = 2 * runs  # float32 and float16
    assert interpreted("test_cases.py") == expected
    record_property("count", f"{expected} core tests of kernels in the interpreter")


def test_4_bit_weights_bit_for_bit_and_the_check_of_the_command_line():
    assert interpreted("test_exact.py", "test_info.py") == 24 + 1
