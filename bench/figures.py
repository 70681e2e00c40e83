"""Pictures of results. Each function draws one, or returns None without the rows that it shows.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; markers and hatches differ as well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bertgen.optional_imports import load_matplotlib

from . import scale
from .generate import ENGINES
from .result import OURS, Result, Row, best, ratio

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999", "#882255", "#44AA99")
MARKERS = "osD^vP*Xhp"
HATCHES = ("", "//", "\\\\", "xx", "..", "--", "oo", "++", "**", "||")
DPI = 100
FINE_DPI = 200  # of a picture that a page shows smaller than it is
CLIPPED = 40.0  # times as fast, where the picture ends
WIDE = 9.5  # inches
OVERVIEW_COLOURS = ("#0072B2", "#E69F00", "#009E73")
MODEL = "base"  # the model of the overview and of the README's table
PURPOSE = "a report of benchmarks"
ROUNDED = ("int4", "int8")  # engines whose weights are rounded end with one of these


def drawn(results: Sequence[Result], folder: Path) -> dict[str, Path]:
    """Draw every picture that the results have rows for, as PNGs; returns name -> file.

    Raises:
        BackendError: matplotlib cannot be imported.
    """
    matplotlib = load_matplotlib(PURPOSE)
    style = {"font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True, "axes.titlesize": 11}
    paths = {}
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(style):
        for name, draw in FIGURES.items():
            figure = draw([row for result in results for row in result.rows], results)
            if figure is not None:
                paths[name] = folder / f"{name}.png"
                _warn(figure, shown_in(name, results))
                figure.savefig(paths[name], dpi="figure", bbox_inches="tight")
    return paths


def shown_in(name: str, results: Sequence[Result]) -> list[Result]:
    """The results that a picture is drawn from."""
    return [result for result in results if result.part in PARTS[name]]


def _warn(figure: Any, results: Sequence[Result]) -> None:
    """Write the reasons over a picture that is not reliable."""
    doubts = dict.fromkeys(f"{result.part}: {doubt}" for result in results for doubt in result.doubts)
    if doubts:
        lines = [line for doubt in doubts for line in textwrap.wrap(doubt, 105)]
        text = "\n".join(["NOT TO BE RELIED ON", *lines])
        figure.text(0.5, 1.01, text, color="#AA0000", weight="bold", ha="center", va="bottom", fontsize=10)


def look(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour, a marker and a hatch for each name; an engine has the same ones in every picture."""
    known = list(ENGINES) if any(name in ENGINES for name in names) else []
    order = [*known, *(name for name in dict.fromkeys(names) if name not in known)]
    places = {name: order.index(name) % len(COLOURS) for name in names}
    return {name: {"color": COLOURS[at], "marker": MARKERS[at], "hatch": HATCHES[at]} for name, at in places.items()}


