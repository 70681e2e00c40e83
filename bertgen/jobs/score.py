"""Lines that hold a source and a target each, and the likelihoods that a model gives them: one record for each line.

Lines end with LF or CRLF, records with LF. A byte-order mark is dropped.
"""

from __future__ import annotations

import json
import time
from collections import abc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from ..errors import ConfigError, InputError
from ..files.text_input import check_json_lines, check_length, decoded, size_of
from ..generator import LOOKAHEAD, Generator
from ..generator.scorer import Likelihood
from .line_formats import dumped, parsed, readable
from .report import MESSAGES, JobReport

ADDED = ("log_prob", "score", "tokens", "token_log_probs", "error")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def score_lines(
    generator: Generator,
    lines: Iterable[bytes],
    write: Callable[[bytes], Any],
    *,
    name: str,
    format: str = "tsv",
    source_column: int | None = None,
    target_column: int | None = None,
    source_field: str | None = None,
    target_field: str | None = None,
    tokens: bool = False,
    length_penalty: float | None = None,
    truncation: bool | None = None,
    strict: bool = False,
    lookahead: int = LOOKAHEAD,
) -> abc.Generator[JobReport, None, None]:
    """Score the pair of each line and write the records in order; yields the report, brought up to date, at every line.

    For TSV a record is a number: the log-probability, or with `length_penalty` that over length ** length_penalty. For
    JSONL it is the line's fields with `log_prob`, with `length_penalty` also `score`. With `tokens` it is JSON in both
    cases, and has the target's `tokens` and `token_log_probs`. A blank line is answered by an empty one.

    Args:
        generator: does the work.
        lines: each with its line end, as a file opened in binary mode gives them.
        write: takes the bytes of one record.
        name: of the input, for messages.
        format: "tsv" or "jsonl".
        source_column, target_column: TSV: from 1 (default 1 and 2). White space around them is dropped.
        source_field, target_field: JSONL: default "source" and "target".
        tokens: write what each token gets.
        length_penalty, truncation, lookahead: as `Generator.stream_scores`.
        strict: raise at a line that cannot be used, instead of writing an empty record (JSON: the line's fields, if it
            has any, and "error") and going on.

    Raises:
        ConfigError: bad options. InputError: a line that cannot be used, where that is strict; the input is no text, or
            it begins with several lines none of which can be used.
    """
    form = _make_format(format, source_column, target_column, source_field, target_field)
    report, start = JobReport(), time.monotonic()
    waiting: dict[int, _Line] = {}
    answers: dict[int, Likelihood] = {}

    def pairs() -> Iterator[tuple[str, str]]:
        for index, raw in enumerate(lines):
            content = raw.removesuffix(b"\n").removesuffix(b"\r")
            if index == 0:
                content = content.removeprefix(_BYTE_ORDER_MARK)
                if format == "jsonl":
                    check_json_lines(content, name)
            if not content.strip():
                waiting[index] = _Line({}, len(raw), None, blank=True)
                yield "", ""
                continue
            try:
                check_length(raw)
                fields, problem = form.fields(content), None
            except InputError as error:
                if strict:
                    raise InputError(f"{name}, line {index + 1}: {error}") from error
                fields, problem = form.readable(content), error
            waiting[index] = _Line(fields, size_of(raw), problem)
            yield ("", "") if problem else (fields[form.names[0]], fields[form.names[1]])

    def record(line: _Line, answer: Likelihood) -> bytes:
        if line.blank:
            return b""
        if not tokens and format == "tsv":
            return b"" if answer.error else f"{answer.total if length_penalty is None else answer.score:.6f}".encode()
        values = dict(line.fields)
        if answer.error is not None:
            return dumped({**values, "error": str(answer.error)})
        values["log_prob"] = answer.total
        if length_penalty is not None:
            values["score"] = answer.score
        if tokens:
            values["tokens"] = generator.tokenizer.convert_ids_to_tokens(list(answer.token_ids))
            values["token_log_probs"] = list(answer.log_probs)
        return dumped(values)

    stream = generator.stream_scores(
        pairs(), length_penalty=length_penalty, truncation=truncation, return_errors=True, lookahead=lookahead
    )
    written, read = 0, 0  # lines; those of the first window
    held: list[bytes] = []  # records of it as long as all its lines have failed
    for index, answer in stream:
        line = waiting[index]
        read = read or len(waiting)
        if line.blank:
            answer = replace(answer, error=None)
        answers[index] = answer = answer if line.problem is None else replace(answer, error=line.problem)
        report.lines += 1
        report.bytes += line.size
        message = None
        if answer.error is not None:
            message = f"{name}, line {index + 1}: {answer.error}"
            if strict:
                raise InputError(message)
            report.failed += 1
        elif not line.blank:
            report.tokens += len(answer.token_ids)
            if answer.truncated:
                report.truncated += 1
                message = f"{name}, line {index + 1}: source cut to {generator.max_input_length} tokens"
        report.messages += [message][: MESSAGES - len(report.messages)] if message else []
        while written in answers:
            held.append(record(waiting.pop(written), answers.pop(written)) + b"\n")
            written += 1
        if report.failed == report.lines == read > 1:
            reason = f"each of the first {read} lines failed, the rest is not tried; {report.messages[0]}"
            raise InputError(f"{name}: {reason}")
        if report.failed < report.lines or report.lines >= read:
            for one in held:
                write(one)
            held.clear()
        report.seconds = time.monotonic() - start
        yield report
    yield report


