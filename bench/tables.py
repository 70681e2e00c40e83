"""The tables of README.md, docs/benchmarks.md and docs/transformers.md, from the committed results.

    python -m bertgen.bench.tables

Writes each table between its two marks, `<!-- bench: NAME -->` and `<!-- end -->`. A test compares the pages with the
results.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from bertgen.errors import InputError

from . import dropin, dtypes, machine, neighbours, scale
from .figures import MODEL, best_of_cases, speed_ups
from .generate import STATIC
from .output import UNKNOWN, markdown, time_text, times
from .result import OURS, Result, Row, load

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"
PAGES = (ROOT / "README.md", ROOT / "docs/benchmarks.md", ROOT / "docs/transformers.md")
BLOCK = re.compile(r"<!-- bench: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def filled(text: str) -> str:
    """The text of a page with its tables filled from the results."""

    def table(match: re.Match[str]) -> str:
        try:
            content = TABLES[match[1]]()
        except InputError as error:
            content = f"No figures yet: {error}."
        return f"<!-- bench: {match[1]} -->\n{content}\n<!-- end -->"

    return BLOCK.sub(table, text)


def results(part: str, model: str | None = None) -> list[Result]:
    """The committed results of a part, from all steps of the suite; with a model, only results with rows of it.

    Raises:
        InputError: there is no result, or one is incomplete or was measured on a busy machine.
    """
    files = {path.name: load(path) for path in sorted(RESULTS.glob("*-cpu.json"))}
    files = {name: result for name, result in files.items() if result.part == part}
    for name, result in files.items():
        if result.doubts:
            raise InputError(f"bench/results/{name} is not to be relied on ({'; '.join(result.doubts)})")
    selected = [
        result
        for result in files.values()
        if model is None or any(row.params.get("model") == model for row in result.rows)
    ]
    if not selected:
        suffix = "" if model is None else f" with a model {model}"
        raise InputError(f"bench/results has no result of {part}{suffix}")
    return selected


def rows_of(measured: Sequence[Result]) -> list[Row]:
    return [row for result in measured for row in result.rows]


def cases_of(measured: Sequence[Result]) -> list[list[Row]]:
    return [rows for result in measured for rows in result.cases.values()]


def origin(measured: Sequence[Result]) -> str:
    """Commands, machine and commit, for a paragraph under a table."""
    commands: dict[str, list[str]] = {}
    for result in measured:
        commands.setdefault(machine.described(result.environment), []).append(f"`{result.command}`")
    return "\n".join(f"{', '.join(dict.fromkeys(words))}: {where}." for where, words in commands.items())


def words(requests: str, beams: int) -> str:
    return f"{requests}, " + ("greedy" if beams == 1 else f"{beams} beams")


def of_model(model: str) -> dict[tuple[str, str, int], dict[str, Row]]:
    """(model, requests, beams) -> engine -> its best row."""
    rows = rows_of(results("generate", model))
    return {case: by for case, by in best_of_cases(rows).items() if case[0] == model}


OTHERS = ("transformers sdpa", STATIC, "CTranslate2", "CTranslate2 int8")


def readme() -> str:
    """The speed-ups alone, those of the picture, and where they were measured."""
    measured = results("generate", MODEL)
    libraries = ("transformers", "CTranslate2")
    rows = [
        [words(requests, beams), *(f"{by[name]:.2f}" if name in by else UNKNOWN for name in libraries)]
        for (requests, beams), by in speed_ups(rows_of(measured), MODEL).items()
    ]
    kinds: dict[str, dict[str, None]] = {}
    for result in measured:
        names = kinds.setdefault(machine.described(result.environment), {})
        names.update((row.params["requests"], None) for row in result.rows if row.name == "generate")
    origins = [f"`bertgen bench generate`: {' and '.join(names)}: {where}." for where, names in kinds.items()]
    heads = ("speed-up", *(f"over {name}" for name in libraries))
    return markdown(heads, rows) + "\n\n" + "\n".join(origins)


def seconds(model: str) -> str:
    """Seconds of each engine, with the batch that suits it and the share of the limit."""
    rows = []
    engines = list(dict.fromkeys(one for by in of_model(model).values() for one in by))
    for (_, requests, beams), by in of_model(model).items():
        cells = [
            f"{row.median:.2f} ({row.params['batch']}; {row.fraction:.0%})" if (row := by.get(one)) else UNKNOWN
            for one in engines
        ]
        rows.append([words(requests, beams), *cells])
    return markdown(("requests", *engines), rows) + f"\n\n{origin(results('generate', model))}"


def ratios(model: str) -> str:
    """How many times as long the others take, and how many outputs are equal."""
    rows = []
    for (_, requests, beams), by in of_model(model).items():
        cells = [times(by.get(one), by[OURS]) for one in ("bertgen int4", "transformers eager", *OTHERS)]
        equal = [
            f"{row.extra['equal']}/{row.extra['compared']}" if (row := by.get(one)) and "equal" in row.extra else "?"
            for one in ("bertgen int4", *OTHERS)
        ]
        rows.append([words(requests, beams), *cells, ", ".join(equal)])
    heads = ("requests", "bertgen int4", "transformers eager", *OTHERS, "equal outputs: int4, " + ", ".join(OTHERS))
    return markdown(heads, rows)


def latency() -> str:
    """One request at a time: milliseconds of a token and seconds of a request."""
    measured, rows = results("generate"), []
    for (model, requests, beams), by in best_of_cases(rows_of(measured)).items():
        for one, row in by.items():
            if requests == "single" and "request_p50" in row.extra:
                figures = [row.extra[key] for key in ("token_p50", "token_p99")]
                tokens = ["not reported" if value is None else f"{1e3 * value:.1f}" for value in figures]
                waits = [f"{row.extra[key]:.2f}" for key in ("request_p50", "request_p99")]
                rows.append([model, "greedy" if beams == 1 else f"{beams} beams", one, *tokens, *waits])
    if not rows:
        raise InputError("bench/results has no latencies of single requests")
    return markdown(("model", "search", "engine", "token p50, ms", "p99", "request p50, s", "p99"), rows)


def memory() -> str:
    """MB of the process at its peak, and time to load."""
    rows = rows_of(results("generate"))
    loads = {(row.params["model"], row.contender): row for row in rows if row.name == "load"}
    peaks: dict[tuple[str, str], dict[int, int]] = {}
    for row in rows:
        if row.name == "generate" and row.extra.get("peak"):
            by = peaks.setdefault((row.params["model"], row.contender), {})
            by[row.params["beams"]] = max(by.get(row.params["beams"], 0), row.extra["peak"])
    lines = []
    for key, by in sorted(peaks.items(), key=lambda item: item[0][0]):
        load = time_text(loads[key].median) if key in loads else UNKNOWN
        lines.append([*key, *(f"{by[beams] / 1e6:.0f}" if beams in by else "" for beams in (1, 4)), load])
    return markdown(("model", "engine", "greedy, MB", "4 beams, MB", "loading"), lines)


def linear() -> str:
    """GFLOP/s of ops.linear, and how many times as long the others take."""
    measured = results("ops")
    cases = [rows for rows in cases_of(measured) if rows[0].name == "linear" and "rows" in rows[0].params]
    few = sorted({rows[0].params["rows"] for rows in cases})
    lines: dict[str, dict[int, str]] = {}
    for group in cases:
        by = {row.contender: row for row in group}
        p, ours = group[0].params, by[OURS]
        others = (by[one].median / ours.median for one in ("eager", "oneDNN", "oneDNN, packed"))
        text = f"{ours.extra['flop'] / ours.median / 1e9:.0f} ({' / '.join(f'{value:.2f}' for value in others)})"
        lines.setdefault(f"{p['n']} x {p['k']}", {})[p["rows"]] = text
    rows = [[shape, *(by[n] for n in few)] for shape, by in lines.items()]
    return markdown(("N x K", *(f"M={n}" for n in few)), rows) + f"\n\n{origin(measured)}"


def operators() -> str:
    """Each operator at each size beside eager torch and the fastest other."""
    measured, rows = results("ops"), []
    for group in cases_of(measured):
        by = {row.contender: row for row in group if row.seconds}
        if "flop" not in group[0].extra or group[0].name == "linear" or not {OURS, "eager"} <= by.keys():
            continue
        ours = by[OURS]
        others = [row for one, row in by.items() if not row.ours and one not in ("eager", "product alone")]
        other = min(others, key=lambda row: row.median, default=None)
        rest = "" if other is None else f"{other.median / ours.median:.2f} ({other.contender})"
        case = ", ".join(f"{key} {value}" for key, value in ours.params.items())
        share = f"{ours.fraction:.0%}" if ours.fraction else ""
        rows.append([ours.name, case, time_text(ours.median), share, times(by["eager"], ours), rest])
    heads = ("operator", "case", OURS, "of the limit", "eager", "fastest other")
    return markdown(heads, rows) + f"\n\n{origin(measured)}"


def growth() -> str:
    measured = results("scale")
    rows = []
    for (axis, engine), points in scale.series(rows_of(measured)).items():
        line = scale.fitted(points)
        x = f"{points[0][0]} to {points[-1][0]}"
        rows.append([axis, x, engine, time_text(line.fixed), time_text(line.each), f"{line.error:.0%}"])
    heads = ("parameter", "range", "engine", "fixed part", "per unit", "largest error of the line")
    return markdown(heads, rows) + f"\n\n{origin(measured)}"


def training() -> str:
    measured = results("train")
    rows = []
    for group in cases_of(measured):
        for row in group:
            if row.seconds:
                peak = f"{row.extra['peak'] / 1e6:.0f}" if row.extra.get("peak") else "not reported"
                figures = [f"{row.median:.2f}", times(row, group[0]), peak]
            else:
                figures = ["missing", "", ""]
            rows.append([str(row.params["batch"]), row.contender, *figures])
    heads = ("batch", "engine", "seconds", "relative to bertgen", "peak, MB")
    return markdown(heads, rows) + f"\n\n{origin(measured)}"


def drop_in() -> str:
    """Seconds of transformers before and after `accelerate`."""
    measured, rows = results("dropin"), []
    for group in cases_of(measured):
        by_name = {row.contender: row for row in group}
        before, after, own = by_name[dropin.THEIRS], by_name[dropin.FAST], by_name.get(dropin.OWN)
        params = before.params
        case = f"padding {params['padding']}" if "padding" in params else words("generate", params["beams"])
        figures = [f"{row.median:.2f}" if row else "" for row in (before, after, own)]
        rows.append([case if case.startswith("gen") else f"training step, {case}", *figures, times(before, after)])
    heads = ("case", "transformers, s", "accelerated, s", "bertgen's class, s", "speed-up")
    return markdown(heads, rows) + f"\n\n{origin(measured)}"


def step_overhead() -> str:
    measured = results("overhead")
    rows = []
    for row in rows_of(measured):
        figures = [row.median, row.extra["operators"], row.extra["overhead"]] if row.seconds else []
        cells = [f"{1e3 * value:.1f}" for value in figures] or ["missing"] * 3
        rows.append([row.contender, str(row.params["beams"]), *cells, f"{row.extra.get('calls', 0):.0f}"])
    heads = (
        "24 + 24 tiny layers, one thread, ms",
        "beams",
        "step",
        "operators, bare",
        "overhead",
        "operators",
    )
    return markdown(heads, rows) + f"\n\n{origin(measured)}"


def tokenizer() -> str:
    measured = results("tokenizer")
    rows = [
        [f"{row.name}: {row.contender}", f"{row.rate:,.0f}" if row.rate else "missing"] for row in rows_of(measured)
    ]
    return markdown(("function", "sentences/s"), rows) + f"\n\n{origin(measured)}"


def busy() -> str:
    """Generation beside CPU-bound processes."""
    measured = results(neighbours.PART)
    return markdown(*neighbours.busy_table(rows_of(measured))) + f"\n\n{origin(measured)}"


def confined() -> str:
    """Generation with fewer processors than the machine has."""
    return markdown(*neighbours.confined_table(rows_of(results(neighbours.PART))))


def dtypes_of(table: Callable[[Sequence[Row]], tuple[list[str], list[list[str]]]]) -> str:
    """One of the tables of the dtypes of a model."""
    measured = results(dtypes.PART)
    heads, lines = table(rows_of(measured))
    if not lines:
        raise InputError(f"bench/results has no rows of {table.__name__.replace('_', ' ')}")
    return markdown(heads, lines) + f"\n\n{origin(measured)}"


TABLES: dict[str, Callable[[], str]] = {
    "readme": readme,
    "seconds": lambda: seconds(MODEL),
    "ratios": lambda: ratios(MODEL),
    "demo": lambda: seconds("demo"),
    "large": lambda: seconds("large"),
    "latency": latency,
    "memory": memory,
    "linear": linear,
    "operators": operators,
    "growth": growth,
    "training": training,
    "drop-in": drop_in,
    "overhead": step_overhead,
    "tokenizer": tokenizer,
    "dtypes": lambda: dtypes_of(dtypes.quality_table),
    "steps": lambda: dtypes_of(dtypes.step_table),
    "sixteen": lambda: dtypes_of(dtypes.peer_table),
    "busy": busy,
    "confined": confined,
}


def main() -> None:
    argparse.ArgumentParser(description="Write the tables of README.md and docs/ from bench/results/.").parse_args()
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
