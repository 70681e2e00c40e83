"""`bertgen score`: log-probabilities of given targets."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from .exit_codes import FAILED_LINES
from .options import add_model, make_generator
from .records import add_writing, check_output, progress, size_of, summarize, write_record


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
    group.add_argument("--output", metavar="FILE", help="appears when it is complete (default: stdout)")
    group.add_argument("--format", choices=("tsv", "jsonl"), help="(default: by suffix, else tsv)")
    group.add_argument("--source-column", type=int, metavar="N", help="tsv: from 1 (default: 1)")
    group.add_argument("--target-column", type=int, metavar="N", help="tsv: from 1 (default: 2)")
    group.add_argument("--source-field", metavar="NAME", help="jsonl: (default: source)")
    group.add_argument("--target-field", metavar="NAME", help="jsonl: (default: target)")
    group.add_argument(
        "--tokens", action="store_true", help="also write the log-probability of each token; records are JSON lines"
    )
    group.add_argument(
        "--length-penalty",
        type=float,
        metavar="X",
        help="write log-probability / length ** X: in tsv instead of the log-probability, in jsonl as the field score",
    )
    add_writing(group)
    group.add_argument("--quiet", action="store_true", help="no progress and no summary")


def run(args: argparse.Namespace) -> int:
    """Score, and return the exit code."""
    from ..files.atomic import NewFile
    from ..files.text_input import check_input, format_of, lines_of, open_input
    from ..jobs.score import score_lines

    check_output(args)
    format = args.format or ("jsonl" if format_of(args.data) == "jsonl" else "tsv")
    check_input(args.data)  # before the model takes its time
    generator = make_generator(args)
    options: dict[str, Any] = dict(
        format=format,
        source_column=args.source_column,
        target_column=args.target_column,
        source_field=args.source_field,
        target_field=args.target_field,
        tokens=args.tokens,
        length_penalty=args.length_penalty,
        strict=args.strict,
    )
    with contextlib.ExitStack() as stack:
        lines = lines_of(stack.enter_context(open_input(args.data)), args.data)
        write = stack.enter_context(NewFile(args.output, args.overwrite)).write if args.output else write_record
        reports = score_lines(generator, lines, write, name=args.data, **options)
        bar = stack.enter_context(progress(args, size_of(args.data)))
        stack.enter_context(contextlib.closing(reports))
        for report in reports:
            bar.update(report.bytes, report.lines, report.tokens)
    if not args.quiet:
        summarize(report, args)
    return FAILED_LINES if report.failed else 0
