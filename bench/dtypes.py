"""Dtypes of a model on a CPU: size, BLEU and speed side by side, and each dtype beside transformers in the same dtype.

    python -m bertgen.bench.dtypes [quality] [speed] [--data test.tsv] [--size base] [--repeats 5] [--json FILE]

`quality` converts the demo model to float32, bfloat16, float16 and int4 and translates the data with `bertgen evaluate`
in each of them.

`speed` decodes with random weights: 1 and 16 requests together, greedy and with four beams. A contender runs with an
output of one token and with a longer one; the difference is the time of its steps, without the encoder. Tokens are
compared with transformers' in the same dtype as `generate` does.

Dtypes and engines take turns. Ratios are of the same turn.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bertgen.compare import MARGINS
from bertgen.config import Int4Config
from bertgen.convert import convert

from . import generate, output, quantization, scale, workload
from .agreement import Judge
from .generate import Race
from .output import UNKNOWN, markdown, times
from .result import OURS, Result, Row
from .workload import Plan

PART = "dtypes"
INT4 = f"{OURS} int4"
THEIRS = "transformers sdpa"
DTYPES = ("float32", "bfloat16", "float16")
# Format -> options of convert.
FORMATS: dict[str, dict[str, Any]] = {dtype: dict(dtype=dtype) for dtype in DTYPES}
FORMATS["int4"] = dict(dtype="float32", int4=Int4Config(compute_dtype="int8"))
CASES = ((1, 1), (1, 4), (16, 1), (16, 4))  # requests, beams
SOURCE, TOKENS = 32, 17
BATCH = max(requests for requests, _ in CASES)


def quality(result: Result, args: argparse.Namespace) -> None:
    """Add a row for each format: the time of the data, with size and BLEU."""
    params = {"model": args.model, "beams": args.num_beams}
    if not args.data.exists():
        output.add(result, [Row("evaluate", params, name, absent=f"{args.data} is missing") for name in FORMATS])
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name, options in FORMATS.items():
            convert(args.model, root / name, **options)
        data = root / "data.tsv"
        with args.data.open(encoding="utf-8") as file:
            data.write_text("".join(itertools.islice(file, args.lines)), encoding="utf-8")
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in FORMATS}
        for _ in range(args.repeats):
            for name, reports in found.items():
                reports.append(quantization.evaluated(root / name, data, args.num_beams, FORMATS[name]["dtype"]))
        rows = []
        for name, reports in found.items():
            row = Row("evaluate", params, name, amount=reports[0]["tokens"], unit="token")
            row.seconds = [report["seconds"] for report in reports]
            row.extra = {"bleu": reports[0]["bleu"], "sentences": reports[0]["sentences"]}
            row.extra["bytes"] = sum(path.stat().st_size for path in (root / name).iterdir())
            rows.append(row)
    output.add(result, rows)


def speed(result: Result, args: argparse.Namespace) -> None:
    """Add a row for each case, dtype and engine: the time of whole requests, with the time of a step."""
    size = workload.SIZES[args.size]
    model = workload.build(size)
    plans = {dtype: Plan(size, dtype=dtype) for dtype in DTYPES}
    present, missing = {}, {}
    try:
        for dtype, plan in plans.items():
            output.say(f"starting the engines of {dtype}")
            names = [OURS, *[INT4] * (dtype == "float32"), THEIRS]
            present[dtype], missing[dtype] = generate.engines(names, plan, apart=True)
        for requests, beams in CASES:
            races: dict[tuple[str, int], Race] = {}
            for dtype in DTYPES:
                judge = Judge(model, MARGINS[dtype])
                for tokens in (1, TOKENS):
                    point = {"batch": requests, "source": SOURCE, "target": tokens, "beams": beams}
                    races[dtype, tokens] = Race(scale.made(point, size.vocabulary), present[dtype], judge)
            for _ in range(args.repeats):
                for race in races.values():
                    race.turn([BATCH])
            params = {"model": args.size, "requests": requests, "beams": beams, "tokens": TOKENS}
            for dtype in DTYPES:
                params = params | {"dtype": dtype}
                rows = of_steps(races[dtype, 1], races[dtype, TOKENS], plans[dtype], params)
                rows += [Row(PART, params, name, absent=why) for name, why in missing[dtype].items()]
                output.add(result, rows)
    finally:
        for one in (one for some in present.values() for one in some.values()):
            one.close()


def of_steps(short: Race, long: Race, plan: Plan, params: dict[str, Any]) -> list[Row]:
    """Rows of the long outputs, with the seconds of a step in each turn: the difference to outputs of one token."""
    unlimited = {"FLOP": 1.0, "B": 1.0}
    first = {row.contender: row for row in short.rows("", plan, unlimited)}
    rows = long.rows("", plan, unlimited)
    for row in rows:
        row.name, row.params, row.limit = PART, params, None
        one = first[row.contender]
        row.absent, row.wrong = row.absent or one.absent, row.wrong or one.wrong
        if row.absent or row.wrong:
            row.seconds = []
        row.extra["steps"] = [(b - a) / (TOKENS - 1) for a, b in zip(one.seconds, row.seconds)]
    return rows


def step(row: Row | None) -> Row | None:
    """The row of a step; None where it has no times."""
    if row is None or not row.extra.get("steps"):
        return None
    return Row("step", row.params, row.contender, row.extra["steps"])


def quality_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: size, BLEU and speed of each format."""
    rows = [row for row in rows if row.name == "evaluate"]
    measure = next((row for row in rows if row.contender == "float32" and row.seconds), None)
    lines = []
    for row in rows:
        cells = [UNKNOWN] * 3
        if row.seconds:
            cells = [f"{row.extra['bytes'] / 1e6:.1f}", f"{row.extra['bleu']:.1f}", f"{row.rate:.0f}"]
        lines.append([row.contender, *cells, times(measure, row)])
    return ["weights", "folder, MB", "BLEU", "tokens/s", "times as fast as float32"], lines


