"""Generation for lines: from the options of a job to its windows and records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.validators import check_integer
from ..files.line_formats import JsonLines, LineFormat, Text, Tsv
from ..generator import Generator, Output
from .metadata import generation_config_of
from .window_processor import WindowProcessor, check_format_options

WINDOWS = (64, 1024, 4096)  # lines of a window: the fewest, the most on a CPU, the most
WINDOW_WEIGHTS = 1 << 35  # weights times rows of the lines of one on a CPU: about ten seconds of two cores


@dataclass(frozen=True)
class OutputFields:
    """How outputs are written: `n_best` texts, best first, with `scores` each after its score in text and TSV.

    In JSON lines `output_field` is a text, or with `n_best` above 1 a list, and `<output_field>_score` its score.
    """

    n_best: int
    scores: bool
    output_field: str = "output"

    reserved_reason: ClassVar = "name another output field"

    @property
    def reserved(self) -> tuple[str, ...]:
        """The names that it adds."""
        return (self.output_field, f"{self.output_field}_score")[: 1 + self.scores]

    def cells(self, result: Output) -> list[str]:
        cells: list[str] = []
        for output in _candidates(result):
            if self.scores:
                cells.append(f"{output.score:.4f}")
            cells.append(output.text)
        return cells + [""] * (self.n_best * (1 + self.scores) - len(cells))

    def fields(self, result: Output) -> dict[str, Any]:
        outputs = _candidates(result)
        texts, scores = [output.text for output in outputs] or [""], [output.score for output in outputs] or [None]
        values: dict[str, Any] = {self.output_field: texts if self.n_best > 1 else texts[0]}
        if self.scores:
            values[f"{self.output_field}_score"] = scores if self.n_best > 1 else scores[0]
        return values


def _candidates(result: Output) -> list[Output]:
    """The outputs of a line; none for one that failed or has no tokens."""
    return [result, *result.alternatives] if result.token_ids else []


def make_format(
    format: str, column: int | None, field: str | None, output_field: str | None, results: OutputFields
) -> LineFormat:
    """The format of this name; ConfigError where there is none, or an option that is not None is not one of its."""
    check_format_options(format, ("text", "tsv", "jsonl"), column=column, field=field, output_field=output_field)
    if format == "tsv":
        return Tsv((1 if column is None else column,), results)
    if format == "jsonl":
        return JsonLines(("text" if field is None else field,), results)
    return Text(results)


def format_settings(format: LineFormat) -> dict[str, Any]:
    """The options of a format of outputs, under the names by which OUT.job has them."""
    results = format.results
    assert isinstance(results, OutputFields)
    settings = {"format": type(format).__name__, "n_best": results.n_best, "scores": results.scores}
    if isinstance(format, Tsv):
        settings["column"] = format.columns[0]
    if isinstance(format, JsonLines):
        settings.update(field=format.names[0], output_field=results.output_field)
    return settings


@dataclass(frozen=True)
class GenerationProcessor(WindowProcessor):
    """Generates for lines. A window is one call of `Generator.stream`, run to its end.

    So the batches depend on the lines and the options alone, and a job that resumes at any window has the same outputs.
    """

    options: dict[str, Any]  # of `Generator.stream`

    @classmethod
    def from_options(
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
    ) -> GenerationProcessor:
        """The processor of these options, those of `follow_lines`; ConfigError where they are bad."""
        if window is not None:
            check_integer(1, window, "window")
        results = OutputFields(n_best, scores, output_field or "output")
        line_format = make_format(format, column, field, output_field, results)
        options = dict(options, scores=scores, num_return_sequences=n_best)
        list(generator.stream([], **options))  # checks them
        return cls(generator, line_format, name, strict, window or default_window(generator, options), options)

    def results(self, texts: list[tuple[str, ...]], first: int) -> Iterator[tuple[int, Output]]:
        sources = [source for (source,) in texts]
        return self.generator.stream(sources, return_errors=True, lookahead=len(texts), first=first, **self.options)

    def truncation_message(self) -> str:
        return f"cut to {self.generator.max_input_length} tokens"


def default_window(generator: Generator, options: dict[str, Any]) -> int:
    """Lines of a window for a model and its options.

    The work since the last commit is lost when a job is killed; at the end of each window the batch runs empty, which
    costs the more the smaller the window is. On a CPU a window takes about ten seconds, however large the model.
    """
    config, model = generation_config_of(generator, options), generator.model
    rows = max(config.num_beams or 1, config.num_return_sequences or 1)
    fewest, most_on_cpu, most = WINDOWS
    if model.device.type == "cuda":
        together = len(generator.devices) * (generator.engine.config.max_rows or most)
        return max(fewest, min(most, 4 * together // rows))
    return max(fewest, min(most_on_cpu, WINDOW_WEIGHTS // (model.num_parameters() * rows)))