def subplots(*shape: int, size: tuple[float, float], dpi: int = DPI) -> Any:
    """A figure without a window and outside pyplot's list of figures, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    return figure, figure.subplots(*shape, squeeze=False)


def shaped(rows: Sequence[Row]) -> list[Row]:
    """Rows of operators at sizes that matter, whose bytes and FLOPs are known."""
    return [row for row in rows if row.seconds and "flop" in row.extra]


def roofline(rows: Sequence[Row], results: Sequence[Result]) -> Any:
    import numpy

    points = [row for row in shaped(rows) if row.contender in (OURS, "eager") and row.extra["flop"]]
    limits = [result.environment["limits"] for result in results if result.part == "ops" and result.rows]
    if not points or not limits:
        return None
    limit = limits[0]
    figure, ((axes,),) = subplots(1, 1, size=(WIDE, 6))
    places = [row.extra["flop"] / row.extra["bytes"] for row in points]
    x = numpy.geomspace(min(places) / 2, max(*places, 3 * limit["FLOP"] / limit["B"]) * 2, 200)
    axes.plot(x, numpy.minimum(x * limit["B"], limit["FLOP"]) / 1e9, color="black", lw=1.5, label="the machine's limit")
    looks = look([row.name for row in points])
    for row, place in zip(points, places):
        ours = row.contender == OURS
        shape = looks[row.name]
        axes.plot(
            place, row.extra["flop"] / row.median / 1e9, shape["marker"], color=shape["color"], ms=7,
            mfc=shape["color"] if ours else "none", alpha=0.9,
        )  # fmt: skip
    for name, shape in looks.items():
        axes.plot([], [], shape["marker"], color=shape["color"], label=name)
    axes.plot([], [], "o", color="grey", mfc="none", label="hollow: eager torch")
    axes.set(xscale="log", yscale="log", xlabel="work for each byte that must move (FLOP/byte)", ylabel="GFLOP/s")
    axes.set_title("Every operator against the limit of the machine: closer to the black line is better")
    axes.legend(fontsize=8, loc="lower right", ncols=2)
    return figure


def speedups(rows: Sequence[Row], results: Sequence[Result]) -> Any:
    """How many times faster than eager torch each operator is, and the fastest of all others."""
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in shaped(rows):
        cases.setdefault(row.case, []).append(row)
    bars = []
    for group in cases.values():
        by = {row.contender: row for row in group}
        if OURS not in by or "eager" not in by:
            continue
        others = [row for row in group if not row.ours and row.contender not in ("eager", "product alone")]
        bars.append((by["eager"], by[OURS], min(others, key=lambda row: row.median, default=None)))
    if not bars:
        return None
    figure, ((axes,),) = subplots(1, 1, size=(WIDE, 1.3 + 0.21 * len(bars)))
    looks = look([ours.name for _, ours, _ in bars])
    for i, (eager, ours, other) in enumerate(bars):
        value, low, high = ratio(eager, ours)
        spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.barh(i, value, color=looks[ours.name]["color"], height=0.7, xerr=spread, error_kw={"lw": 1, "capsize": 2})
        if other is not None:
            axes.plot(eager.median / other.median, i, "D", color="black", mfc="white", ms=4.5, zorder=3)
    axes.plot([], [], "D", color="black", mfc="white", ms=5, label="the fastest other implementation")
    axes.axvline(1, color="black", lw=1)
    axes.set_yticks(range(len(bars)), [short(ours) for _, ours, _ in bars], fontsize=7)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    high = min(high, CLIPPED)
    axes.set_xlim(low, high)
    for i, (eager, ours, _) in enumerate(bars):
        if eager.median / ours.median > high:
            axes.text(high, i, f"{eager.median / ours.median:,.0f}x, beyond the picture ", ha="right", va="center",
                      fontsize=7, color="white")  # fmt: skip
    ticks = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    ticks = ticks if len(ticks) < 12 else ticks[::3]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("times as fast as eager torch (logarithmic)")
    axes.set_title("Operators: a longer bar is better. Whiskers: the middle half of all turns. Line: eager torch")
    axes.legend(fontsize=8, loc="lower right")
    return figure


def short(row: Row) -> str:
    """A case in few characters."""
    words = {"heads": "", "width": "", "layers": "", "group": "", "vocabulary": "V"}
    return " ".join(
        [row.name, *(f"{words.get(k, k)} {v:g}" if not isinstance(v, bool) else k * v for k, v in row.params.items()
                     if words.get(k, k))]
    )  # fmt: skip


# Requests of `generate` -> the words of the overview.
REQUESTS = {"fixed": "outputs of 32 tokens", "mixed": "outputs of real lengths", "single": "one request at a time"}


def overview(rows: Sequence[Row], results: Sequence[Result]) -> Any:
    """The speed-up of one model over each library in its fastest float32 configuration: the picture of the README."""
    models = list(dict.fromkeys(row.params["model"] for row in rows if row.name == "generate" and row.seconds))
    if not models:
        return None
    cases = speed_ups(rows, MODEL if MODEL in models else models[0])
    names = sorted({name for by in cases.values() for name in by}, reverse=True)
    if not names:
        return None
    figure, ((axes,),) = subplots(1, 1, size=(8.6, 1.4 + 0.5 * len(cases)), dpi=FINE_DPI)
    height = 0.8 / len(names)
    for j, name in enumerate(names):
        for i, by in enumerate(cases.values()):
            if name in by:
                at = i - 0.4 + (j + 0.5) * height
                axes.barh(at, by[name], 0.92 * height, color=OVERVIEW_COLOURS[j % len(OVERVIEW_COLOURS)])
                axes.text(by[name] + 0.03, at, f"{by[name]:.2f}x", va="center", fontsize=10)
        axes.barh(0, 0, color=OVERVIEW_COLOURS[j % len(OVERVIEW_COLOURS)], label=f"over {name}")
    axes.axvline(1, color="black", lw=1)
    labels = [f"{REQUESTS.get(requests, requests)}, " + ("greedy" if beams == 1 else f"{beams} beams")
              for requests, beams in cases]  # fmt: skip
    axes.set_yticks(range(len(cases)), labels, fontsize=10)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xticks(range(int(axes.get_xlim()[1]) + 1), [f"{tick}x" for tick in range(int(axes.get_xlim()[1]) + 1)])
    axes.grid(axis="y", visible=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Speed-up of bertgen in float32 (line: equally fast)", fontsize=12)
    figure.legend(loc="outside lower center", ncols=len(names), fontsize=10, frameon=False)
    return figure


def speed_ups(rows: Sequence[Row], model: str) -> dict[tuple[str, int], dict[str, float]]:
    """(requests, beams) -> library -> its time divided by bertgen's, the faster of its configurations in float32."""
    ratios: dict[tuple[str, int], dict[str, float]] = {}
    for (of, requests, beams), by in best_of_cases(rows).items():
        if of != model or OURS not in by:
            continue
        fastest: dict[str, Row] = {}
        for name, row in by.items():
            library = name.split()[0]
            if library != OURS and not name.endswith(ROUNDED):
                fastest[library] = min(row, fastest.get(library, row), key=lambda one: one.median)
        ratios[requests, beams] = {library: ratio(row, by[OURS])[0] for library, row in fastest.items()}
    return ratios


