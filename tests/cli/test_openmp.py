"""The environment of OpenMP that commands set before torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bertgen.cli import openmp


def environment_of(code, **variables):
    """The choices that a new process has after the code."""
    inherited = {name: value for name, value in os.environ.items() if name not in openmp.CHOICES}
    show = f"import json, os, sys\n{code}\nprint(json.dumps([(n, os.environ.get(n)) for n in {openmp.CHOICES!r}]))"
    environment = {**inherited, **variables}
    done = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {name: value for name, value in json.loads(done.stdout) if value is not None}


SET = "from bertgen.cli.openmp import set_wait_policy; set_wait_policy()"


def test_a_policy_is_set_unless_the_user_has_chosen():
    assert environment_of(SET) == openmp.POLICY
    for chosen in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "3"}):
        assert environment_of(SET, **chosen) == chosen


def test_nothing_is_set_when_torch_is_there_already():
    assert environment_of(f"import torch\n{SET}") == {}


@pytest.mark.parametrize(
    ("command", "calm"), [("run", True), ("score", True), ("evaluate", True), ("bench", False), ("compare", False)]
)
def test_commands_set_it_before_they_import_torch(command, calm):
    code = f"""
from bertgen import cli
imported = []
cli.set_wait_policy = lambda: imported.append('torch' in sys.modules)
try:
    cli.main([{command!r}, '--no-such-option'])
except SystemExit:
    assert imported == {[False] * calm}, imported
"""
    assert environment_of(code) == {}
