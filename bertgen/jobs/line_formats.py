"""How a line of a file holds a text, and its record the outputs: plain text, TSV, JSON lines."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import ConfigError, InputError
from ..files import text_input
from ..files.text_input import decoded
from ..generator import Output

_DIGITS = 4300  # of an integer, where Python stops
_ONE_LINE = str.maketrans("\t\n\r", "   ")


class LineFormat(Protocol):
    """How lines hold texts, and records outputs."""

    def text(self, line: bytes) -> str:
        """The text of a line, nothing of a blank one; InputError where it has none."""

    def record(self, line: bytes, answer: Output) -> bytes:
        """What is written for a line, without a line end."""


@dataclass(frozen=True)
class Text:
    """The line is the text; the record is the outputs, separated by tabs, each behind its score."""

    n_best: int
    scores: bool

    def text(self, line: bytes) -> str:
        return decoded(line)

    def record(self, line: bytes, answer: Output) -> bytes:
        cells: list[str] = []
        for one in _candidates(answer):
            if self.scores:
                cells.append(f"{one.score:.4f}")
            cells.append(one.text.translate(_ONE_LINE))
        cells += [""] * (self.n_best * (1 + self.scores) - len(cells))
        return "\t".join(cells).encode()


@dataclass(frozen=True)
class Tsv(Text):
    """A column is the text, counted from 1; the outputs are more columns."""

    column: int

    def text(self, line: bytes) -> str:
        columns = line.split(b"\t")
        if not line.strip(b" "):
            return ""
        if len(columns) < self.column:
            raise InputError(f"{len(columns)} columns separated by tabs, the text is in column {self.column}")
        return decoded(columns[self.column - 1])

    def record(self, line: bytes, answer: Output) -> bytes:
        return line + b"\t" + super().record(line, answer)


@dataclass(frozen=True)
class JsonLines:
    """A field is the text; the record is the line's fields and the outputs."""

    n_best: int
    scores: bool
    field: str
    output_field: str

    def text(self, line: bytes) -> str:
        if not line.strip():
            return ""
        values = parsed(line)
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
            return dumped({**readable(line), "error": str(answer.error)})
        if not line.strip():
            return b""
        found = _candidates(answer)
        texts, scores = [one.text for one in found] or [""], [one.score for one in found] or [None]
        values = {**parsed(line), self.output_field: texts if self.n_best > 1 else texts[0]}
        if self.scores:
            values[f"{self.output_field}_score"] = scores if self.n_best > 1 else scores[0]
        return dumped(values)


def make_format(
    format: str, column: int | None, field: str | None, output_field: str | None, n_best: int, scores: bool
) -> LineFormat:
    """The format of this name; ConfigError where it, or an option that is not None, is none of its own."""
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
        return Tsv(n_best, scores, 1 if column is None else column)
    if format == "jsonl":
        return JsonLines(n_best, scores, "text" if field is None else field, output_field or "output")
    return Text(n_best, scores)


def format_of(input: str | os.PathLike, output: str | os.PathLike) -> str:
    """The format that the suffixes of two files name, "text" where neither has one.

    Raises:
        ConfigError: they differ, or one is of no format.
    """
    formats = [text_input.format_of(path) for path in (input, output)]
    if None not in formats and formats[0] != formats[1]:
        raise ConfigError(f"by their names {input} is {formats[0]} and {output} is {formats[1]}; say which with format")
    return formats[0] or formats[1] or "text"


def _candidates(answer: Output) -> list[Output]:
    """The outputs of an answer; none for a line that failed or has no tokens."""
    return [answer, *answer.alternatives] if answer.token_ids else []


def parsed(line: bytes) -> dict[str, Any]:
    """The fields of a line of JSON; InputError where it is no object, or has a number that would be written otherwise.

    NaN and Infinity, which are no JSON but what Python writes, are read, and written again.
    """

    def finite(number: str) -> float:
        if math.isinf(value := float(number)):
            raise ValueError(f"{number[:40]} is too large for a number")
        return value

    def short(number: str) -> int:
        if len(number) > _DIGITS:
            raise ValueError(f"a number of {len(number)} digits, the limit is {_DIGITS}")
        return int(number)

    try:
        values = json.loads(decoded(line), parse_float=finite, parse_int=short)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"not a JSON object: {line[:80].decode(errors='replace')}")
    return values


def readable(line: bytes) -> dict[str, Any]:
    """The fields of a line that cannot be used, as far as it has any: what names it must not be lost."""

    def kept(number: str) -> float | str:
        return number if math.isinf(float(number)) else float(number)

    def whole(number: str) -> int | str:
        return number if len(number) > _DIGITS else int(number)

    try:
        values = json.loads(line.decode(errors="replace"), parse_float=kept, parse_int=whole)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def dumped(values: dict[str, Any]) -> bytes:
    """Fields as a line of JSON, without its end."""
    try:
        return json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can write
        return json.dumps(values).encode()
