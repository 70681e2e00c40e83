"""Whole models on real texts: bertgen, transformers and CTranslate2 with the same weights, sources and output lengths.

Three kinds of requests, greedy and with four beams: `fixed`, outputs of 32 tokens; `mixed`, lengths of real targets;
`single`, the same one request after another. Engines cannot choose EOS, and each output stops at its given length;
tokens beyond it are ignored.

Each engine runs with increasing batch sizes while they make it faster; then the best sizes of all engines are timed by
turns. Each timed run follows a short warm-up run. Tokens are compared before a time is kept: a difference from
bertgen's that rounding does not explain fails the run, which then has no time. Engines with rounded weights may differ;
the number of equal outputs is reported. Each engine has its own process, and its peak memory is that of the process, or
on a GPU of torch's allocator.

The limit of a case is the longer of two times: its matrix products at the speed of a large product, and reading the
weights of the decoder once per step.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bertgen.compare import MARGINS
from bertgen.errors import BertgenError, ConfigError

from . import child, contenders, machine, output, workload
from .agreement import Agreement, Judge
from .contenders import Bertgen, Contender, CTranslate2, Run, StaticBart, Transformers
from .int4 import Int4
from .result import OURS, Row
from .workload import Budget, Case, Plan

SLACK = 1.1  # larger batches are tried until one takes this many times as long as the best
LOADS = 3  # timed loads per engine
STATIC = "transformers BART, static and compiled"


class Engine:
    """How to make an engine, and whether its tokens must equal bertgen's.

    Args:
        kind, arguments: the class, and its arguments after the model.
        judged: False for rounded weights.
    """

    def __init__(self, kind: type[Contender], *arguments: Any, judged: bool = True):
        self.kind, self.arguments, self.judged = kind, arguments, judged


ENGINES = {
    OURS: Engine(Bertgen),
    "bertgen int4": Engine(Int4, 64, True, "int8", judged=False),  # the fastest: with the output layer, in integers
    "transformers sdpa": Engine(Transformers, "sdpa"),
    "transformers eager": Engine(Transformers, "eager"),
    STATIC: Engine(StaticBart),
    "CTranslate2": Engine(CTranslate2),
    "CTranslate2 int8": Engine(CTranslate2, "int8", judged=False),
}
ALL = "all"
ON_REQUEST = (STATIC,)  # on a CPU, where compiling takes minutes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the requests, the engines."""
    output.add_arguments(parser, device=True)
    add_model(parser)
    parser.add_argument("--input", type=Path, metavar="FILE", help="lines of source TAB target, or of sources alone "
                        "(default: WikiSplit where it is present, else random ids)")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=workload.KINDS, default=workload.KINDS, metavar="KIND",
                        help="kinds of requests: fixed, mixed, single (default: all)")  # fmt: skip
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4], metavar="N", help="default: 1 4")
    parser.add_argument("--requests", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--singles", type=int, default=4, metavar="N", help="requests one by one (default: 4)")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32], metavar="N", help="default: 8 16 32")
    parser.add_argument("--budgets", type=int, nargs="+", default=[], metavar="N",
                        help="also batches of at most N source tokens")  # fmt: skip
    parser.add_argument(
        "--length", type=int, default=workload.FIXED, metavar="N", help="length of fixed outputs (default: 32)"
    )
    parser.add_argument(
        "--source-length", type=int, metavar="N", help="length of all sources, which are then random ids"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--engines", nargs="+", choices=(*ENGINES, ALL), metavar="NAME",
                        help=f"{ALL}, or some of {', '.join(ENGINES)} (on a CPU without the compiled one)")  # fmt: skip
    parser.add_argument(
        "--same-process", action="store_true", help="run all engines in one process, with shared threads"
    )
    parser.add_argument("--no-load", action="store_true", help="skip the measurement of load times")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", choices=workload.SIZES, default="base", help="size of a model with random weights")
    parser.add_argument("--model", metavar="PATH", help='use these weights instead: folder, hub id or "demo"')
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"),
                        help="default: float32 on a CPU, float16 on a GPU")  # fmt: skip


