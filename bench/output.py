"""Shared by the parts: common options, the printed table, the written files, the exit code."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import machine
from .result import Result, Row, best, ratio, save, save_csv

WRONG = 1
UNKNOWN = "not measured"
SAVED_EVERY = 5.0  # seconds
_saved: dict[Path, float] = {}
ENGINEERING = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def add_arguments(parser: argparse.ArgumentParser, device: bool = False) -> None:
    """Output files, and the device."""
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the result as JSON, for report, compare and check"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the result as a CSV table")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a ratio is below its floor (floors.py)")
    if device:
        import torch

        has = torch.cuda.is_available()
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if has else "cpu")


def begin(part: str, args: argparse.Namespace, device: Any) -> Result:
    """An empty result with its environment; prints a line where other processes keep the machine busy."""
    result = Result(part, command(part), machine.environment(device), path=args.json)
    if result.busy:
        say(f"others keep {result.busy:.1f} cores busy: times will be too long, and are not judged")
    return result


def command(part: str) -> str:
    """The command line of this run, without output files."""
    words = sys.argv[1:]
    start = ["bertgen", "bench", part] if part in words else ["python", "-m", f"bertgen.bench.{part}"]
    words = words[words.index(part) + 1 :] if part in words else words
    kept: list[str] = []
    while words:
        word = words.pop(0)
        if word in ("--json", "--csv"):
            words = words[1:]
        elif not word.startswith(("--json=", "--csv=")) and word != "--check":
            kept.append(os.path.basename(word) if os.sep in word else word)
    return shlex.join([*start, *kept])


def say(text: str) -> None:
    """Print progress to stderr."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def head() -> None:
    print("| case | contender | time (quartiles) | rate | of the limit | times faster than the first | correct |")
    print("|---" * 7 + "|", flush=True)


def add(result: Result, rows: Sequence[Row]) -> None:
    """Add and print the rows of one case; saves the file from time to time, since a run may be stopped."""
    result.rows += rows
    first = best(row for row in rows if row.contender == rows[0].contender)
    for row in rows:
        print(line(row, first), flush=True)
    if result.path and time.monotonic() - _saved.get(result.path, 0.0) > SAVED_EVERY:
        save(result, result.path)
        _saved[result.path] = time.monotonic()


def line(row: Row, first: Row | None) -> str:
    if not row.seconds:
        why = f"WRONG: {row.wrong}" if row.wrong else f"missing: {row.absent}"
        return f"| {row.title} | {row.contender} | {why} | | | | |"
    spread = " to ".join(time_text(edge) for edge in row.quartiles) if row.quartiles else "once"
    rate = f"{engineering(row.rate)}{row.unit}/s" if row.rate else ""
    share = f"{row.fraction:.0%}" if row.fraction else ""
    faster = f"{pace(row) / pace(first):.2f}x" if first and first.seconds else ""
    cells = [row.title, row.contender, f"{time_text(row.median)} ({spread})", rate, share, faster, row.correct or ""]
    return f"| {' | '.join(cells)} |"


def pace(row: Row) -> float:
    """Work per second; runs per second where the amount of work is unknown."""
    return row.rate or 1 / row.median


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(cells) for cells in (heads, *rows)]
    return "\n".join((f"| {lines[0]} |", "|---" * len(heads) + "|", *(f"| {line} |" for line in lines[1:])))


def times(theirs: Row | None, ours: Row | None) -> str:
    """How many times as long, and the spread."""
    if theirs is None or ours is None or not theirs.seconds or not ours.seconds:
        return UNKNOWN
    value, low, high = ratio(theirs, ours)
    return f"{value:.2f} " + (f"({low:.2f} to {high:.2f})" if len(theirs.seconds) > 1 else "(timed once)")


def time_text(seconds: float) -> str:
    """Three digits and a suitable unit."""
    for scale, unit in ((1, "s"), (1e-3, "ms")):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def engineering(value: float) -> str:
    """A value with an SI prefix, as in "12.3 G", for a unit to follow."""
    for scale, prefix in ENGINEERING:
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g} "


def end(result: Result, args: argparse.Namespace) -> int:
    """Write the files, print what is missing, wrong or doubtful, check floors with --check; returns the exit code."""
    from . import check

    missing: dict[str, set[str]] = {}
    for row in result.rows:
        if row.absent:
            missing.setdefault(row.absent, set()).add(row.contender)
    for why, names in missing.items():
        print(f"missing: {', '.join(sorted(names))}: {why[:200]}")
    result.environment["busy_behind"] = machine.busy()
    for doubt in result.doubts:
        print(f"warning: {doubt}")
    if args.json:
        save(result, args.json)
    if args.csv:
        save_csv(result, args.csv)
    for row in result.wrong:
        say(f"wrong: {row.title}: {row.contender}: {row.wrong}")
    failed = bool(result.wrong) or not result.rows
    if not result.rows:
        say("nothing was measured")
    code = check.report([result]) if args.check else 0
    return WRONG if failed else code
