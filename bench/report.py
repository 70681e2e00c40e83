"""`bertgen bench report`: results as one self-contained HTML page, and its pictures as PNGs."""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from . import figures, machine
from .output import engineering, time_text
from .result import Result, Row, load

PAGE = "index.html"
INTRODUCTION = """
<p><b>bertgen</b> runs a family of text models (BertGeneration encoder-decoders: an encoder reads a text, a decoder
writes another text one token, a piece of a word, at a time). Other engines run the same models. This page shows how
long each takes for the same work on one machine, and how close that is to the limit of the machine.</p>
<p>Contenders take turns, so that a machine that slows down slows all of them. A figure is the median of all turns.
Outputs are compared before a time is kept; a contender with a wrong output has no time. A contender that is not
installed, or does not support a case, is listed as missing.</p>
"""
# Picture -> title, how to read it.
CAPTIONS = {
    "overview": (
        "In short",
        "How many times as fast as each library bertgen generates text in float32. Each side has its best batch size, "
        "and each library its fastest configuration.",
    ),
    "generation": (
        "Generating text",
        "For each kind of requests, how many times as long as bertgen each engine takes, with the batch size that "
        "suits it best. 2 is twice as long; below 1 (the blue line) the other engine is faster. <i>fixed</i>: all "
        "outputs have one length; <i>mixed</i>: the lengths of real outputs; <i>single</i>: one request after another. "
        "<i>Greedy</i> takes the likeliest token each time, <i>beams</i> follow several candidates. Whiskers: the "
        "smallest and the largest ratio of one turn.",
    ),
    "throughput": (
        "Tokens per second against the batch",
        "Many requests together use the machine better, up to its limit. Batch 1 of <i>mixed</i> is one request after "
        "another.",
    ),
    "latency": (
        "How long a token takes",
        "The time between two tokens of one request. With small batches and more requests waiting, bertgen lets new "
        "requests enter between two steps, and the running ones wait while the new texts are encoded: that is its 99th "
        "percentile. Engines that do not report when a token is ready are left out (CTranslate2 with beams).",
    ),
    "memory": (
        "Memory",
        "The peak memory of the process of each engine, model included, over all cases.",
    ),
    "growth": (
        "How the time grows",
        "One parameter varies, all others stay fixed. Where the points lie on their line, each further unit costs the "
        "same.",
    ),
    "training": ("Training", "One step on a padded batch. Whiskers: the middle half of all steps."),
    "speedups": (
        "Operators beside eager torch",
        "A bar is one operator of a model at one size. White diamonds: the fastest other implementation found on this "
        "machine. Where the diamond is to the right of the bar's end, that implementation is faster than bertgen.",
    ),
    "roofline": (
        "Operators against the machine",
        "The black line is the limit of the machine: the rising part is set by memory bandwidth, the flat part by "
        "arithmetic. A full marker is bertgen, a hollow marker of the same shape is eager torch in the same case. Data "
        "that stays in a cache can lift a marker above the rising line, and integer products above the flat one, which "
        "is the limit of floats.",
    ),
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
img { max-width: 100% } h2 { margin-top: 2.5rem } figure { margin: 1rem 0 } figcaption { color: #444 }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: 3px 8px; text-align: right; white-space: nowrap }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2), td:last-child { text-align: left }
tr.ours td { font-weight: 600 } .wrong { color: #a00; font-weight: 600 }
.warning { border: 2px solid #a00; background: #fff0ee; padding: 0.5rem 1rem; margin: 1rem 0 }
summary { cursor: pointer; margin: 1rem 0 }
code { background: #f2f2f2; padding: 0 3px }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The result files and the output folder."""
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE", help="result of a part, written with --json")
    parser.add_argument("--output", type=Path, default=Path("report"), metavar="FOLDER", help="default: report")


def run(args: argparse.Namespace) -> int:
    """Write the page and the pictures, and print the path of the page."""
    page = write([load(path) for path in args.results], args.output)
    print(page)
    return 0


def write(results: Sequence[Result], folder: Path) -> Path:
    """Write the page and the pictures into a folder, created if missing; returns the path of the page."""
    pictures = figures.drawn(results, folder)
    page = folder / PAGE
    page.write_text(html(results, pictures), encoding="utf-8")
    return page


def html(results: Sequence[Result], pictures: dict[str, Path]) -> str:
    parts = ["<h1>How fast bertgen is</h1>", warning(results), INTRODUCTION, machines(results), faults(results)]
    for name, path in pictures.items():
        title, caption = CAPTIONS[name]
        image = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f'<h2 id="{name}">{title}</h2>{warning(figures.shown_in(name, results))}<figure>'
            f'<img alt="{title}" src="data:image/png;base64,{image}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    parts.append("<h2>All figures</h2><p>Bold: bertgen. <i>Limit</i>: the share of the machine's limit.</p>")
    parts += [table(result) for result in results]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>bertgen bench</title><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def warning(results: Sequence[Result]) -> str:
    """A box with the results that are not reliable and the reasons; empty if all are reliable."""
    lines = [f"{result.command}: {doubt}" for result in results for doubt in result.doubts]
    return f'<div class="warning"><b>Not to be relied on:</b>{_list(lines)}</div>' if lines else ""


def machines(results: Sequence[Result]) -> str:
    """A table of commands, machines and times."""
    rows = []
    for result in results:
        where = machine.described(result.environment)
        cells = [f"<code>{escape(result.command)}</code>", escape(where), escape(result.environment["time"])]
        cells.append(f'<span class="wrong">{escape("; ".join(result.doubts))}</span>' if result.doubts else "")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ("command", "machine and versions", "when", "warnings")
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(rows)}</table>"


def faults(results: Sequence[Result]) -> str:
    """Lists of contenders with wrong outputs, and of missing contenders with reasons."""
    missing: dict[tuple[str, str], int] = {}
    wrong = []
    for row in (row for result in results for row in result.rows):
        if row.absent:
            missing[row.contender, row.absent] = missing.get((row.contender, row.absent), 0) + 1
        if row.wrong:
            wrong.append(f"{row.title}: {row.contender}: {row.wrong}")
    parts = [f'<p class="wrong">Wrong outputs, not timed:</p>{_list(wrong)}'] if wrong else []
    if missing:
        lines = [f"{name}: {why[:300]} ({count} cases)" for (name, why), count in missing.items()]
        parts.append(f"<details><summary>Missing contenders, and why ({len(lines)})</summary>{_list(lines)}</details>")
    return "".join(parts)


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def table(result: Result) -> str:
    """All rows of one result, in a collapsed table."""
    heads = ("case", "contender", "time", "middle half of the times", "rate", "limit", "correct")
    lines = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for rows in result.cases.values():
        lines += [line(row) for row in rows]
    title = f"{escape(result.part)}: {len(result.rows)} rows"
    if result.doubts:
        title += f' <span class="wrong">{escape("; ".join(result.doubts))}</span>'
    return f"<details><summary>{title}</summary><table>{''.join(lines)}</table></details>"


def line(row: Row) -> str:
    if row.seconds:
        spread = " to ".join(time_text(edge) for edge in row.quartiles) if row.quartiles else "timed once"
        rate = f"{engineering(row.rate)}{row.unit}/s" if row.rate else ""
        cells = [time_text(row.median), spread, rate, f"{row.fraction:.0%}" if row.fraction else "", row.correct or ""]
    else:
        cells = [f"wrong: {row.wrong}" if row.wrong else "missing", "", "", "", (row.absent or "")[:120]]
    kind = ' class="ours"' if row.ours else ""
    return (
        f"<tr{kind}>"
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in (row.title, row.contender, *cells))
        + "</tr>"
    )