class _Line(NamedTuple):
    """A line that waits for its answer: its fields, its size with its end, what is wrong with it, if it is blank."""

    fields: dict[str, Any]
    size: int
    problem: InputError | None
    blank: bool = False


class _Format(Protocol):
    """How lines hold pairs."""

    @property
    def names(self) -> tuple[str, str]:
        """Fields of source and target."""

    def fields(self, line: bytes) -> dict[str, Any]:
        """The fields of a line, a source and a target among them; InputError where it has none."""

    def readable(self, line: bytes) -> dict[str, Any]:
        """The fields of a line that has no pair, as far as it has any."""


@dataclass(frozen=True)
class _Tsv:
    columns: tuple[int, int]
    names: tuple[str, str] = ("source", "target")

    def fields(self, line: bytes) -> dict[str, Any]:
        cells = decoded(line).split("\t")
        if len(cells) < max(self.columns):
            raise InputError(f"{len(cells)} tab-separated columns, {max(self.columns)} needed")
        return {name: cells[column - 1].strip() for name, column in zip(self.names, self.columns, strict=True)}

    def readable(self, line: bytes) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class _JsonLines:
    names: tuple[str, str]

    def fields(self, line: bytes) -> dict[str, Any]:
        values = parsed(line)
        for name in self.names:
            if name not in values:
                raise InputError(f"no field {name!r}; there are {', '.join(map(repr, values)) or 'none'}")
            if not isinstance(values[name], str):
                raise InputError(f"field {name!r} must be a string, got {json.dumps(values[name])[:80]}")
        for taken in ADDED:
            if taken in values:
                raise InputError(f"field {taken!r} is there already; it is one that scoring adds")
        return values

    def readable(self, line: bytes) -> dict[str, Any]:
        return readable(line)


def _make_format(
    format: str,
    source_column: int | None,
    target_column: int | None,
    source_field: str | None,
    target_field: str | None,
) -> _Format:
    if format not in ("tsv", "jsonl"):
        raise ConfigError(f"format must be tsv or jsonl, got {format!r}")
    for name, value, home in (
        ("source_column", source_column, "tsv"),
        ("target_column", target_column, "tsv"),
        ("source_field", source_field, "jsonl"),
        ("target_field", target_field, "jsonl"),
    ):
        if value is not None and format != home:
            raise ConfigError(f"{name}={value!r} is for the format {home}, not for {format}")
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    if format == "tsv":
        return _Tsv((source_column or 1, target_column or 2))
    return _JsonLines((source_field or "source", target_field or "target"))
