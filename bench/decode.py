"""Decoding with a large model on a GPU: one row, many beams, and many rows of mixed lengths, beside transformers.

    python -m bertgen.bench.decode [--device cuda] [--size large] [--dtype bfloat16] [--source 512] [--json FILE]

`one row` and `beams` are the time of a step: that of a long output minus that of a short one, over the difference of
their lengths, so that the encoder does not count. `mixed` is a whole run, of greedy requests whose lengths differ.
Contenders take turns, each in its own process. The limit is that of bytes and products alone (budget.py), with the
constants of an H200. Tokens are compared with bertgen's, and not judged: random weights have narrow margins in 16 bits.

On a CPU a run of the largest size takes minutes, so its rows have no time there; --size smoke has.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
from typing import Any, NamedTuple
from unittest import mock

import torch

from bertgen.errors import BertgenError, ConfigError

from . import budget, contenders, output
from .contenders import Bertgen, Contender, StaticBart, Transformers
from .int4 import Int4
from .result import OURS, Result, Row
from .workload import FIRST, SIZES, Plan, Size, Tokens

SHORT, LONG = 8, 136  # lengths of the outputs whose difference is timed
MIXED = 16, 256  # the shortest and the longest output of `mixed`
ON_A_CPU = "not on a CPU: a run of this size takes minutes there"


class WithoutGraphs(Bertgen):
    """bertgen with BERTGEN_GRAPHS=0."""

    def run(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> Tokens:
        with mock.patch.dict(os.environ, BERTGEN_GRAPHS="0"):
            return super().run(sources, lengths, beams, batch)


CONTENDERS: dict[str, tuple[Any, ...]] = {
    OURS: (Bertgen,),
    "bertgen without graphs": (WithoutGraphs,),
    "bertgen int4": (Int4, 128, True),
    "transformers eager": (Transformers, "eager"),
    "transformers sdpa": (Transformers, "sdpa"),
    "transformers BART, static and compiled": (StaticBart,),
}


class Setting(NamedTuple):
    """What is decoded: `count` sources at a time; None in `lengths` for the time of a step."""

    name: str
    count: int
    beams: int
    lengths: tuple[int, int] | None = None


SETTINGS = (Setting("one row", 1, 1), Setting("beams", 64, 4), Setting("mixed", 256, 1, MIXED))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    output.add_arguments(parser, device=True)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="default: bfloat16, float32 on a CPU"
    )
    parser.add_argument("--source", type=int, default=512, metavar="N", help="tokens of a source (default: 512)")
    parser.add_argument("--only", nargs="+", choices=[one.name for one in SETTINGS], metavar="NAME",
                        help='"one row", beams, mixed (default: all)')  # fmt: skip
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--rows", type=int, metavar="N", help="at most N sources at a time")
    parser.add_argument("--lengths", type=int, nargs=2, default=(SHORT, LONG), metavar="N",
                        help=f"of the two outputs whose difference is timed (default: {SHORT} {LONG})")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--same-process", action="store_true", help="run all contenders in this process")


def run(args: argparse.Namespace) -> int:
    """Print a table, and return the exit code."""
    short, long = args.lengths
    if not 0 < short < long:
        raise ConfigError(f"--lengths {short} {long}: the second must be larger, the first at least 1")
    device = torch.device(args.device)
    dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    result = output.begin("decode", args, device)
    result.environment["dtype"] = dtype
    plan = Plan(SIZES[args.size], None, args.device, dtype)
    settings = [one for one in SETTINGS if args.only is None or one.name in args.only]
    if args.rows is not None:
        settings = [one._replace(count=min(one.count, args.rows)) for one in settings]
    output.head()
    if device.type == "cpu" and args.size == "large":
        for setting in settings:
            rows = [Row("decode", params(setting, args, dtype), name, absent=ON_A_CPU) for name in args.contenders]
            output.add(result, rows)
        return output.end(result, args)
    race(result, plan, settings, args, dtype)
    return output.end(result, args)


def race(result: Result, plan: Plan, settings: list[Setting], args: argparse.Namespace, dtype: str) -> None:
    """Add the rows of all settings: the contenders that can be made take turns."""
    present: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    for name in args.contenders:
        kind, *arguments = CONTENDERS[name]
        if kind is StaticBart and args.device == "cpu":
            missing[name] = "not on a CPU: compiling takes minutes there"
            continue
        try:
            make = contenders.make if args.same_process else contenders.Apart
            present[name] = make(kind, plan, *arguments)
        except (BertgenError, ValueError, RuntimeError) as error:
            missing[name] = str(error).splitlines()[0]
    try:
        for setting in settings:
            output.add(result, rows(plan, present, missing, setting, args, dtype))
    finally:
        for one in present.values():
            one.close()


def params(setting: Setting, args: argparse.Namespace, dtype: str) -> dict[str, Any]:
    return {
        "model": args.size, "what": setting.name, "batch": setting.count, "beams": setting.beams, "source": args.source,
        "dtype": dtype,
    }  # fmt: skip


def rows(
    plan: Plan, present: dict[str, Contender], missing: dict[str, str], setting: Setting, args: argparse.Namespace,
    dtype: str,
) -> list[Row]:  # fmt: skip
    """One row for each contender, in the order in which they were named."""
    draw = random.Random(0)
    sources = [[draw.randrange(FIRST, plan.size.vocabulary) for _ in range(args.source)] for _ in range(setting.count)]
    lengths = [list(args.lengths)[:1] * setting.count, list(args.lengths)[1:] * setting.count]
    if setting.lengths is not None:
        lengths = [[draw.randint(*setting.lengths) for _ in sources]]
    taken: dict[str, list[float]] = {name: [] for name in present}
    tokens: dict[str, Tokens] = {}
    failed = dict(missing)
    for _ in range(args.repeats):
        for name, one in present.items():
            if name in failed:
                continue
            try:
                runs = [one.measured(sources, some, setting.beams, setting.count) for some in lengths]
            except (RuntimeError, ValueError) as error:  # memory, or what does not compile
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            tokens[name] = runs[-1].tokens
            steps = args.lengths[1] - args.lengths[0] if setting.lengths is None else 1
            first = runs[0].seconds if setting.lengths is None else 0.0
            taken[name].append((runs[-1].seconds - first) / steps)
            output.say(f"{setting.name}: {name} {1e3 * taken[name][-1]:.3f} ms")
    amount, limit = bounds(plan.size, setting, lengths, args.source, 4 if dtype == "float32" else 2)
    told = []
    for name in args.contenders:
        row = Row("decode", params(setting, args, dtype), name, amount=amount, unit="token", limit=amount / limit)
        if name in failed:
            row.absent = failed[name]
        else:
            row.seconds, ours = taken[name], tokens.get(OURS, tokens[name])
            row.correct = f"{sum(a == b for a, b in zip(tokens[name], ours))} of {len(ours)} equal"
            row.extra = {"limit_seconds": limit, "milliseconds": 1e3 * statistics.median(taken[name])}
        told.append(row)
    return told


def bounds(size: Size, setting: Setting, lengths: list[list[int]], source: int, item: int) -> tuple[float, float]:
    """The tokens that are timed, and the least seconds that a GPU takes for them."""
    if setting.lengths is None:
        position = sum(lengths[0][:1] + lengths[1][:1]) // 2
        case = budget.Case(setting.count, setting.beams, source, position)
        return float(setting.count), budget.limit(size, case, item)
    (some,) = lengths
    steps = sum(
        budget.limit(size, budget.Case(sum(n > position for n in some), 1, source, position), item)
        for position in range(max(some))
    )
    encoder = 2.0 * len(some) * source * size.of_source_token / budget.FLOPS
    return float(sum(some)), steps + encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    raise SystemExit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
