"""Jobs: a file of texts in, a file of outputs out, one record for each line, in the order of the lines.

Lines end with LF or CRLF; records end with LF, and the last one like the last line. A byte-order mark is dropped. The
output appears under its name when all of it is on the disk, and not before.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections import abc, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .errors import ConfigError, InputError, OutputError
from .files import open_input
from .generator import LOOKAHEAD, Generator, Output

FORMAT_OF_SUFFIX = {".txt": "text", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
MESSAGES = 20  # of a report; whatever went wrong in a million lines, a person reads the first few
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ONE_LINE = str.maketrans("\t\n\r", "   ")


@dataclass
class JobReport:
    """What a job has done so far.

    Attributes:
        lines: answered, failed ones included.
        failed: lines that could not be used and were recorded as such.
        truncated: lines whose end was not read.
        tokens: generated, end tokens included, of the best output of each line.
        bytes: of the input that were answered.
        seconds: since the first line was read.
        messages: file, line and reason of the first lines that failed or were truncated.
    """

    lines: int = 0
    failed: int = 0
    truncated: int = 0
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0
    messages: list[str] = field(default_factory=list)


def run_file(generator: Generator, input: str | os.PathLike, output: str | os.PathLike, **options: Any) -> JobReport:
    """Generate for every line of a file into another; arguments and errors as `follow_file`, whose end it waits for."""
    return deque(follow_file(generator, input, output, **options), maxlen=1).pop()


def follow_file(
    generator: Generator,
    input: str | os.PathLike,
    output: str | os.PathLike,
    *,
    format: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> abc.Generator[JobReport, None, None]:
    """Generate for every line of a file into another; yields the report, brought up to date, at every line.

    Memory holds a bounded number of lines, however long the file. If the job fails, or is left before its end, nothing
    appears under the output's name; a device or pipe is written to directly.

    Args:
        generator: does the work.
        input, output: paths, of different files.
        format: "text", "tsv" or "jsonl"; by default what the suffixes .txt, .tsv, .jsonl and .ndjson say, else "text".
        overwrite: replace a file that is there already.
        options: those of `follow_lines`, except `name`.

    Raises:
        ConfigError: bad options, the output is there already, or it is the input.
        InputError: the input cannot be read, or one of its lines cannot be used (file, line, reason).
        OutputError: the output cannot be written, the disk is full.
    """
    format = _format_of(input, output) if format is None else format
    if os.path.realpath(input) == os.path.realpath(output):
        raise ConfigError(f"{output} is the input; the output needs a name of its own")
    with open_input(input) as lines, NewFile(output, overwrite) as file:
        yield from follow_lines(generator, lines, file.write, name=str(input), format=format, **options)


def follow_lines(
    generator: Generator,
    lines: Iterable[bytes],
    write: Callable[[bytes], Any],
    *,
    name: str,
    format: str = "text",
    column: int | None = None,
    field: str | None = None,
    output_field: str | None = None,
    n_best: int = 1,
    scores: bool = False,
    on_error: str = "stop",
    lookahead: int = LOOKAHEAD,
    **options: Any,
) -> abc.Generator[JobReport, None, None]:
    """Generate for lines and write their records in order; yields the report, brought up to date, at every line.

    A record has `n_best` outputs, best first. In text format they are separated by tabs; in TSV they are columns behind
    those of the line; in JSONL `output_field` joins the fields of the line, a string or with `n_best` above 1 a list,
    and with `scores` so does `<output_field>_score`. In text and TSV a score stands in a column before its output, and
    white space that would end a line or a column is written as a space. Outputs of a line without tokens are empty.

    Args:
        generator: does the work.
        lines: each with its line end, as a file opened in binary mode gives them.
        write: takes the bytes of one record.
        name: of the input, for messages.
        format: "text", "tsv" or "jsonl".
        column: TSV: which column is the text, from 1 (default 1).
        field: JSONL: which field is the text (default "text"). output_field: the new one (default "output").
        n_best: outputs per line.
        scores: write the scores, too.
        on_error: "stop" raises at a line that cannot be used; "record" writes empty outputs (JSONL: the line's fields,
            if it has any, and "error") and goes on.
        lookahead: lines read before the first is answered.
        options: of `Generator.generate`.

    Raises:
        ConfigError: bad options. InputError: a line that cannot be used.
    """
    records = _make_format(format, column, field, output_field, n_best, scores)
    if on_error not in ("stop", "record"):
        raise ConfigError(f"on_error must be 'stop' or 'record', got {on_error!r}")
    report, start = JobReport(), time.monotonic()
    waiting: dict[int, _Line] = {}
    answers: dict[int, Output] = {}

    def texts() -> Iterator[str]:
        for index, raw in enumerate(lines):
            content = raw.removesuffix(b"\n").removesuffix(b"\r")
            if index == 0:
                content = content.removeprefix(_BYTE_ORDER_MARK)
            try:
                text, problem = records.text(content), None
            except InputError as error:
                text, problem = "", error
                if on_error == "stop":
                    raise InputError(f"{name}, line {index + 1}: {error}") from error
            waiting[index] = _Line(content, raw.endswith(b"\n"), len(raw), problem)
            yield text

    stream = generator.stream(
        texts(), scores=scores, num_return_sequences=n_best, return_errors=True, lookahead=lookahead, **options
    )
    written = 0
    for index, answer in stream:
        line = waiting[index]
        answers[index] = answer = answer if line.problem is None else replace(answer, error=line.problem)
        report.lines += 1
        report.bytes += line.size
        if answer.error is not None:
            message = f"{name}, line {index + 1}: {answer.error}"
            if on_error == "stop":
                raise InputError(message)
            report.failed += 1
            report.messages += [message][: MESSAGES - len(report.messages)]
        else:
            report.tokens += len(answer.token_ids)
            if answer.truncated:
                report.truncated += 1
                message = f"{name}, line {index + 1}: cut to {generator.max_input_length} tokens"
                report.messages += [message][: MESSAGES - len(report.messages)]
        while written in answers:
            line = waiting.pop(written)
            write(records.record(line.content, answers.pop(written)) + b"\n" * line.ended)
            written += 1
        report.seconds = time.monotonic() - start
        yield report
    yield report


class _Line(NamedTuple):
    """A line that waits for its answer: without its end, whether it had one, its size with it, and what is wrong."""

    content: bytes
    ended: bool
    size: int
    problem: InputError | None


class _Format(Protocol):
    """How lines hold texts, and records outputs."""

    def text(self, line: bytes) -> str:
        """The text of a line; InputError where it has none."""

    def record(self, line: bytes, answer: Output) -> bytes:
        """What is written for a line, without a line end."""


@dataclass(frozen=True)
class _Text:
    n_best: int
    scores: bool

    def text(self, line: bytes) -> str:
        return _decode(line)

    def record(self, line: bytes, answer: Output) -> bytes:
        cells: list[str] = []
        for one in _candidates(answer):
            if self.scores:
                cells.append(f"{one.score:.4f}")
            cells.append(one.text.translate(_ONE_LINE))
        cells += [""] * (self.n_best * (1 + self.scores) - len(cells))
        return "\t".join(cells).encode()


@dataclass(frozen=True)
class _Tsv(_Text):
    column: int

    def text(self, line: bytes) -> str:
        columns = line.split(b"\t")
        if len(columns) < self.column:
            raise InputError(f"{len(columns)} columns separated by tabs, the text is in column {self.column}")
        return _decode(columns[self.column - 1])

    def record(self, line: bytes, answer: Output) -> bytes:
        return line + b"\t" + super().record(line, answer)


@dataclass(frozen=True)
class _JsonLines:
    n_best: int
    scores: bool
    field: str
    output_field: str

    def text(self, line: bytes) -> str:
        values = _json_object(line)
        text = values.get(self.field)
        if self.field not in values:
            raise InputError(f"no field {self.field!r}; there are {', '.join(map(repr, values)) or 'none'}")
        if not isinstance(text, str):
            raise InputError(f"field {self.field!r} must be a string, got {json.dumps(text)[:80]}")
        added = {self.output_field, f"{self.output_field}_score"} if self.scores else {self.output_field}
        for taken in sorted(values.keys() & added - {self.field}):
            raise InputError(f"field {taken!r} is there already; name another output field")
        return text

    def record(self, line: bytes, answer: Output) -> bytes:
        if answer.error is not None:
            with contextlib.suppress(InputError):
                return _dump({**_json_object(line), "error": str(answer.error)})
            return _dump({"error": str(answer.error)})
        found = _candidates(answer)
        texts, scores = [one.text for one in found] or [""], [one.score for one in found] or [None]
        values = {**_json_object(line), self.output_field: texts if self.n_best > 1 else texts[0]}
        if self.scores:
            values[f"{self.output_field}_score"] = scores if self.n_best > 1 else scores[0]
        return _dump(values)


def _make_format(
    format: str, column: int | None, field: str | None, output_field: str | None, n_best: int, scores: bool
) -> _Format:
    if format not in ("text", "tsv", "jsonl"):
        raise ConfigError(f"format must be text, tsv or jsonl, got {format!r}")
    for name, value, home in (
        ("column", column, "tsv"),
        ("field", field, "jsonl"),
        ("output_field", output_field, "jsonl"),
    ):
        if value is not None and format != home:
            raise ConfigError(f"{name}={value!r} is for the format {home}, not for {format}")
    if column is not None and column < 1:
        raise ConfigError(f"column must be at least 1, got {column}")
    if format == "tsv":
        return _Tsv(n_best, scores, 1 if column is None else column)
    if format == "jsonl":
        return _JsonLines(n_best, scores, "text" if field is None else field, output_field or "output")
    return _Text(n_best, scores)


def _format_of(input: str | os.PathLike, output: str | os.PathLike) -> str:
    formats = [FORMAT_OF_SUFFIX.get(Path(path).suffix.lower()) for path in (input, output)]
    if None not in formats and formats[0] != formats[1]:
        raise ConfigError(f"by their names {input} is {formats[0]} and {output} is {formats[1]}; say which with format")
    return formats[0] or formats[1] or "text"


def _candidates(answer: Output) -> list[Output]:
    """The outputs of an answer; none for a line that failed or has no tokens."""
    return [answer, *answer.alternatives] if answer.token_ids else []


def _decode(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: {error.reason} at byte {error.start}") from error


def _json_object(line: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        values = json.loads(_decode(line), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"not a JSON object: {line[:80].decode(errors='replace')}")
    return values


def _dump(values: dict[str, Any]) -> bytes:
    try:
        return json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can write
        return json.dumps(values).encode()


class NewFile:
    """A file that appears under its name when the `with` block ends well, whole and on the disk, or not at all.

    A device or a pipe is written to directly.

    Raises:
        ConfigError: the file is there already and `overwrite` is not set.
        OutputError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike, overwrite: bool = False):
        self.path, self.overwrite = path, overwrite
        self._target = Path(os.path.realpath(path))  # behind a link: the link stays
        special = self._target.exists() and not self._target.is_file()
        self._temporary = None if special else self._target.with_name(f".bertgen-{secrets.token_hex(4)}.tmp")

    def __enter__(self) -> NewFile:
        self._refuse_existing()
        with self._reported():
            self._file = open(self._temporary or self._target, "xb" if self._temporary else "wb")
        return self

    def write(self, data: bytes) -> None:
        """Append to the file."""
        with self._reported():
            self._file.write(data)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._reported(), self._file:
                if kind is None:
                    self._file.flush()
                    if self._temporary:
                        os.fsync(self._file.fileno())
            if kind is None and self._temporary:
                self._refuse_existing()
                with self._reported():
                    os.replace(self._temporary, self._target)
                    _sync_directory(self._target.parent)
        except OutputError:
            if kind is None:
                raise
        finally:
            if self._temporary:
                self._temporary.unlink(missing_ok=True)

    def _refuse_existing(self) -> None:
        if self._temporary and self._target.exists() and not self.overwrite:
            raise ConfigError(f"{self.path} is there already; overwrite replaces it")

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}") from error


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
