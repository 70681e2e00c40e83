"""`bertgen bench suite`: ops, generate, scale and train one after the other, and the report.

Each part runs in its own process, with a time limit; a part that exceeds it is stopped and keeps its finished cases.
`smoke` is a quick test; `quick` takes less than 10 minutes on two CPU cores, or 9 on a GPU; `full` produces the
committed figures.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bertgen.errors import ConfigError
from bertgen.optional_imports import load_matplotlib

from . import check, figures, machine, output, report
from .generate import STATIC
from .result import OURS, Result, load, save

BROKEN = 1
PATIENCE = 15.0  # seconds that a stopped part gets to end


class Step(NamedTuple):
    """A part with its options, and its time limit in seconds."""

    name: str
    words: str
    seconds: float

    @property
    def part(self) -> str:
        return self.words.split()[0]


LEVELS = {
    ("smoke", "cpu"): (
        Step("ops", "ops --size smoke --cases none --no-compile --seconds 0.01", 120),
        Step("generate", "generate --size smoke --only fixed --requests 3 --batches 2 --repeats 2 --no-load "
             "--same-process", 120),
        Step("scale", "scale --size smoke --axes batch --most 2 --repeats 1 --same-process", 120),
        Step("train", "train --size smoke --batches 2 --steps 2", 120),
    ),
    ("quick", "cpu"): (
        Step("ops", "ops --size small --cases core --no-compile --seconds 0.05", 150),
        Step("generate", "generate --size demo --requests 16 --singles 2 --batches 4 16 --repeats 3", 260),
        Step("scale", "scale --size demo --most 16 --repeats 3", 120),
        Step("train", "train --size demo --batches 8 --steps 5", 60),
    ),
    ("full", "cpu"): (
        Step("ops", "ops --size small --cases none --seconds 0.1", 900),
        Step("generate-fixed", "generate --only fixed --requests 16 --batches 4 16 --engines all", 1500),
        Step("generate-mixed", "generate --only mixed --beams 1 --requests 16 --batches 4 16 --no-load "
             "--engines all", 1500),
        Step("generate-beams", "generate --only mixed --beams 4 --requests 16 --batches 16 --no-load "
             "--engines all", 1500),
        Step("generate-single", "generate --only single --singles 2 --no-load --engines all", 1500),
        Step("generate-demo", "generate --size demo --requests 16 --batches 1 4 16 --no-load", 900),
        Step("generate-static", f"generate --size demo --only fixed --requests 16 --batches 16 --no-load --engines "
             f"{OURS} {shlex.quote(STATIC)}", 900),
        Step("generate-large", "generate --size large --only single --singles 1 --beams 1 --no-load --engines bertgen "
             "'bertgen int4' 'transformers sdpa' CTranslate2 'CTranslate2 int8'", 900),
        Step("scale", "scale --size demo --most 128 --repeats 7", 900),
        Step("train", "train --batches 8 --steps 5", 900),
    ),
    ("quick", "cuda"): (
        Step("ops", "ops --size full --cases core --seconds 0.02 --no-compile cross_decode_attention linear "
             "int4_matmul encoder", 150),
        Step("generate", "generate --size base --only fixed single mixed --requests 64 --singles 2 --batches 64", 180),
        Step("generate-large", "generate --size large --only fixed --source-length 512 --length 128 --requests 64 "
             "--batches 1 64 --repeats 1 --no-load --engines bertgen transformers\\ sdpa", 90),
        Step("scale", "scale --size base --repeats 2 --engines bertgen transformers\\ sdpa", 50),
        Step("train", "train --size base --batches 32 --steps 5", 40),
    ),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The level, the device, and the output folder."""
    levels = list(dict.fromkeys(level for level, _ in LEVELS))
    parser.add_argument("--level", choices=levels, default="quick", help="default: quick")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="for PART-DEVICE.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these steps: ops, generate, scale, train, ...")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="for the page (default: the output folder)")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a ratio is below its floor (floors.py)")


def run(args: argparse.Namespace) -> int:
    """Run the steps. Return 1 where one failed or a ratio is below its floor, 4 where that is not judged."""
    steps = LEVELS.get((args.level, args.device))
    if steps is None:
        raise ConfigError(f"--level {args.level} is not for --device {args.device}")
    load_matplotlib(figures.PURPOSE)  # before the minutes of the steps
    files, failed = [], False
    for step in steps:
        if args.only and step.name not in args.only:
            continue
        file = args.output / f"{step.name}-{args.device}.json"
        file.unlink(missing_ok=True)
        output.say(f"bertgen bench {step.words}")
        where = ["--device", args.device, "--json", str(file)]
        command = [sys.executable, "-m", "bertgen", "bench", *shlex.split(step.words), *where]
        code = within(step.seconds, command)
        if code is None:
            output.say(f"{step.name}: stopped after {step.seconds:.0f} s; what it has done is kept")
        elif code:
            output.say(f"{step.name}: failed with code {code}")
            failed = True
        if code is None or code not in (0, check.NOT_JUDGED):
            noted(step, args.device, file, "failed" if code else f"stopped after {step.seconds:.0f} s")
        if file.exists():
            files.append(file)
    results = [load(file) for file in files]
    if results:
        print(report.write(results, args.report or args.output))
    code = check.report(results) if args.check else 0
    return BROKEN if failed or not results else code


def noted(step: Step, device: str, file: Path, reason: str) -> None:
    """Add a warning to the result of a step that is not complete; makes an empty result where there is none."""
    known = file.exists()
    result = load(file) if known else Result(step.part, f"bertgen bench {step.words}", machine.environment())
    if not known:
        result.environment["device"] = device
    result.warnings.append(f"{reason}, {'cases may be' if known else 'all its cases are'} missing")
    save(result, file)


def within(seconds: float, command: Sequence[str]) -> int | None:
    """Run a command with a time limit; returns its exit code, None where it and its child processes were stopped."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return None
