"""`bertgen run`: generate for texts, for lines of stdin, or for a file."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .codes import FAILED_LINES
from .console import Progress, say
from .options import add_generation, add_model, generation, make_generator

if TYPE_CHECKING:
    from ..jobs import JobReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The texts or files to generate for, and the form of the output."""
    parser.add_argument("text", nargs="*", metavar="TEXT", help="texts; without them and --input, lines of stdin")
    parser.add_argument("--task", default="text2text-generation", help="(default: text2text-generation)")
    add_model(parser)
    add_generation(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--n-best", type=int, default=1, metavar="N", help="outputs per text, best first")
    group.add_argument("--scores", action="store_true", help="log-probability / length ** length penalty, too")
    group.add_argument("--quiet", action="store_true", help="no progress and no summary")
    group = parser.add_argument_group(
        "files",
        "One record per line, in order.\n"
        "text   outputs, separated by tabs, each behind its score\n"
        "tsv    the same, in columns behind those of the line\n"
        "jsonl  the line's fields and one more: the output, or a list of outputs",
    )
    group.add_argument("--input", metavar="FILE", help="lines to read")
    group.add_argument("--output", metavar="FILE", help="appears when all of it is written (default: stdout)")
    group.add_argument("--format", choices=("text", "tsv", "jsonl"), help="(default: by suffix, else text)")
    group.add_argument("--column", type=int, metavar="N", help="tsv: column of the text, from 1 (default: 1)")
    group.add_argument("--field", metavar="NAME", help="jsonl: field of the text (default: text)")
    group.add_argument("--output-field", metavar="NAME", help="jsonl: field of the output (default: output)")
    group.add_argument(
        "--on-error",
        choices=("stop", "record"),
        default="stop",
        help="a line that cannot be used: stop (default), or record it as failed and go on",
    )
    group.add_argument("--overwrite", action="store_true", help="replace an output that is there already")


def run(args: argparse.Namespace) -> int:
    """Generate, and return the exit code."""
    if args.text and (args.input or args.format):
        raise ConfigError("texts as arguments, or lines with --input and --format: not both")
    if args.output and not args.input:
        raise ConfigError("--output needs --input; what goes to stdout can be redirected")
    from ..jobs import follow_file, follow_lines
    from ..pipelines import check_task

    check_task(args.task)
    generator = make_generator(args)
    options = dict(
        generation(args),
        n_best=args.n_best,
        scores=args.scores,
        column=args.column,
        field=args.field,
        output_field=args.output_field,
        on_error=args.on_error,
    )
    with contextlib.ExitStack() as stack:
        if args.output:
            reports = follow_file(
                generator, args.input, args.output, format=args.format, overwrite=args.overwrite, **options
            )
        else:
            name, lines, format = _lines(args, stack)
            interactive = name == "stdin" and sys.stdin.isatty()
            if interactive:
                say("type a text and press Enter; Ctrl-D ends")
                options["lookahead"] = 1
            reports = follow_lines(generator, lines, _write_stdout, name=name, format=format, **options)
        total = os.path.getsize(args.input) if args.input and os.path.isfile(args.input) else None
        shown = not args.quiet and (bool(args.output) or not sys.stdout.isatty())
        progress = stack.enter_context(Progress(total, shown))
        stack.enter_context(contextlib.closing(reports))
        for report in reports:
            progress.update(report.bytes, report.lines, report.tokens)
    if not args.quiet:
        _summarize(report, args.output)
    return FAILED_LINES if report.failed else 0


def _lines(args: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[str, Iterable[bytes], str]:
    """Name, lines and format of what `run` reads where it writes to stdout; each line has an end."""
    from ..files import open_input
    from ..jobs import FORMAT_OF_SUFFIX

    if args.text:
        return "arguments", (os.fsencode(text) + b"\n" for text in args.text), "text"
    if not args.input:
        return "stdin", map(_ended, sys.stdin.buffer), args.format or "text"
    format = args.format or FORMAT_OF_SUFFIX.get(Path(args.input).suffix.lower(), "text")
    return args.input, map(_ended, stack.enter_context(open_input(args.input))), format


def _ended(line: bytes) -> bytes:
    return line if line.endswith(b"\n") else line + b"\n"


def _write_stdout(record: bytes) -> None:
    sys.stdout.buffer.write(record)
    sys.stdout.buffer.flush()


def _summarize(report: JobReport, output: str | None) -> None:
    for message in report.messages:
        say(message)
    told = len(report.messages)
    if report.failed + report.truncated > told:
        say(f"... and {report.failed + report.truncated - told} more such lines")
    if output:
        seconds = max(report.seconds, 1e-9)
        say(
            f"{output}: {report.lines} lines, {report.failed} failed, {report.truncated} truncated; {seconds:.1f} s, "
            f"{report.lines / seconds:.1f} lines/s, {report.tokens / seconds:.0f} tokens/s"
        )
