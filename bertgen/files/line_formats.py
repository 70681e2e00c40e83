"""Line formats: how a line holds the texts that a model reads, and how its record holds the results.

There are three: plain text, TSV and JSON lines. A format reads one field of a line, the source, or two, the source and
its target. Lines come here without their ends (`text_input.line_content`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from ..errors import ConfigError, InputError
from . import text_input
from .text_input import check_name, decoded, line_content, open_input, read_lines

_DIGITS = 4300  # of an integer, where Python stops
_ONE_LINE = str.maketrans("\t\n\r", "   ")


class _MissingColumn(InputError):
    """A line of TSV has too few columns."""


class ResultFields(Protocol):
    """What an operation adds to a line: its results as cells of text and TSV, and as fields of JSON."""

    @property
    def reserved(self) -> tuple[str, ...]:
        """Names of JSON fields that a line must not have."""

    @property
    def reserved_reason(self) -> str:
        """The end of the error about such a field."""

    def cells(self, result: Any) -> list[str]:
        """The cells of a result; a line that failed has the same number of cells, all empty."""

    def fields(self, result: Any) -> dict[str, Any]:
        """The fields of a result."""


@dataclass(frozen=True)
class Text:
    """The line is the source; the record is the cells of the result, separated by tabs."""

    results: ResultFields | None = None  # None: lines are only read

    def read(self, line: bytes) -> tuple[str, ...]:
        """The texts of a line, in the order source, target; InputError where it lacks one."""
        return (decoded(line),)

    def record(self, line: bytes, result: Any) -> bytes:
        """The record of a line and its result, without a line end; `result.error` is an error or None."""
        assert self.results is not None
        return _joined(self.results.cells(result))


@dataclass(frozen=True)
class Tsv:
    """Columns are the texts. The record of one column is the line and the cells; of two, the cells alone.

    Args:
        columns: of the source, or of source and target; from 1.
        results: what the record adds.
        as_json: the record of two columns is JSON: `source`, `target` and the fields of the result.
    """

    columns: tuple[int, ...]
    results: ResultFields | None = None
    as_json: bool = False

    def read(self, line: bytes) -> tuple[str, ...]:
        """As `Text.read`."""
        if len(self.columns) > 1:
            return self._read_pair(line)
        (column,) = self.columns
        cells = line.split(b"\t")
        if not line.strip(b" "):
            return ("",)
        if len(cells) < column:
            raise InputError(f"{len(cells)} columns separated by tabs, the text is in column {column}")
        return (decoded(cells[column - 1]),)

    def _read_pair(self, line: bytes) -> tuple[str, ...]:
        text = decoded(line)
        cells, needed = text.split("\t"), max(self.columns)
        if len(cells) < needed:
            raise _MissingColumn(f"{len(cells)} tab-separated columns, {needed} needed")
        return tuple(cells[column - 1].strip() for column in self.columns)

    def record(self, line: bytes, result: Any) -> bytes:
        """As `Text.record`."""
        assert self.results is not None
        if len(self.columns) == 1:
            return line + b"\t" + _joined(self.results.cells(result))
        if result.error is None and not line.strip():
            return b""
        if not self.as_json:
            return _joined(self.results.cells(result))
        try:
            fields = dict(zip(("source", "target"), self.read(line), strict=True))
        except InputError:
            fields = {}
        return encode_json(fields | _result_or_error(self.results, result))


@dataclass(frozen=True)
class JsonLines:
    """Fields are the texts; the record is the line's fields and those of the result.

    Args:
        names: fields of the source, or of source and target.
        results: what the record adds.
    """

    names: tuple[str, ...]
    results: ResultFields

    def read(self, line: bytes) -> tuple[str, ...]:
        """As `Text.read`."""
        if len(self.names) == 1 and not line.strip():
            return ("",)
        values = decode_json(line)
        for name in self.names:
            if name not in values:
                raise InputError(f"no field {name!r}; there are {', '.join(map(repr, values)) or 'none'}")
            if not isinstance(values[name], str):
                raise InputError(f"field {name!r} must be a string, got {json.dumps(values[name])[:80]}")
        for name in self.results.reserved:
            if name in values and name not in self.names:
                raise InputError(f"field {name!r} is there already; {self.results.reserved_reason}")
        return tuple(values[name] for name in self.names)

    def record(self, line: bytes, result: Any) -> bytes:
        """As `Text.record`."""
        if result.error is None and not line.strip():
            return b""
        fields = decode_json(line) if result.error is None else decode_json_leniently(line)
        return encode_json(fields | _result_or_error(self.results, result))


LineFormat: TypeAlias = Text | Tsv | JsonLines


def _result_or_error(results: ResultFields, result: Any) -> dict[str, Any]:
    return results.fields(result) if result.error is None else {"error": str(result.error)}


def _joined(cells: list[str]) -> bytes:
    return "\t".join(cell.translate(_ONE_LINE) for cell in cells).encode()


def format_of(input: str | os.PathLike, output: str | os.PathLike) -> str:
    """The format that the suffixes of two files name, "text" where neither has one.

    Raises:
        ConfigError: they differ, or one is of no format.
    """
    formats = [text_input.format_of(path) for path in (input, output)]
    if None not in formats and formats[0] != formats[1]:
        raise ConfigError(f"{input} is {formats[0]} and {output} is {formats[1]}; say which with format")
    return formats[0] or formats[1] or "text"


def read_fields(
    path: str | os.PathLike, format: LineFormat, count: int | None = None
) -> Iterator[tuple[int, bytes, tuple[str, ...] | InputError]]:
    """Number from 1, line, and texts of the first `count` lines of a file, or all; an InputError in place of texts.

    Raises:
        InputError: the file cannot be read or is no text.
    """
    with open_input(path) as file:
        for number, line in enumerate(read_lines(file, path, count), start=1):
            try:
                text_input.check_length(line)
                fields: tuple[str, ...] | InputError = format.read(line_content(line, number == 1))
            except InputError as error:
                fields = error
            yield number, line, fields


def read_texts(path: str | os.PathLike, count: int | None = None) -> list[str]:
    """The first `count` lines of a file, or all, as texts without their ends; without a byte-order mark.

    Raises:
        InputError: the file cannot be read or is no text; a line is not UTF-8 or too long (its number).
    """
    texts: list[str] = []
    for number, _, fields in read_fields(path, Text(), count):
        if isinstance(fields, InputError):
            raise InputError(f"{path}, line {number}: {fields}") from fields
        texts += fields
    return texts


def read_numbered_pairs(
    path: str | os.PathLike, source_column: int = 1, target_column: int = 2
) -> Iterator[tuple[int, tuple[str, ...] | InputError]]:
    """Number of each line of a TSV file, from 1, and its (source, target), or an InputError in its place.

    Raises:
        ConfigError: the name of the file is that of another format.
        InputError: the file cannot be read or is no text.
    """
    check_name(path, "tsv", "text")
    blank: list[tuple[int, InputError]] = []  # lines at the end of the file, perhaps, which are no pairs
    for number, line, pair in read_fields(path, Tsv((source_column, target_column))):
        if isinstance(pair, _MissingColumn):
            text = decoded(line_content(line, number == 1))
            pair = InputError(f"{pair}: {text[:80]!r}")
        elif not isinstance(pair, InputError) and not all(pair):
            pair = InputError(f"the {'target' if pair[0] else 'source'} is empty")
        if isinstance(pair, InputError) and text_input.is_blank(line):
            blank.append((number, pair))
            continue
        yield from blank
        blank.clear()
        yield number, pair


def read_pairs(path: str | os.PathLike, source_column: int = 1, target_column: int = 2) -> list[tuple[str, str]]:
    """Read (source, target) from a TSV file.

    Args:
        path: UTF-8 text, a pair per line; blank lines after the last pair are skipped.
        source_column, target_column: counted from 1.

    Raises:
        ConfigError: the name of the file is that of another format.
        InputError: no such file, no text, no lines, a line with too few columns, an empty side, one that is too long or
            not UTF-8; the message names file and line.
    """
    pairs = []
    for number, pair in read_numbered_pairs(path, source_column, target_column):
        if isinstance(pair, InputError):
            raise InputError(f"{path}, line {number}: {pair}") from pair
        source, target = pair
        pairs.append((source, target))
    if not pairs:
        raise InputError(f"{path}: no pairs")
    return pairs


def decode_json(line: bytes) -> dict[str, Any]:
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


def decode_json_leniently(line: bytes) -> dict[str, Any]:
    """The fields of a line that failed, empty where it has none: a field that names the line must not be lost."""

    def finite_or_text(number: str) -> float | str:
        return number if math.isinf(float(number)) else float(number)

    def short_or_text(number: str) -> int | str:
        return number if len(number) > _DIGITS else int(number)

    try:
        values = json.loads(line.decode(errors="replace"), parse_float=finite_or_text, parse_int=short_or_text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def encode_json(values: dict[str, Any]) -> bytes:
    """Fields as a line of JSON, without its end."""
    try:
        return json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can write
        return json.dumps(values).encode()
