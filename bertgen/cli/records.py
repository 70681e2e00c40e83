"""Records, one for each line: where they go, and what is said about them."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from .console import Progress, say
from .parser import as_typed

if TYPE_CHECKING:
    from ..jobs import JobReport


def add_writing(group: Any) -> None:
    """What to do about lines that cannot be used, and about an output that is there."""
    group.add_argument(
        "--strict", action="store_true", help="stop at a line that cannot be used, instead of recording it as failed"
    )
    group.add_argument("--overwrite", action="store_true", help="replace an output that is there already")


def write_stdout(record: bytes) -> None:
    """Write a record at once, with a line end."""
    sys.stdout.buffer.write(record if record.endswith(b"\n") else record + b"\n")
    sys.stdout.buffer.flush()


def size_of(path: str | None) -> int | None:
    """Bytes of a file; None of anything else."""
    return os.path.getsize(path) if path and os.path.isfile(path) else None


def progress(args: argparse.Namespace, total: int | None) -> Progress:
    """A bar for so many bytes, but not among records at a terminal."""
    return Progress(total, not args.quiet and (bool(args.output) or not sys.stdout.isatty()))


def summarize(report: JobReport, args: argparse.Namespace) -> None:
    """Say what went wrong, and where there is an output what was done."""
    output = args.output
    for message in report.messages:
        say(as_typed(message, args.flags))
    told = len(report.messages)
    if report.failed + report.truncated > told:
        say(f"... and {report.failed + report.truncated - told} more such lines")
    if output:
        run = report.this_run
        seconds = max(run.seconds, 1e-9)
        say(
            f"{output}: {report.lines} lines, {report.failed} failed, {report.truncated} truncated; {seconds:.1f} s, "
            f"{run.lines / seconds:.1f} lines/s, {run.tokens / seconds:.0f} tokens/s"
        )