def generation(rows: Sequence[Row], results: Sequence[Result]) -> Any:
    """How many times as long the others take, in each case of `generate`; a panel for each model."""
    cases = {case: by for case, by in best_of_cases(rows).items() if OURS in by and len(by) > 1}
    models = list(dict.fromkeys(model for model, _, _ in cases))
    if not cases:
        return None
    others = dict.fromkeys(name for by in cases.values() for name in by if name != OURS)
    names = sorted(others, key=lambda name: list(ENGINES).index(name) if name in ENGINES else len(ENGINES))
    looks, width = look(names), 0.8 / len(names)
    figure, grid = subplots(len(models), 1, size=(WIDE, 3.6 * len(models) + 0.7))
    for axes, model in zip(grid.flat, models):
        shown = {case: by for case, by in cases.items() if case[0] == model}
        for i, by in enumerate(shown.values()):
            for j, name in enumerate(names):
                if name not in by:
                    continue
                value, low, high = ratio(by[name], by[OURS])
                at, shape = i - 0.4 + (j + 0.5) * width, looks[name]
                axes.bar(at, value, width * 0.92, color=shape["color"], hatch=shape["hatch"], edgecolor="white")
                if len(by[name].seconds) > 1:
                    spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
                    axes.errorbar(at, value, spread, color="black", lw=1, capsize=2)
                top = max(value, high) if len(by[name].seconds) > 1 else value
                axes.text(at, top + 0.04, f"{value:.1f}", ha="center", va="bottom", fontsize=7)
        axes.axhline(1, color=COLOURS[0], lw=2, label="bertgen")
        axes.set_xticks(range(len(shown)), [label("", *case[1:]).strip() for case in shown])
        axes.margins(y=0.12)
        axes.set_ylabel("time / bertgen's time")
        axes.set_title(f"model {model}")
    for name in names:
        grid.flat[0].bar(0, 0, color=looks[name]["color"], hatch=looks[name]["hatch"], edgecolor="white", label=name)
    _legend(figure, grid)
    figure.suptitle(
        "The same work: a bar above the blue line takes longer than bertgen, one below it less", fontsize=11
    )
    return figure


def best_of_cases(rows: Sequence[Row]) -> dict[tuple[str, str, int], dict[str, Row]]:
    """(model, requests, beams) -> engine -> its row at the setting that suits it best."""
    groups: dict[tuple[str, str, int], dict[str, list[Row]]] = {}
    for row in rows:
        if row.name == "generate" and row.seconds:
            case = (row.params["model"], row.params["requests"], row.params["beams"])
            groups.setdefault(case, {}).setdefault(row.contender, []).append(row)
    return {case: {name: best(group) for name, group in by.items()} for case, by in sorted(groups.items())}


