"""Writes records to stdout, shows their progress and prints the job summary."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .console import Progress, print_message
from .parser import as_typed

if TYPE_CHECKING:
    from ..jobs import JobReport


def add_writing(group: Any) -> None:
    """The options about lines that cannot be used, and about an output that exists."""
    group.add_argument(
        "--strict", action="store_true", help="stop at a line that cannot be used, instead of recording it as failed"
    )
    group.add_argument("--overwrite", action="store_true", help="replace an output that is there already")


def check_output(args: argparse.Namespace) -> None:
    """Raise ConfigError where --output is the file that is read."""
    if args.output and os.path.realpath(args.output) == os.path.realpath(args.data):
        raise ConfigError(f"--output {args.output} is the data")


def write_record(record: bytes) -> None:
    """Write a record to stdout at once, with a line end."""
    sys.stdout.buffer.write(record if record.endswith(b"\n") else record + b"\n")
    sys.stdout.buffer.flush()


def size_of(path: str | None) -> int | None:
    """Bytes of a file; None of anything else."""
    return os.path.getsize(path) if path and os.path.isfile(path) else None


def progress(args: argparse.Namespace, total: int | None) -> Progress:
    """A bar for so many bytes, but not among records at a terminal."""
    return Progress(total, not args.quiet and (bool(args.output) or not sys.stdout.isatty()))


def summarize(report: JobReport, args: argparse.Namespace) -> None:
    """Print the messages of a job, and with an output file its counts and rates."""
    output = args.output
    for message in report.messages:
        print_message(as_typed(message, args.flags))
    printed = len(report.messages)
    if report.failed + report.truncated > printed:
        print_message(f"... and {report.failed + report.truncated - printed} more such lines")
    if output:
        run = report.this_run
        seconds = max(run.seconds, 1e-9)
        print_message(
            f"{output}: {report.lines} lines, {report.failed} failed, {report.truncated} truncated; {seconds:.1f} s, "
            f"{run.lines / seconds:.1f} lines/s, {run.tokens / seconds:.0f} tokens/s"
        )
