"""bertgen beside transformers and CTranslate2: the same weights, sources and lengths, on this machine's CPU.

    python bench/generate.py [--only KIND ...] [--requests 32] [--singles 4] [--repeats 3] [--json FILE]

Three kinds of requests, each greedy and with four beams: `fixed`, outputs of 32 tokens; `mixed`, the lengths of real
targets; `single`, one request after another, as long as those. Random weights seldom stop, so no engine may end by
itself, and each output stops at its length; what an engine computes beyond it does not count.

Each engine runs with batches of several sizes, and with the ways it has (transformers: sdpa, and eager at the size
best for sdpa), from small to large while that pays; the best goes on. Before every run that counts comes a short one
that does not. Engines run by turns, each in a process of its own. Printed are medians of seconds, in brackets the
useful FLOP/s as a share of the speed of a large product in the same run; ratios of medians, behind them the smallest
and the largest of one turn; `limit`, what the products at that speed take or the weights read once a step, whichever is
slower; and the outputs that are equal to ours. A wrong token makes the command fail; an engine that is not installed is
said to be missing.

Then `memory`, the peak of one mixed batch with four beams, and `overhead`, what a step takes besides its operators.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import contenders
import machine
import overhead
import peak_memory
import workload
from agreement import Agreement, Judge
from contenders import Contender
from workload import Case, Size

DATA = Path(__file__).parents[2] / "shared/data/wikisplit/test.tsv"
KINDS = (*workload.KINDS, "memory", "overhead")
COLUMNS = ("bertgen", "transformers", "CTranslate2")
SLACK = 1.1  # larger batches are tried until one takes so much longer than the best
MEMORY_BATCH = 16
OVERHEAD_REPEATS = 9
Setting = tuple[str, int]  # variant, batch


class Race:
    """One case, the contenders by turns."""

    def __init__(self, case: Case, present: Sequence[Contender], judge: Judge):
        self.case, self.present, self.judge = case, present, judge
        self.seconds: dict[str, dict[Setting, list[float]]] = {one.name: {} for one in present}
        self.best: dict[str, Setting] = {}
        self.agreement: dict[str, dict[Setting, Agreement]] = {one.name: {} for one in present}
        self.wrong: list[str] = []
        self.speeds: list[tuple[float, float]] = []
        self.ours: workload.Tokens = []

    def run(self, sizes: Sequence[int], repeats: int) -> None:
        for turn in range(repeats):
            self.speeds.append(machine.speeds())
            for one in self.present:
                if turn == 0:
                    self._choose(one, sizes)
                else:
                    self._time(one, self.best[one.name])

    def _choose(self, one: Contender, sizes: Sequence[int]) -> None:
        taken: dict[Setting, float] = {}
        first, *others = one.variants
        for size in sizes:
            taken[first, size] = self._time(one, (first, size))
            if taken[first, size] > SLACK * min(taken.values()):
                break
        _, size = min(taken, key=taken.__getitem__)
        for variant in others:
            taken[variant, size] = self._time(one, (variant, size))
        self.best[one.name] = min(taken, key=taken.__getitem__)

    def _time(self, one: Contender, setting: Setting) -> float:
        case, (variant, batch) = self.case, setting
        few = slice(0, 1 if case.kind == "single" else batch)
        short = [4] * len(case.lengths[few])
        one.run(case.sources[few], short, case.beams, batch, variant)  # wakes threads
        start = time.perf_counter()
        tokens = one.run(case.sources, case.lengths, case.beams, batch, variant)
        spent = time.perf_counter() - start
        self.seconds[one.name].setdefault(setting, []).append(spent)
        self.ours = self.ours or tokens  # bertgen comes first
        found = self.judge.compare(case, self.ours, tokens)
        self.agreement[one.name][setting] = found
        self.wrong += [f"{case.name}, {one.name} {label(setting)}: {text}" for text in found.wrong]
        say(f"{case.name}: {one.name} {label(setting)} {spent:.2f} s, tokens equal {found}")
        return spent

    def row(self, size: Size) -> dict[str, Any]:
        flops, bandwidth = (statistics.median(side) for side in zip(*self.speeds))
        useful = self.case.flop(size)
        row: dict[str, Any] = dict(
            kind=self.case.kind, beams=self.case.beams, requests=len(self.case.sources), flops=flops,
            bandwidth=bandwidth, useful_flop=useful, limit=self.case.limit(size, flops, bandwidth), engines={},
            wrong=self.wrong,
        )  # fmt: skip
        ours = self.seconds["bertgen"][self.best["bertgen"]]
        for one in self.present:
            best = self.best[one.name]
            taken, found = self.seconds[one.name][best], self.agreement[one.name][best]
            median = statistics.median(taken)
            turns = [theirs / mine for theirs, mine in zip(taken, ours)]
            row["engines"][one.name] = dict(
                variant=best[0], batch=best[1], seconds=taken, median=median, useful=useful / median / flops,
                ratio=median / statistics.median(ours), ratios=[min(turns), max(turns)],
                compared=found.compared, equal=found.equal, ties=found.ties,
                tried={label(setting): values[0] for setting, values in self.seconds[one.name].items()},
            )  # fmt: skip
        return row


def label(setting: Setting) -> str:
    variant, batch = setting
    return f"{variant} batch {batch}".strip()


def say(text: str) -> None:
    """Progress, beside the tables."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def races(args: argparse.Namespace, size: Size, missing: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of the kinds of requests that were asked for; names the engines that are missing."""
    kinds = [kind for kind in workload.KINDS if kind in args.only]
    if not kinds:
        return []
    say("building the model, converting it for the others")
    model = workload.build(size)
    present, absent = contenders.load(size, apart=not args.same_process)
    missing |= absent
    print(
        "| requests | bertgen s | transformers s | CTranslate2 s | limit s | transformers / bertgen "
        "| CTranslate2 / bertgen | best settings | tokens equal |"
    )
    print("|---" * 9 + "|", flush=True)
    rows = []
    for kind in kinds:
        count, sizes = (args.singles, [1]) if kind == "single" else (args.requests, args.batches)
        for case in workload.cases(kind, args.data, count, size):
            race = Race(case, present, Judge(model))
            race.run(sorted({min(n, count) for n in sizes}), args.repeats)
            rows.append(race.row(size))
            print(line(case, rows[-1]), flush=True)
    for one in present:
        one.close()
    return rows