def label(model: str, requests: str, beams: int) -> str:
    return f"{model}\n{requests}\n" + ("greedy" if beams == 1 else f"{beams} beams")


def batches(rows: Sequence[Row], results: Sequence[Result]) -> Any:
    """Tokens per second against the batch."""
    return _by_batch(
        rows,
        lambda row: [row.amount / row.median],
        "tokens per second",
        "Throughput against the batch: higher is better",
    )


def latencies(rows: Sequence[Row], results: Sequence[Result]) -> Any:
    """Time between two tokens of a request, against the batch."""

    def values(row: Row) -> list[float] | None:
        percentiles = [row.extra.get("token_p50"), row.extra.get("token_p99")]
        return None if None in percentiles else [1e3 * value for value in percentiles]

    title = "Time between two tokens: lower is better. Solid: half of them wait less; dashed: 99% do"
    return _by_batch(rows, values, "milliseconds", title)


def _legend(figure: Any, grid: Any) -> None:
    """One legend for all panels, under them, with the entries of every panel."""
    shown = {}
    for axes in grid.flat:
        if axes.get_visible():
            handles, texts = axes.get_legend_handles_labels()
            shown |= {text: handle for handle, text in zip(handles, texts) if text not in shown}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3, fontsize=8)


def _by_batch(rows: Sequence[Row], values: Callable[[Row], list[float] | None], unit: str, title: str) -> Any:
    groups: dict[tuple[str, str, int], dict[str, dict[int, Row]]] = {}
    for row in rows:
        if row.name == "generate" and row.seconds and "batch" in row.params and values(row):
            p = row.params
            case = (p["model"], "mixed" if p["requests"] == "single" else p["requests"], p["beams"])
            by = groups.setdefault(case, {}).setdefault(row.contender, {})
            by[p["batch"]] = max(row, by.get(p["batch"], row), key=lambda one: (len(one.seconds), one.rate))
    series = {
        case: {name: [(batch, values(row)) for batch, row in by.items()] for name, by in contenders.items()}
        for case, contenders in groups.items()
    }
    series = {case: by for case, by in sorted(series.items()) if any(len(points) > 1 for points in by.values())}
    if not series:
        return None
    names = list(dict.fromkeys(name for by in series.values() for name in by))
    looks = look(names)
    columns = min(2, len(series))
    lines = -(-len(series) // columns)
    figure, grid = subplots(lines, columns, size=(WIDE, 3.2 * lines + 0.6))
    for axes in grid.flat[len(series) :]:
        axes.set_visible(False)
    for axes, (case, by) in zip(grid.flat, series.items()):
        for name, points in by.items():
            points.sort()
            shape = looks[name]
            for k, dash in enumerate(("-", "--")[: len(points[0][1])]):
                axes.plot(
                    [batch for batch, _ in points], [value[k] for _, value in points], dash, marker=shape["marker"],
                    color=shape["color"], lw=2.5 if name == OURS else 1.3, ms=5, label=name,
                )  # fmt: skip
        ticks = sorted({batch for points in by.values() for batch, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_ylim(bottom=0)
        axes.set(xlabel="requests decoded together", ylabel=unit)
        axes.set_title(label(*case).replace("\n", ", "))
    _legend(figure, grid)
    figure.suptitle(title, fontsize=11)
    return figure


def memory(rows: Sequence[Row], results: Sequence[Result]) -> Any:
    """The peak of each engine: the largest of its cases of generation, and of a training step."""
    groups: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.name in ("generate", "train") and row.extra.get("peak"):
            title = f"generate, {row.params['model']}" if row.name == "generate" else (
                f"train, {row.params['model']}, batch {row.params['batch']}")  # fmt: skip
            by = groups.setdefault(title, {})
            by[row.contender] = max(by.get(row.contender, 0), row.extra["peak"])
    if not groups:
        return None
    names = list(dict.fromkeys(name for by in groups.values() for name in by))
    looks = look(names)
    figure, grid = subplots(len(groups), 1, size=(WIDE, sum(0.9 + 0.3 * len(by) for by in groups.values())))
    for axes, (title, by) in zip(grid.flat, groups.items()):
        for i, (name, value) in enumerate(by.items()):
            axes.barh(i, value / 1e9, color=looks[name]["color"], hatch=looks[name]["hatch"], edgecolor="white")
            axes.text(value / 1e9, i, f" {value / 1e9:.2f}", va="center", fontsize=8)
        axes.set_yticks(range(len(by)), list(by), fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(right=1.12 * max(by.values()) / 1e9)
        axes.set_title(title)
        axes.set_xlabel("GB at the peak of the process")
    figure.suptitle("Memory: a shorter bar is better", fontsize=11)
    return figure


def growth(rows: Sequence[Row], results: Sequence[Result]) -> Any:
    """The points of `scale`, and the lines fitted to them."""
    series = scale.series(rows)
    axes_of = list(dict.fromkeys(axis for axis, _ in series))
    if not axes_of:
        return None
    looks = look(list(dict.fromkeys(engine for _, engine in series)))
    units = {"batch": "requests together", "source": "source tokens", "target": "output tokens", "beams": "beams",
             "layers": "layers in each half"}  # fmt: skip
    columns = min(3, len(axes_of))
    lines = -(-len(axes_of) // columns)
    figure, grid = subplots(lines, columns, size=(WIDE, 3.0 * lines + 0.6))
    for axes in grid.flat[len(axes_of) :]:
        axes.set_visible(False)
    for axes, axis in zip(grid.flat, axes_of):
        for (one, engine), points in series.items():
            if one != axis:
                continue
            line = scale.fitted(points)
            x = [value for value, _ in points]
            shape = looks[engine]
            axes.plot(x, [seconds for _, seconds in points], shape["marker"], color=shape["color"], label=engine)
            axes.plot(x, [line.fixed + line.each * value for value in x], "-", color=shape["color"], lw=1)
        axes.set(xlabel=units[axis], ylabel="seconds")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    _legend(figure, grid)
    figure.suptitle("How the time grows: lower is better. Points were measured, lines are fitted to them", fontsize=11)
    return figure


def training(rows: Sequence[Row], results: Sequence[Result]) -> Any:
    """Seconds of a training step."""
    steps = [row for row in rows if row.name == "train" and row.seconds]
    if not steps:
        return None
    groups: dict[str, list[Row]] = {}
    for row in steps:
        groups.setdefault(f"{row.params['model']}\nbatch {row.params['batch']}", []).append(row)
    names = list(dict.fromkeys(row.contender for row in steps))
    looks, width = look(names), 0.8 / len(names)
    figure, ((axes,),) = subplots(1, 1, size=(WIDE, 3.6))
    for i, group in enumerate(groups.values()):
        for row in group:
            at = i - 0.4 + (names.index(row.contender) + 0.5) * width
            low, high = row.quartiles or (row.median, row.median)
            shape = looks[row.contender]
            axes.bar(at, row.median, width * 0.92, color=shape["color"], hatch=shape["hatch"], edgecolor="white",
                     yerr=[[row.median - low], [high - row.median]], error_kw={"capsize": 2})  # fmt: skip
            axes.text(at, high * 1.02, f"{row.median:.2f}", ha="center", va="bottom", fontsize=8)
    for name in names:
        axes.bar(0, 0, color=looks[name]["color"], hatch=looks[name]["hatch"], edgecolor="white", label=name)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.margins(y=0.12)
    axes.set_ylabel("seconds of a step")
    axes.set_title("A training step (forward, backward, AdamW): lower is better")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


FIGURES: dict[str, Callable[[Sequence[Row], Sequence[Result]], Any]] = {
    "overview": overview, "generation": generation, "throughput": batches, "latency": latencies, "memory": memory,
    "growth": growth, "training": training, "speedups": speedups, "roofline": roofline,
}  # fmt: skip

# Picture -> parts whose rows it shows.
PARTS = {
    "overview": ("generate",), "generation": ("generate",), "throughput": ("generate",), "latency": ("generate",),
    "memory": ("generate", "train"), "growth": ("scale",), "training": ("train",), "speedups": ("ops",),
    "roofline": ("ops",),
}  # fmt: skip
