"""The loop of all operations on lines: a window of lines in, their records out, in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..config.validators import check_integer
from ..errors import ConfigError, InputError
from ..files.line_formats import JsonLines, LineFormat
from ..files.line_windows import windows
from ..files.text_input import Incoming, check_json_lines, check_length, line_content, size_of
from ..generator import Generator
from .report import JobReport

WINDOW_BYTES = 1 << 24  # a window of very long lines ends here


@dataclass(frozen=True)
class WindowProcessor(ABC):
    """How the lines of one job are processed.

    Args:
        generator: does the work.
        format: reads the lines and writes the records.
        name: of the input, for messages.
        strict: raise at a line that cannot be used.
        window: most lines of a window.
    """

    generator: Generator
    format: LineFormat
    name: str
    strict: bool
    window: int

    empty: ClassVar[tuple[str, ...]] = ("",)  # the texts of a line that cannot be read

    @abstractmethod
    def results(self, texts: list[tuple[str, ...]], first: int) -> Iterator[tuple[int, Any]]:
        """One result for each line of a window, in any order, under its number; `first` is that of the first line.

        Lines that cannot be read have empty texts.
        """

    @abstractmethod
    def truncation_message(self) -> str:
        """What is reported about a line that was cut."""

    def read(self, content: bytes) -> tuple[str, ...] | None:
        """The texts of a line; None for a blank line that is no failure. InputError where it cannot be used."""
        return self.format.read(content)

    def windows(self, lines: Iterable[bytes]) -> Iterator[list[bytes]]:
        """Cut lines into windows: at places that depend on nothing but their number and their sizes.

        A window of a pipe's lines also ends where no more are there, so that they are processed as they come.
        """

        def ends() -> bool:
            return isinstance(lines, Incoming) and not lines.more()

        return windows(lines, self.window, size_of=size_of, limit=WINDOW_BYTES, ends=ends)

    def process(
        self, window: list[bytes], first: int, write: Callable[[bytes], Any], report: JobReport
    ) -> Iterator[JobReport]:
        """Write the records of a window in order; yields the report, brought up to date, at every line.

        Args:
            window: lines with their ends, as a file opened in binary mode gives them.
            first: number of the first one in the whole file, from 0.
            write: takes the bytes of one record.
            report: is brought up to date.

        Raises:
            InputError: a line that cannot be used, with `strict`; none of several lines with which the job begins can
                be used.
        """
        contents: list[bytes] = []
        texts: list[tuple[str, ...]] = []
        errors: dict[int, InputError | None] = {}  # of lines that are not read; None for a blank one
        begins = report.windows == 0 and len(window) > 1
        for index, line in enumerate(window, first):
            contents.append(line_content(line, first=index == 0))
            if index == 0 and isinstance(self.format, JsonLines):
                check_json_lines(contents[0], self.name)
            try:
                check_length(line)
                fields, error = self.read(contents[-1]), None
            except InputError as problem:
                self._raise_if_strict(index, problem)
                fields, error = None, problem
            texts.append(self.empty if fields is None else fields)
            if fields is None:
                errors[index] = error
        if begins and len(errors) == len(window) and None not in errors.values():  # the model is not needed
            raise InputError(_all_failed(self.name, len(window), f"{self._place(first)}: {errors[first]}"))
        held: list[bytes] = []  # records of a window with which the job begins, as long as all lines have failed
        results: dict[int, Any] = {}
        written = first
        for index, result in self.results(texts, first):
            line = window[index - first]
            results[index] = result = replace(result, error=errors[index]) if index in errors else result
            if result.error is not None:
                self._raise_if_strict(index, result.error)
            report.count(self._place(index), size_of(line), result, self.truncation_message())
            while written in results:
                record = self.format.record(contents[written - first], results.pop(written))
                held.append(record + self.record_end(window[written - first]))
                written += 1
            if not begins or report.failed < report.lines:
                for record in held:
                    write(record)
                held.clear()
            yield report
        if results or written < first + len(window):
            # An output that lacks a line must not appear.
            raise RuntimeError(f"{self._place(written)}: no result, or one too many")
        if begins and report.failed == len(window):
            raise InputError(_all_failed(self.name, len(window), report.messages[0]))
        report.windows += 1

    def record_end(self, line: bytes) -> bytes:
        """The end of a line's record."""
        return b"\n" * line.endswith(b"\n")

    def _place(self, index: int) -> str:
        return f"{self.name}, line {index + 1}"

    def _raise_if_strict(self, index: int, error: Exception) -> None:
        if self.strict:
            raise InputError(f"{self._place(index)}: {error}") from error


def _all_failed(name: str, lines: int, reason: str) -> str:
    return f"{name}: each of the first {lines} lines failed, the rest is not tried; {reason}"


def check_format_options(format: str, formats: tuple[str, ...], **options: Any) -> None:
    """ConfigError where the format is none of `formats`, or an option that is not None belongs to another one.

    Args:
        options: a name that ends in "column" is of TSV and its value a number from 1; all others are of JSON lines.
    """
    if format not in formats:
        raise ConfigError(f"format must be {', '.join(formats[:-1])} or {formats[-1]}, got {format!r}")
    for name, value in options.items():
        owner = "tsv" if name.endswith("column") else "jsonl"
        if value is None:
            continue
        if format != owner:
            raise ConfigError(f"{name}={value!r} is for the format {owner}, not for {format}")
        if owner == "tsv":
            check_integer(1, value, name)
