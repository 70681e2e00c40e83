"""`bertgen run`: generate for texts, for lines of stdin, or for a file."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, OutputError
from .console import print_message
from .exit_codes import FAILED_LINES
from .options import add_generation, add_model, generation_options, make_generator
from .records import add_writing, progress, size_of, summarize, write_record

if TYPE_CHECKING:
    from ..jobs import JobReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The texts or files to generate for, and the form of the output."""
    parser.add_argument("text", nargs="*", metavar="TEXT", help="texts; without them and --input, lines of stdin")
    parser.add_argument("--task", default="text2text-generation", help="(default: text2text-generation)")
    add_model(parser, several_devices=True)
    add_generation(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--n-best", type=int, default=1, metavar="N", help="outputs per text, best first")
    group.add_argument("--scores", action="store_true", help="also write log-probability / length ** length penalty")
    group.add_argument("--quiet", action="store_true", help="no progress and no summary")
    group = parser.add_argument_group(
        "files",
        "One record per line, in order.\n"
        "text   outputs, separated by tabs, each after its score\n"
        "tsv    the same, in columns after those of the line\n"
        "jsonl  the line's fields and one more: the output, or a list of outputs",
    )
    group.add_argument("--input", metavar="FILE", help="lines to read")
    group.add_argument(
        "--output",
        metavar="FILE",
        help="appears when it is complete (default: stdout); until then FILE.part and FILE.job hold the finished "
        "records, and the same command resumes the job",
    )
    group.add_argument("--format", choices=("text", "tsv", "jsonl"), help="(default: by suffix, else text)")
    group.add_argument("--column", type=int, metavar="N", help="tsv: column of the text, from 1 (default: 1)")
    group.add_argument("--field", metavar="NAME", help="jsonl: field of the text (default: text)")
    group.add_argument("--output-field", metavar="NAME", help="jsonl: field of the output (default: output)")
    add_writing(group)
    group.add_argument("--restart", action="store_true", help="discard the records of an earlier run")
    group.add_argument(
        "--window", type=int, metavar="N", help="lines processed together (default: by model, at most 4096)"
    )
    group.add_argument(
        "--commit-seconds", type=float, metavar="X", help="seconds of work that a killed job may lose (default: 2)"
    )
    group.add_argument("--num-shards", type=int, metavar="N", help="split the input into N ranges of lines")
    group.add_argument("--shard-index", type=int, metavar="I", help="process only this range, from 0")
    group.add_argument("--stats", metavar="FILE", help="write statistics as JSON at the end; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Generate, and return the exit code."""
    _check(args)
    format = _format(args)
    from ..files.text_input import check_input
    from ..jobs import follow_file, follow_lines, statistics
    from ..pipelines import check_task

    check_task(args.task)
    if args.input:
        check_input(args.input)  # before the model takes its time
    generator = make_generator(args)
    options = dict(
        generation_options(args, generator),
        n_best=args.n_best,
        scores=args.scores,
        column=args.column,
        field=args.field,
        output_field=args.output_field,
        strict=args.strict,
    )
    if args.window is not None:
        options["window"] = args.window
    with contextlib.ExitStack() as stack:
        stack.enter_context(_second_interrupt_ends())
        if args.output:
            if args.num_shards is not None:
                options.update(num_shards=args.num_shards, shard_index=args.shard_index)
            options.update(format=format, overwrite=args.overwrite, restart=args.restart)
            if args.commit_seconds is not None:
                options["commit_seconds"] = args.commit_seconds
            reports = follow_file(generator, args.input, args.output, **options)
        else:
            name, lines = _lines(args, stack)
            if name == "stdin" and sys.stdin.isatty():
                print_message("type a text and press Enter; Ctrl-D ends")
                options["window"] = 1
            reports = follow_lines(generator, lines, write_record, name=name, format=format, **options)
        report = _run_to_end(reports, args)
    if args.stats:
        _write_statistics(args.stats, statistics(report, generator))
    if not args.quiet:
        summarize(report, args)
    return FAILED_LINES if report.failed else 0


def _check(args: argparse.Namespace) -> None:
    if args.text and (args.input or args.format):
        raise ConfigError("texts as arguments, or lines with --input and --format: not both")
    if args.text == ["-"]:
        raise ConfigError("- is a text here; without TEXT and --input the lines of stdin are read")
    if args.output and not args.input:
        raise ConfigError("--output needs --input; what goes to stdout can be redirected")
    if (args.num_shards is None) != (args.shard_index is None):
        raise ConfigError("--num-shards and --shard-index go together")
    if not args.output:
        for flag, is_set in (
            ("--num-shards", args.num_shards is not None),
            ("--restart", args.restart),
            ("--commit-seconds", args.commit_seconds is not None),
        ):
            if is_set:
                raise ConfigError(f"{flag} needs --output")
        if args.stats == "-":
            raise ConfigError("--stats - needs --output: records go to stdout")
    if args.stats and args.stats != "-":
        for path in filter(None, (args.input, args.output)):
            grown = (path, f"{path}.part", f"{path}.job") if path is args.output else (path,)
            if os.path.realpath(args.stats) in map(os.path.realpath, grown):
                raise ConfigError(f"--stats {args.stats} is the input or the output")
        folder = os.path.dirname(os.path.realpath(args.stats))
        if not os.path.isdir(folder):  # before the work, not after it
            raise OutputError(f"{args.stats} cannot be written: there is no folder {folder}")


def _run_to_end(reports: Generator[JobReport, None, None], args: argparse.Namespace) -> JobReport:
    """Run a job to its end with a progress bar; returns the last report."""
    report = None
    try:
        with contextlib.closing(reports):
            report = next(reports)
            if report.before and not args.quiet:
                print_message(f"resuming at line {report.first_line + report.lines + 1} of {args.input}")
            total, done = report.total_bytes, report.bytes
            if total is None:
                total = size_of(args.input)
            with progress(args, None if total is None else total - done) as bar:
                for report in reports:
                    run = report.this_run
                    bar.update(run.bytes, run.lines, run.tokens)
            return report
    except BaseException:
        if report and report.committed and not args.quiet:
            print_message(f"{report.committed} lines are done and kept; the same command goes on from there")
        raise


@contextlib.contextmanager
def _second_interrupt_ends() -> Iterator[None]:
    """The first Ctrl-C stops in good order, a second one at once, as for a program without a handler."""
    former = signal.getsignal(signal.SIGINT)
    if former is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _format(args: argparse.Namespace) -> str:
    """The format of --format, else of the names of the files."""
    from ..files import text_input
    from ..files.line_formats import format_of

    if args.format:
        return args.format
    if args.input and args.output:
        return format_of(args.input, args.output)
    return (text_input.format_of(args.input) if args.input else None) or "text"


def _lines(args: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[str, Iterable[bytes]]:
    """Name and lines of the input of a job that writes to stdout."""
    from ..files.text_input import lines_of, open_input

    if args.text:
        return "arguments", (os.fsencode(text) + b"\n" for text in args.text)
    if not args.input:
        return "stdin", lines_of(sys.stdin.buffer, "stdin")
    return args.input, lines_of(stack.enter_context(open_input(args.input)), args.input)


def _write_statistics(path: str, values: dict[str, Any]) -> None:
    from ..files.atomic import NewFile

    if path == "-":
        print(json.dumps(values))
        return
    with NewFile(path, overwrite=True) as file:
        file.write(json.dumps(values, indent=2).encode() + b"\n")
