"""The work of a job: a window of lines in, their records out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..config.validators import check_integer
from ..errors import InputError
from ..files.text_input import Incoming, LongLine, check_json_lines, check_length, size_of
from ..generator import Generator, Output
from .line_formats import JsonLines, LineFormat, make_format
from .report import JobReport
from .task import settled

WINDOWS = (64, 1024, 4096)  # lines of a window: the fewest, the most on a CPU, the most
WINDOW_WEIGHTS = 1 << 35  # weights times rows of the lines of one on a CPU: about ten seconds of two cores
WINDOW_BYTES = 1 << 24  # a window of very long lines ends here
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Work:
    """How the lines of one job are answered.

    A window is one call of `Generator.stream`, drained to its end. So which texts share a batch depends on the lines
    and the options alone, and a job that begins at any window has the outputs it would have had anyway.
    """

    generator: Generator
    records: LineFormat
    name: str
    strict: bool
    window: int
    options: dict[str, Any]

    @classmethod
    def of(
        cls,
        generator: Generator,
        *,
        name: str,
        format: str,
        column: int | None = None,
        field: str | None = None,
        output_field: str | None = None,
        n_best: int = 1,
        scores: bool = False,
        strict: bool = False,
        window: int | None = None,
        **options: Any,
    ) -> Work:
        """The work that these options describe; those of `follow_lines`. ConfigError where they are bad."""
        if window is not None:
            check_integer(1, window, "window")
        records = make_format(format, column, field, output_field, n_best, scores)
        options = dict(options, scores=scores, num_return_sequences=n_best)
        list(generator.stream([], **options))  # checks them
        return cls(generator, records, name, strict, window or default_window(generator, options), options)

    def windows(self, lines: Iterable[bytes]) -> Iterator[list[bytes]]:
        """Cut lines into windows: at places that depend on nothing but their number and their sizes.

        Lines of a pipe are answered as they come: a window of theirs ends where no more are there.
        """
        held, size = [], 0
        for line in lines:
            held.append(line)
            size += size_of(line)
            full = len(held) >= self.window or size >= WINDOW_BYTES
            if full or (isinstance(lines, Incoming) and not lines.more()):
                yield held
                held, size = [], 0
        if held:
            yield held

    def answer(
        self, window: list[bytes], first: int, write: Callable[[bytes], Any], report: JobReport
    ) -> Iterator[JobReport]:
        """Write the records of a window in order; yields the report, brought up to date, at every line.

        Args:
            window: lines with their ends, as a file opened in binary mode gives them.
            first: number of the first one in the whole file, from 0.
            write: takes the bytes of one record.
            report: is brought up to date.

        Raises:
            InputError: a line that cannot be used, where the work is strict; not one of several lines with which the
                job begins can be.
        """
        contents: list[bytes] = []
        texts: list[str] = []
        problems: dict[int, InputError] = {}
        begins = report.windows == 0 and len(window) > 1
        for index, line in enumerate(window, first):
            content = line.removesuffix(b"\n").removesuffix(b"\r")
            contents.append(content.removeprefix(_BYTE_ORDER_MARK) if index == 0 else content)
            if isinstance(line, LongLine):
                contents[-1] = b""  # none of its columns is known
            if index == 0 and isinstance(self.records, JsonLines):
                check_json_lines(contents[-1], self.name)
            try:
                check_length(line)
                texts.append(self.records.text(contents[-1]))
            except InputError as error:
                self._refuse(index, error)
                texts.append("")
                problems[index] = error
        if begins and len(problems) == len(window):  # the model need not be asked
            raise InputError(_hopeless(self.name, len(window), f"{self._place(first)}: {problems[first]}"))
        held: list[bytes] = []  # records of a window with which the job begins, as long as all lines have failed
        stream = self.generator.stream(texts, return_errors=True, lookahead=len(texts), first=first, **self.options)
        answers: dict[int, Output] = {}
        written = first
        for index, answer in stream:
            line = window[index - first]
            answers[index] = answer = replace(answer, error=problems[index]) if index in problems else answer
            if answer.error is not None:
                self._refuse(index, answer.error)
            report.count(self._place(index), size_of(line), answer, self.generator.max_input_length)
            while written in answers:
                record = self.records.record(contents[written - first], answers.pop(written))
                held.append(record + b"\n" * window[written - first].endswith(b"\n"))
                written += 1
            if not begins or report.failed < report.lines:
                for record in held:
                    write(record)
                held.clear()
            yield report
        if answers or written < first + len(window):
            raise RuntimeError(f"{self._place(written)}: no answer, or one too many")  # and no output that lacks a line
        if begins and report.failed == len(window):
            raise InputError(_hopeless(self.name, len(window), report.messages[0]))
        report.windows += 1

    def _place(self, index: int) -> str:
        return f"{self.name}, line {index + 1}"

    def _refuse(self, index: int, error: Exception) -> None:
        if self.strict:
            raise InputError(f"{self._place(index)}: {error}") from error


def default_window(generator: Generator, options: dict[str, Any]) -> int:
    """Lines of a window, where nobody says how many.

    What is done between two commits is lost when a job is killed; where a window ends rows run out, which costs the
    more the smaller it is. On a CPU it takes about ten seconds, however large the model.
    """
    config, model = settled(generator, options), generator.model
    rows = max(config.num_beams or 1, config.num_return_sequences or 1)
    fewest, most_on_cpu, most = WINDOWS
    if model.device.type == "cuda":
        return max(fewest, min(most, 4 * (generator.engine.config.max_rows or most) // rows))
    return max(fewest, min(most_on_cpu, WINDOW_WEIGHTS // (model.num_parameters() * rows)))


def _hopeless(name: str, lines: int, reason: str) -> str:
    return f"{name}: each of the first {lines} lines failed, the rest is not tried; {reason}"
