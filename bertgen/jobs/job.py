"""A job: from its options to its report."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import abc, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..config.validators import check_integer, check_number
from ..errors import ConfigError, OutputError
from ..files.atomic import NewFile
from ..files.line_formats import format_of
from ..files.text_input import is_regular, lines_of, open_input
from ..generator import Generator
from .generate import GenerationProcessor, format_settings
from .input_file import InputFile
from .metadata import job_metadata
from .part_file import PartFile
from .report import JobReport

COMMIT_SECONDS = 2.0  # between two commits; each takes some milliseconds of the disk's
COMMIT_LINES = 4096
clock = time.monotonic


def run_file(generator: Generator, input: str | os.PathLike, output: str | os.PathLike, **options: Any) -> JobReport:
    """Generate for every line of a file into another, to the end; arguments and errors as `follow_file`."""
    return deque(follow_file(generator, input, output, **options), maxlen=1).pop()


def follow_file(
    generator: Generator,
    input: str | os.PathLike,
    output: str | os.PathLike,
    *,
    format: str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    num_shards: int = 1,
    shard_index: int = 0,
    commit_seconds: float = COMMIT_SECONDS,
    **options: Any,
) -> abc.Generator[JobReport, None, None]:
    """Generate for every line of a file into another; yields the report before the first line and at every line.

    Memory holds one window of lines, however long the file. After a window the records are committed to the disk, in
    OUT.part beside the output OUT (`PartFile`), if `commit_seconds` or 4096 lines have passed since the last commit;
    also when the job fails or its generator is closed. After a kill, the same call resumes after the last committed
    window, and the output is the same, byte for byte, because the windows do not depend on time. This does not hold for
    sampling without a seed or for `max_time`. Nothing appears under the output's name before the end.

    Input or output may be a pipe or a device: a device is written to directly, and nothing is resumed.

    Args:
        generator: does the work.
        input, output: paths, of different files.
        format: "text", "tsv" or "jsonl"; by default what the suffixes .txt, .tsv, .jsonl and .ndjson say, "text" where
            there is none.
        overwrite: replace a file that is there already.
        restart: discard the records of an earlier run.
        num_shards, shard_index: process only lines [lines * index // shards, lines * (index + 1) // shards), from 0;
            the outputs of all shards, one after the other, are the output of the whole.
        commit_seconds: of work that a killed job may lose, besides its current window; 0 commits every window.
        options: those of `follow_lines`, except `name` and `first`.

    Raises:
        ConfigError: bad options; a file has the suffix of no format; the output is there already, it is the input, or
            another process writes it; an earlier run had other lines, options, weights or versions (the message
            says which).
        InputError: the input cannot be read, is no text, or has changed meanwhile; one of its lines cannot be used
            (file, line, reason) and the job is `strict`, or none of the first window can be.
        OutputError: the output cannot be written, the disk is full.
    """
    format = format_of(input, output) if format is None else format
    if check_integer(0, shard_index, "shard_index") >= check_integer(1, num_shards, "num_shards"):
        raise ConfigError(f"shard_index must be under num_shards={num_shards}, got {shard_index}")
    check_number(0, math.inf, commit_seconds, "commit_seconds")
    part = PartFile(output, overwrite, restart)
    if Path(os.path.realpath(input)) in part.names:
        raise ConfigError(f"{output} is the input, or grows there; it needs a name of its own")
    processor = GenerationProcessor.from_options(generator, name=str(input), format=format, **options)
    with open_input(input) as file:
        if is_regular(file) and (part.target.is_file() or not part.target.exists()):
            with part:
                source = InputFile(file, str(input))
                yield from _follow_regular_file(processor, source, part, num_shards, shard_index, commit_seconds)
        elif num_shards > 1:
            raise ConfigError(f"shards are of files: {input} or {output} is none")
        else:
            with NewFile(output, overwrite) as new:
                yield from _follow_stream(processor, lines_of(file, input), new.write, 0)


def follow_lines(
    generator: Generator,
    lines: Iterable[bytes],
    write: Callable[[bytes], Any],
    *,
    name: str,
    format: str = "text",
    first: int = 0,
    **options: Any,
) -> abc.Generator[JobReport, None, None]:
    """Generate for lines and write their records in order; yields the report before the first line and at every line.

    A record has `n_best` outputs, best first. In text format they are separated by tabs; in TSV they are columns after
    those of the line; in JSONL `output_field` joins the fields of the line, a string or with `n_best` above 1 a list,
    and with `scores` so does `<output_field>_score`. In text and TSV a score stands in a column before its output, and
    white space that would end a line or a column is written as a space. Outputs of a line without tokens are empty. The
    record of a blank line of JSONL is empty.

    A line that cannot be used gets empty outputs; in JSONL the line's fields, if it has any, and "error".

    Args:
        generator: does the work.
        lines: each with its line end, as a file opened in binary mode gives them; `files.lines_of` bounds them, and
            those of a pipe are processed as they come.
        write: takes the bytes of one record.
        name: of the input, for messages.
        format: "text", "tsv" or "jsonl".
        first: number of the first line, from 0; messages and the seeds of sampling count from there.
        options: of `Generator.generate`, and
            column: TSV: which column is the text, from 1 (default 1).
            field: JSONL: which field is the text (default "text"). output_field: the new one (default "output").
            n_best: outputs per line.
            scores: write the scores, too.
            strict: raise at a line that cannot be used.
            window: lines that are processed together; the next line is read when all of them are done. None takes a
                number that suits the model, at most 4096.

    Raises:
        ConfigError: bad options. InputError: a line that cannot be used, with `strict`; the input is no text, or the
            first window has several lines and none of them can be used.
    """
    processor = GenerationProcessor.from_options(generator, name=name, format=format, **options)
    yield from _follow_stream(processor, lines, write, first)


def _follow_stream(
    processor: GenerationProcessor, lines: Iterable[bytes], write: Callable[[bytes], Any], first: int
) -> abc.Generator[JobReport, None, None]:
    report = JobReport(first_line=first)
    yield report
    for window in processor.windows(lines):
        yield from processor.process(window, first, write, report)
        first += len(window)
    yield report


def _follow_regular_file(
    processor: GenerationProcessor,
    source: InputFile,
    part: PartFile,
    num_shards: int,
    shard_index: int,
    commit_seconds: float,
) -> abc.Generator[JobReport, None, None]:
    first, end = source.shard(num_shards, shard_index)
    start, stop = source.offset(first), source.offset(end)
    metadata = {
        "input": f"{source.bytes} bytes, {source.digest}",
        "shard": f"{shard_index} of {num_shards}",
        **job_metadata(processor.generator, format_settings(processor.format), processor.window, processor.options),
    }
    saved = part.begin(metadata)
    report = JobReport(first_line=first, total_lines=end - first, total_bytes=stop - start, committed=0)
    if saved is not None:
        try:
            report.restore(saved)
        except (KeyError, TypeError, ValueError) as error:
            raise part.damage_error(error) from error
    finished, since = report.saved(), clock()  # of whole windows

    def commit() -> None:
        nonlocal since
        part.commit(finished, complete=finished["lines"] == report.total_lines)
        report.committed, since = finished["lines"], clock()

    try:
        yield report
        for window in processor.windows(source.read(start + report.bytes, report.total_lines - report.lines)):
            yield from processor.process(window, first + report.lines, part.write, report)
            source.check()
            part.end_window()
            finished = report.saved()
            if clock() - since >= commit_seconds or report.lines - report.committed >= COMMIT_LINES:
                commit()
    except BaseException:  # a signal, or a caller that closes the generator
        if finished["lines"] > report.committed:
            with contextlib.suppress(OutputError):
                commit()
        raise
    if report.lines > report.committed or report.total_lines == 0:
        commit()
    source.check()
    part.finish()
    yield report