def step_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: a step in float32, and how many times as long as the others it takes."""
    others = [("bfloat16", OURS), ("float16", OURS), ("float32", INT4)]
    lines = []
    for title, by in _cases(rows).items():
        measure = step(by.get(("float32", OURS)))
        lines.append([title, f"{1e3 * measure.median:.1f}" if measure else UNKNOWN])
        lines[-1] += [times(measure, step(by.get(other))) for other in others]
    return ["requests", "float32, ms", "float32 / bfloat16", "float32 / float16", "float32 / int4"], lines


def peer_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: seconds of bertgen, and how many times as long transformers takes in the same dtype."""
    lines = []
    for title, by in _cases(rows).items():
        lines.append([title])
        for dtype in DTYPES:
            ours = by.get((dtype, OURS))
            seconds = f"{ours.median:.3f}" if ours and ours.seconds else UNKNOWN
            lines[-1] += [seconds, times(by.get((dtype, THEIRS)), ours)]
    heads = [cell for dtype in DTYPES for cell in (f"{dtype}, s", "transformers / bertgen")]
    return ["requests", *heads], lines


def _cases(rows: Sequence[Row]) -> dict[str, dict[tuple[str, str], Row]]:
    """Case -> (dtype, engine) -> its row."""
    by: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        if row.name == PART:
            beams = row.params["beams"]
            title = f"{row.params['requests']}, {'greedy' if beams == 1 else f'{beams} beams'}"
            by.setdefault(title, {})[row.params["dtype"], row.contender] = row
    return by


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    output.add_arguments(parser)
    parser.add_argument("parts", nargs="*", metavar="PART", help="quality, speed (default: both)")
    parser.add_argument("--model", default="demo", help="of quality (default: demo)")
    parser.add_argument("--data", type=Path, default=quantization.DATA, help="source TAB reference (default: Tatoeba)")
    parser.add_argument("--lines", type=int, help="number of lines of the data (default: all)")
    parser.add_argument("--num-beams", type=int, default=4, help="of quality (default: 4)")
    parser.add_argument("--size", choices=workload.SIZES, default="base", help="of speed (default: base)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="turns (default: 5)")
    args = parser.parse_args()
    parts = {"quality": quality, "speed": speed}
    if unknown := set(args.parts) - parts.keys():
        parser.error(f"{', '.join(sorted(unknown))}: the parts are {' and '.join(parts)}")
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    result = output.begin(PART, args, torch.device("cpu"))
    output.head()
    for name, part in parts.items():
        if not args.parts or name in args.parts:
            part(result, args)
    for table in (quality_table, step_table, peer_table):
        heads, lines = table(result.rows)
        if lines:
            print("\n" + markdown(heads, lines))
    raise SystemExit(output.end(result, args))


if __name__ == "__main__":
    main()
