"""Log-likelihoods of lines that hold a source and a target each: one record for each line.

Lines end with LF or CRLF, records with LF. A byte-order mark is dropped.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..config.validators import check_integer
from ..files.line_formats import JsonLines, LineFormat, Tsv
from ..generator import LOOKAHEAD, Generator
from ..generator.scorer import Likelihood
from ..tokenizer import Tokenizer
from .report import JobReport
from .window_processor import WindowProcessor, check_format_options


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
    cases, and has the target's `tokens` and `token_log_probs`. The record of a blank line is empty.

    Args:
        generator: does the work.
        lines: each with its line end, as a file opened in binary mode gives them.
        write: takes the bytes of one record.
        name: of the input, for messages.
        format: "tsv" or "jsonl".
        source_column, target_column: TSV: from 1 (default 1 and 2). White space around them is dropped.
        source_field, target_field: JSONL: default "source" and "target".
        tokens: write the log-probability of each token.
        length_penalty, truncation, lookahead: as `Generator.stream_scores`.
        strict: raise at a line that cannot be used, instead of writing an empty record (JSON: the line's fields, if it
            has any, and "error") and going on.

    Raises:
        ConfigError: bad options. InputError: a line that cannot be used, where that is strict; the input is no text, or
            it begins with several lines none of which can be used.
    """
    results = LikelihoodFields(generator.tokenizer, tokens, with_score=length_penalty is not None)
    line_format = make_format(format, source_column, target_column, source_field, target_field, results)
    options: dict[str, Any] = dict(length_penalty=length_penalty, truncation=truncation)
    list(generator.stream_scores([], **options))  # checks them
    window = check_integer(1, lookahead, "lookahead")
    processor = ScoreProcessor(generator, line_format, name, strict, window, options)
    report, first = JobReport(), 0
    for batch in processor.windows(iter(lines)):  # iter: the lines of a pipe fill whole windows, too
        yield from processor.process(batch, first, write, report)
        first += len(batch)
    yield report


@dataclass(frozen=True)
class LikelihoodFields:
    """How log-likelihoods are written: a number in TSV; in JSON `log_prob` and the optional fields.

    Args:
        tokenizer: gives the tokens of ids.
        tokens: write each token and its log-probability.
        with_score: write the score, in TSV in place of the log-probability.
    """

    tokenizer: Tokenizer
    tokens: bool
    with_score: bool

    reserved: ClassVar = ("log_prob", "score", "tokens", "token_log_probs", "error")
    reserved_reason: ClassVar = "it is one that scoring adds"

    def cells(self, result: Likelihood) -> list[str]:
        value = result.score if self.with_score else result.total
        return ["" if result.error is not None or value is None else f"{value:.6f}"]

    def fields(self, result: Likelihood) -> dict[str, Any]:
        values: dict[str, Any] = {"log_prob": result.total}
        if self.with_score:
            values["score"] = result.score
        if self.tokens:
            values["tokens"] = self.tokenizer.convert_ids_to_tokens(list(result.token_ids))
            values["token_log_probs"] = list(result.log_probs)
        return values


def make_format(
    format: str,
    source_column: int | None,
    target_column: int | None,
    source_field: str | None,
    target_field: str | None,
    results: LikelihoodFields,
) -> LineFormat:
    """The format of this name; ConfigError where there is none, or an option that is not None is not one of its."""
    check_format_options(
        format,
        ("tsv", "jsonl"),
        source_column=source_column,
        target_column=target_column,
        source_field=source_field,
        target_field=target_field,
    )
    if format == "tsv":
        return Tsv((source_column or 1, target_column or 2), results, as_json=results.tokens)
    return JsonLines((source_field or "source", target_field or "target"), results)


@dataclass(frozen=True)
class ScoreProcessor(WindowProcessor):
    """Scores pairs. A window is one call of `Generator.stream_scores`."""

    options: dict[str, Any]  # of `Generator.stream_scores`

    empty: ClassVar[tuple[str, ...]] = ("", "")

    def read(self, content: bytes) -> tuple[str, ...] | None:
        return self.format.read(content) if content.strip() else None

    def results(self, texts: list[tuple[str, ...]], first: int) -> Iterator[tuple[int, Likelihood]]:
        pairs = [(source, target) for source, target in texts]
        stream = self.generator.stream_scores(pairs, return_errors=True, lookahead=len(pairs), **self.options)
        return ((first + index, replace(likelihood, index=first + index)) for index, likelihood in stream)

    def truncation_message(self) -> str:
        return f"source cut to {self.generator.max_input_length} tokens"

    def record_end(self, line: bytes) -> bytes:
        return b"\n"
