"""The benchmark of the slow paths of a CPU."""

from __future__ import annotations

import re

import pytest

from bertgen.ops import extension
from tests.support.benchmarks import run_module


@pytest.mark.long
@pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")
def test_every_path_and_case_has_a_figure():
    lines = run_module("slow_paths", "--size", "smoke", "--repeats", 1).splitlines()
    assert len(lines) == 12
    figure = r"\d+\.\d\d"
    pattern = rf"[\w ]+, (1|64) texts, beams [14]: {figure} \({figure} to {figure}\)"
    assert all(re.fullmatch(pattern, line) for line in lines)
