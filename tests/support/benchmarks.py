"""Helpers of the tests of the benchmarks: run a command or a module, make rows and results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from bertgen.bench.result import Result, Row

from bertgen.bench import shapes, workload
from bertgen.cli import main

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMOKE = workload.Plan(workload.SIZES["smoke"])


def run_module(name: str, *arguments: object) -> str:
    """What a module of the benchmarks prints."""
    command = [sys.executable, "-m", f"bertgen.bench.{name}", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_bench(*words: object) -> int:
    return main(["bench", *map(str, words)])


def make_row(name="generate", contender="bertgen", seconds=(1.0, 1.1, 1.2), params=None, **more) -> Row:
    return Row(name, params or {"model": "base"}, contender, list(seconds), **more)


def make_result(*rows: Row, **environment: object) -> Result:
    known = {
        "device": "cpu",
        "commit": "abc",
        "dirty": False,
        "processor": "p",
        "threads": 1,
        "isa": "i",
        "time": "now",
    }
    known |= {"limits": {"B": 1e10, "FLOP": 1e11}}
    return Result("generate", "bertgen bench generate", {**known, **environment}, list(rows))


def smoke_shapes(only: str) -> list[shapes.Shape]:
    with torch.no_grad():
        return list(shapes.shapes("smoke", CPU, torch.float32, only))