def line(case: Case, row: dict[str, Any]) -> str:
    def each(text: Callable[[dict[str, Any]], str], names: Sequence[str]) -> list[str]:
        return [text(row["engines"][name]) if name in row["engines"] else "missing" for name in names]

    seconds = each(lambda one: f"{one['median']:.2f} ({one['useful']:.0%})", COLUMNS)
    ratios = each(lambda one: "{:.2f}x ({:.2f} to {:.2f})".format(one["ratio"], *one["ratios"]), COLUMNS[1:])
    settings = each(lambda one: label((one["variant"], one["batch"])), COLUMNS)
    equal = each(lambda one: f"{one['equal']} of {one['compared']}" + tied(one["ties"]), COLUMNS[1:])
    cells = [case.name, *seconds, f"{row['limit']:.2f}", *ratios, "; ".join(settings), "; ".join(equal)]
    return f"| {' | '.join(cells)} |"


def tied(ties: list[str]) -> str:
    return f" and {len(ties)} at a tie" if ties else ""


def memory(args: argparse.Namespace, size: Size) -> dict[str, dict[str, Any]]:
    _, case = workload.cases("mixed", args.data, min(MEMORY_BATCH, args.requests), size)
    say(f"memory: a batch of {len(case.sources)}, four beams, each engine in its own process")
    found = peak_memory.compare(case, size)
    bare = found["bertgen"]
    print(f"\nPeak memory of a batch of {len(case.sources)} mixed requests with four beams, MB")
    print("| | model loaded | peak | above the model | bertgen / this | above the model |")
    print("|---" * 6 + "|")
    for name, one in found.items():
        if "missing" in one:
            print(f"| {name} | missing | | | | |")
            continue
        above = one["peak"] - one["loaded"]
        ratios = f"{bare['peak'] / one['peak']:.2f}x | {(bare['peak'] - bare['loaded']) / above:.2f}x"
        print(f"| {name} | {one['loaded'] / 1e6:.0f} | {one['peak'] / 1e6:.0f} | {above / 1e6:.0f} | {ratios} |")
    sys.stdout.flush()
    return found


def overheads() -> list[dict[str, Any]]:
    size = overhead.DEEP
    say("overhead: layers that are all overhead, on one thread")
    rows = overhead.compare(size, OVERHEAD_REPEATS)
    print(f"\nOverhead of a step, {size.layers} + {size.layers} layers of hidden size {size.hidden}, one thread, ms")
    print("| | beams | step | its operators, bare | overhead | operators |")
    print("|---" * 6 + "|")
    for row in rows:
        if "missing" in row:
            print(f"| {row['name']} | {row['beams']} | missing | | | |")
            continue
        step, operators, rest = (f"{1000 * row[name]:.1f}" for name in ("step", "operators", "overhead"))
        print(f"| {row['name']} | {row['beams']} | {step} | {operators} | {rest} | {row['calls']:.0f} |")
    sys.stdout.flush()
    return rows


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=workload.SIZES, default="base")
    parser.add_argument("--data", type=Path, help="lines of source TAB target; by default WikiSplit's, if it is there")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--singles", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--same-process", action="store_true", help="all engines in one process, sharing its threads")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    if args.data is None and DATA.exists():
        args.data = DATA
    return args


def main(words: Sequence[str] | None = None) -> int:
    args = arguments(words)
    size = workload.SIZES[args.size]
    result = dict(
        machine.environment(), size=args.size, same_process=args.same_process, requests=args.requests,
        singles=args.singles, repeats=args.repeats, data="made up" if args.data is None else args.data.name,
    )  # fmt: skip
    if result["load"] > 0.5:
        say(f"{result['load']:.1f} processes keep the machine busy already: times will be too long, and unequally so")
    missing: dict[str, str] = {}
    result["rows"] = races(args, size, missing)
    result["missing"] = missing
    for name, why in missing.items():
        print(f"\n{name} is missing: {why}")
    if result["rows"]:
        flops, bandwidth = (statistics.median(row[name] for row in result["rows"]) for name in ("flops", "bandwidth"))
        print(f"\n{flops / 1e9:.0f} GFLOP/s of a large product, {bandwidth / 1e9:.1f} GB/s of reading; {texts(args)}")
    result["memory"] = memory(args, size) if "memory" in args.only else {}
    result["overhead"] = overheads() if "overhead" in args.only else []
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    wrong = [text for row in result["rows"] for text in row["wrong"]]
    for text in wrong:
        print(f"wrong: {text}", file=sys.stderr)
    return 1 if wrong else 0


def texts(args: argparse.Namespace) -> str:
    origin = "made-up ids and lengths" if args.data is None else f"texts of {args.data.name}"
    return f"{args.requests} requests, {args.singles} single ones, {origin}"


if __name__ == "__main__":
    raise SystemExit(main())