def plan(args: argparse.Namespace) -> tuple[str, Plan]:
    """The name of the model, and how it is made."""
    dtype = args.dtype or ("float16" if args.device == "cuda" else "float32")
    size = workload.SIZES[args.size] if args.model is None else workload.size_of(args.model)
    return args.model or args.size, Plan(size, args.model, args.device, dtype)


def run(args: argparse.Namespace) -> int:
    """Print a table, and return the exit code."""
    for name in ("requests", "singles", "repeats", "length"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.input is None and workload.WIKISPLIT.exists():
        args.input = workload.WIKISPLIT
    device = torch.device(args.device)
    result = output.begin("generate", args, device)
    name, model = plan(args)
    result.environment["input"] = "made-up ids and lengths" if args.input is None else args.input.name
    result.environment["dtype"] = model.dtype
    wanted = args.engines or [one for one in ENGINES if device.type == "cuda" or one not in ON_REQUEST]
    wanted = list(ENGINES) if ALL in wanted else wanted
    output.say("building the model, converting it for the others")
    present, missing = engines(wanted, model, apart=not args.same_process)
    missing |= {one: "on a CPU on request only (--engines): compiling takes minutes" for one in ENGINES
                if one in ON_REQUEST and not args.engines and device.type == "cpu"}  # fmt: skip
    judge = Judge(model.build().float(), MARGINS[model.dtype])
    limit = result.environment["limits"] = machine.limits(device, getattr(torch, model.dtype))
    output.head()
    try:
        for kind in args.only:
            count, sizes = (args.singles, [1]) if kind == "single" else (args.requests, args.batches)
            budgets = [] if kind == "single" else [Budget(n) for n in args.budgets]
            for case in workload.cases(
                kind, args.input, count, model.size, tuple(args.beams), args.length, args.source_length,
                args.model or "demo",
            ):  # fmt: skip
                race = Race(case, present, judge)
                race.run([*sorted({min(n, count) for n in sizes}), *budgets], args.repeats)
                output.add(result, [*race.rows(name, model, limit), *absent(case, name, missing)])
    finally:
        for one in present.values():
            one.close()
    if not args.no_load:
        output.add(result, loads(present, name, model))
    return output.end(result, args)


def engines(names: Sequence[str], model: Plan, apart: bool) -> tuple[dict[str, Contender], dict[str, str]]:
    """The installed engines, bertgen first, and why the others are missing."""
    present: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    for name in dict.fromkeys([OURS, *names]):
        engine = ENGINES[name]
        try:
            make = contenders.Apart if apart else contenders.make
            present[name] = make(engine.kind, model, *engine.arguments)
        except (BertgenError, ValueError, RuntimeError) as error:  # the latter of CTranslate2, say of a compute type
            if name == OURS:
                raise
            missing[name] = str(error).splitlines()[0]
    return present, missing


def params(case: Case, model: str) -> dict[str, Any]:
    return {"model": model, "requests": case.kind, "beams": case.beams, "count": len(case.sources)}


def setting(batch: int) -> dict[str, int]:
    return {"tokens": int(batch)} if isinstance(batch, Budget) else {"batch": batch}


def absent(case: Case, model: str, missing: dict[str, str]) -> list[Row]:
    return [Row("generate", params(case, model), name, absent=why) for name, why in missing.items()]


class Race:
    """One case, which the contenders run by turns."""

    def __init__(self, case: Case, present: dict[str, Contender], judge: Judge):
        self.case, self.present, self.judge = case, present, judge
        self.runs: dict[tuple[str, int], list[Run]] = {}
        self.agreement: dict[tuple[str, int], Agreement] = {}
        self.broken: dict[tuple[str, int], str] = {}
        self.wrong: dict[tuple[str, int], str] = {}
        self.ours: workload.Tokens = []
        self.best: dict[str, int | None] = {}

    def run(self, sizes: Sequence[int], repeats: int) -> None:
        for _ in range(repeats):
            self.turn(sizes)

    def turn(self, sizes: Sequence[int]) -> None:
        """Run each contender once: the first time with increasing batch sizes, later with its best one."""
        for name in self.present:
            if name not in self.best:
                self.best[name] = self._choose(name, sizes)
            elif (best := self.best[name]) is not None:
                self._time(name, best)

    def _choose(self, name: str, sizes: Sequence[int]) -> int | None:
        taken: dict[int, float] = {}
        for size in sizes:
            taken[size] = self._time(name, size)
            if taken[size] > SLACK * min(taken.values()) and not isinstance(size, Budget):
                break
        fastest = min(taken, key=taken.__getitem__)
        return fastest if taken[fastest] < math.inf else None

    def _time(self, name: str, batch: int) -> float:
        """Seconds of a run; inf where it fails or its tokens are not accepted."""
        case, key = self.case, (name, batch)
        try:
            run = self.present[name].measured(case.sources, case.lengths, case.beams, batch)
        except (RuntimeError, ValueError) as error:  # out of memory, or what does not compile
            if name == OURS:
                raise
            self.broken[key] = f"{type(error).__name__}: {error}".splitlines()[0]
            return math.inf
        self.ours = self.ours or run.tokens  # bertgen comes first
        self.agreement[key] = agreement = self.judge.compare(case, self.ours, run.tokens, ENGINES[name].judged)
        if agreement.wrong:
            output.say(f"{case.name}: {name} batch {batch}: WRONG: {agreement.wrong[0]}")
            self.wrong[key] = f"{agreement.wrong[0]}, {len(agreement.wrong)} in all"
            return math.inf
        self.runs.setdefault(key, []).append(run)
        output.say(f"{case.name}: {name} batch {batch} {run.seconds:.2f} s, {said(agreement, ENGINES[name].judged)}")
        return run.seconds

    def rows(self, model: str, plan: Plan, limit: dict[str, float]) -> list[Row]:
        """One row per contender and setting."""
        tokens = sum(self.case.lengths)
        item = torch.finfo(getattr(torch, plan.dtype)).bits // 8
        fastest = tokens / self.case.limit(plan.size, limit["FLOP"], limit["B"], item)
        rows = []
        for key in dict.fromkeys([*self.agreement, *self.broken]):
            name, batch = key
            row = Row("generate", params(self.case, model) | setting(batch), name, amount=tokens, unit="token")
            row.absent, row.wrong = self.broken.get(key), self.wrong.get(key)
            agreement = self.agreement.get(key)
            runs = [] if row.wrong or row.absent else self.runs.get(key, [])
            if runs:
                row.seconds = [run.seconds for run in runs]
                row.limit, row.correct = fastest, said(agreement, ENGINES[name].judged)
                row.extra = told(runs) | {"equal": agreement.equal, "compared": agreement.compared}
            rows.append(row)
        return rows


def said(agreement: Agreement, judged: bool) -> str:
    """How many outputs equal bertgen's token for token."""
    if judged:
        return f"{agreement} equal"
    return f"{agreement.equal} of {agreement.compared} equal, {agreement.compared - agreement.equal} differ"


def told(runs: Sequence[Run]) -> dict[str, Any]:
    """Percentiles over all runs, and the largest memory."""
    figures: dict[str, Any] = {}
    for name in ("requests", "gaps"):
        values = sorted(value for run in runs for value in getattr(run, name))
        for percent in (50, 99):
            figures[f"{'request' if name == 'requests' else 'token'}_p{percent}"] = percentile(values, percent)
    for name in ("loaded", "peak"):
        values = [getattr(run, name) for run in runs if getattr(run, name) is not None]
        figures[name] = max(values, default=None)
    return figures


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The smallest of sorted values that at least `percent` of them do not exceed."""
    return values[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else None


def loads(present: dict[str, Contender], name: str, model: Plan) -> list[Row]:
    """Seconds to load the model of each engine, from files in the page cache."""
    output.say("loading: each engine in processes that begin with nothing")
    return [
        Row("load", {"model": name}, one, seconds=child.call(loading, ENGINES[one].kind, model, ENGINES[one].arguments))
        for one in present
    ]


def loading(kind: type[Contender], model: Plan, arguments: tuple[Any, ...]) -> list[float]:
    """Load times of an engine from its own files, without the first one."""
    with tempfile.TemporaryDirectory() as folder:
        load = kind.saved(model.build(), Path(folder), *arguments)
        return [machine.seconds(load) for _ in range(1 + LOADS)][1:]
