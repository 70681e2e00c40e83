"""`bertgen score`: log-probabilities of given targets."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .codes import FAILED_LINES
from .console import Progress, say
from .options import add_model, make_generator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the pairs, and the form of the output."""
    add_model(parser)
    group = parser.add_argument_group(
        "files",
        "One record per line, in order.\n"
        "tsv    the log-probability of the target, its end token included\n"
        "jsonl  the line's fields and log_prob",
    )
    group.add_argument("--data", required=True, metavar="FILE", help="source TAB target, or JSON lines")
    group.add_argument("--output", metavar="FILE", help="appears when all of it is written (default: stdout)")
    group.add_argument("--format", choices=("tsv", "jsonl"), help="(default: by suffix, else tsv)")
    group.add_argument("--source-column", type=int, metavar="N", help="tsv: from 1 (default: 1)")
    group.add_argument("--target-column", type=int, metavar="N", help="tsv: from 1 (default: 2)")
    group.add_argument("--source-field", metavar="NAME", help="jsonl: (default: source)")
    group.add_argument("--target-field", metavar="NAME", help="jsonl: (default: target)")
    group.add_argument("--tokens", action="store_true", help="what each token gets, too; JSON lines in any case")
    group.add_argument(
        "--length-penalty",
        type=float,
        metavar="X",
        help="log-probability / length ** X: in tsv instead of it, in jsonl as score beside it",
    )
    group.add_argument(
        "--strict", action="store_true", help="stop at a line that cannot be used, instead of recording it as failed"
    )
    group.add_argument("--overwrite", action="store_true", help="replace an output that is there already")
    group.add_argument("--quiet", action="store_true", help="no progress and no summary")


def run(args: argparse.Namespace) -> int:
    """Score, and return the exit code."""
    from ..files import open_input
    from ..jobs import FORMAT_OF_SUFFIX, NewFile
    from ..pairs import score_lines

    if args.output and os.path.realpath(args.output) == os.path.realpath(args.data):
        raise ConfigError(f"--output {args.output} is the data")
    by_suffix = FORMAT_OF_SUFFIX.get(Path(args.data).suffix.lower())
    generator = make_generator(args)
    options: dict[str, Any] = dict(
        format=args.format or ("jsonl" if by_suffix == "jsonl" else "tsv"),
        source_column=args.source_column,
        target_column=args.target_column,
        source_field=args.source_field,
        target_field=args.target_field,
        tokens=args.tokens,
        length_penalty=args.length_penalty,
        strict=args.strict,
    )
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(open_input(args.data))
        write: Callable[[bytes], None] = _write_stdout
        if args.output:
            write = stack.enter_context(NewFile(args.output, args.overwrite)).write
        total = os.path.getsize(args.data) if os.path.isfile(args.data) else None
        shown = not args.quiet and (bool(args.output) or not sys.stdout.isatty())
        reports = score_lines(generator, lines, write, name=args.data, **options)
        progress = stack.enter_context(Progress(total, shown))
        stack.enter_context(contextlib.closing(reports))
        for report in reports:
            progress.update(report.bytes, report.lines, report.tokens)
    if not args.quiet:
        for message in report.messages:
            say(message)
        if (more := report.failed + report.truncated - len(report.messages)) > 0:
            say(f"... and {more} more such lines")
        if args.output:
            seconds = max(report.seconds, 1e-9)
            say(
                f"{args.output}: {report.lines} lines, {report.failed} failed, {report.truncated} truncated; "
                f"{seconds:.1f} s, {report.lines / seconds:.1f} lines/s, {report.tokens / seconds:.0f} tokens/s"
            )
    return FAILED_LINES if report.failed else 0


def _write_stdout(record: bytes) -> None:
    sys.stdout.buffer.write(record)
    sys.stdout.buffer.flush()
