"""Generation on a machine that is not quiet, and with fewer processors than it has, beside other engines.

    python -m bertgen.bench.neighbours [--seconds 230] [--json FILE]

A model of the demo model's size with random weights, greedy, with 1, 16 and 64 requests decoded together.

Neighbours are processes that compute without end, each on one thread. With 0, 1 and 2 of them each engine decodes the
same requests; numbers and engines take turns, and the ratio to the quiet machine is taken in each turn. bertgen runs
twice: as a library, and as its command line does, which lets OpenMP's threads sleep soon (it sets variables before
torch is imported).

Then engines are started with fewer processors: with one thread, the affinity of one core, OMP_NUM_THREADS=8, and a
cgroup's quota of one CPU. Each is compared with one thread.

Neighbours end with this process, however it ends. After `--seconds` no engine is started, no turn begins, and what runs
is stopped; a turn that would not end in time does not begin.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch

from bertgen.errors import ConfigError

from . import generate, output, scale, workload
from .agreement import Judge
from .confinement import Quota, environment, one_core
from .contenders import Apart, Contender
from .generate import Race
from .output import UNKNOWN, markdown, times
from .result import OURS, Row
from .workload import Plan

PART = "neighbours"
ENGINES = (OURS, "transformers sdpa", "CTranslate2")
COMMAND_LINE = f"{OURS}, command line"
CALM = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}  # as the command line sets them
SOURCE = 8  # tokens of each source
TOKENS = {1: 64, 16: 32, 64: 32}  # requests decoded together -> tokens of each output
NUMBERS = {0: "quiet", 1: "one neighbour", 2: "two neighbours"}
ALL, ONE, CORE, MANY, QUOTA = "all", "one thread", "affinity of one core", "OMP_NUM_THREADS=8", "quota of one CPU"
SHARE = 0.6  # of the time for the neighbours
GRACE = 10.0  # seconds that a run gets in any case

PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
parent, end = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
print(flush=True)
while os.getppid() == parent and time.monotonic() < end:
    for _ in range(10**6):
        pass
"""
Clock = Callable[[], float]
Turn = Callable[[], None]


@contextlib.contextmanager
def neighbours(count: int, seconds: float) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that compute without end. They end with the context, with this process, and after `seconds`."""
    command = [sys.executable, "-S", "-E", "-c", PROGRAM, str(os.getpid()), str(seconds)]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        for one in started:
            one.stdout.readline()  # until it runs
        yield started
    finally:
        for one in started:
            one.kill()
        for one in started:
            one.communicate()


def repeat(turn: Callable[[], None], until: float, most: int, clock: Clock = time.monotonic) -> None:
    """Call `turn` at least once and at most `most` times, while one as long as the longest ends before `until`."""
    longest = 0.0
    for done in range(most):
        start = clock()
        if done and start + longest > until:
            return
        turn()
        longest = max(longest, clock() - start)


class Setup:
    """The engines of one way to start them, and their races: one for each number of requests and of neighbours.

    Args:
        present: the engines. missing: why others are not there.
        processors: how they were started: ALL, ONE, ...
        numbers: of neighbours.
        title: of bertgen in the rows.
    """

    def __init__(
        self,
        plan: Plan,
        judge: Judge,
        present: dict[str, Contender],
        missing: dict[str, str],
        processors: str = ALL,
        numbers: Sequence[int] = (0,),
        title: str = OURS,
    ):
        self.plan, self.present, self.missing = plan, present, missing
        self.processors, self.title = processors, title
        self.races = {(number, rows): Race(case(rows, plan), present, judge) for number in numbers for rows in TOKENS}

    def turn(self, number: int, end: float) -> None:
        """Run each engine once with each number of requests, with this number of neighbours.

        Args:
            end: time at which a run is stopped.

        Raises:
            RuntimeError: a run of bertgen was stopped, or the time is over.
        """
        for rows in TOKENS:
            if time.monotonic() > end + GRACE:
                raise RuntimeError("the time is over, turns may be missing")
            for one in self.present.values():
                if isinstance(one, Apart):
                    one.child.limit = max(GRACE, end - time.monotonic())
            self.races[number, rows].turn([max(TOKENS)])

    def rows(self, model: str) -> list[Row]:
        """All rows; the limit of the machine does not hold for them."""
        found = []
        for (number, count), race in self.races.items():
            params = {"model": model, "rows": count, "tokens": TOKENS[count]}
            params |= {"processors": self.processors, "neighbours": number}
            some = race.rows(model, self.plan, {"FLOP": 1.0, "B": 1.0})
            some += [Row(PART, params, name, absent=why) for name, why in self.missing.items()]
            for row in some:
                row.name, row.params, row.limit = PART, params, None
                row.contender = self.title if row.contender == OURS else row.contender
            found += some
        return found


def case(rows: int, plan: Plan) -> workload.Case:
    """Requests of random ids."""
    return scale.made({"batch": rows, "source": SOURCE, "target": TOKENS[rows], "beams": 1}, plan.size.vocabulary)


def started(stack: ExitStack, names: Sequence[str], plan: Plan, inside: AbstractContextManager[Any]) -> Any:
    """Engines whose processes start inside a context, and why others are missing; they end with the stack."""
    with inside:
        present, missing = generate.engines(names, plan, apart=True)
    for one in present.values():
        stack.callback(one.close)
    return present, missing


def busy(stack: ExitStack, names: Sequence[str], plan: Plan, judge: Judge, end: float) -> tuple[list[Setup], Turn]:
    """Engines beside neighbours, and a turn of all of them, until `end`."""
    setups = [
        Setup(plan, judge, *started(stack, names, plan, environment()), ALL, [*NUMBERS]),
        Setup(plan, judge, *started(stack, [OURS], plan, environment(**CALM)), ALL, [*NUMBERS], COMMAND_LINE),
    ]

    def turn() -> None:
        for number in NUMBERS:
            with neighbours(number, end - time.monotonic() + GRACE):
                for setup in setups:
                    setup.turn(number, end)

    return setups, turn


def confined(stack: ExitStack, names: Sequence[str], plan: Plan, judge: Judge, end: float) -> tuple[list[Setup], Turn]:
    """Engines with fewer processors, and a turn of all of them, until `end`."""
    setups = []
    for processors, confine in WAYS.items():
        present: dict[str, Contender] = {}
        missing = dict.fromkeys(names, f"{processors}: the time is over")
        try:
            if time.monotonic() < end:
                present, missing = started(stack, names, plan, confine(stack))
        except OSError as error:
            missing = dict.fromkeys(names, f"{processors}: {error}")
        setups.append(Setup(plan, judge, present, missing, processors))

    def turn() -> None:
        for setup in setups:
            setup.turn(0, end)

    return setups, turn


def quota_of_one(stack: ExitStack) -> AbstractContextManager[None]:
    """The quota of one CPU, whose cgroup is removed at the end of the stack."""
    quota = Quota(1.0)
    stack.callback(quota.remove)
    return quota.inside()


WAYS: dict[str, Callable[[ExitStack], AbstractContextManager[None]]] = {
    ONE: lambda stack: environment(OMP_NUM_THREADS="1"),
    CORE: lambda stack: one_core(),
    MANY: lambda stack: environment(OMP_NUM_THREADS="8"),
    QUOTA: quota_of_one,
}


def busy_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: seconds on the quiet machine, and how many times as long an engine takes beside neighbours."""
    return _table([row for row in rows if row.params["processors"] == ALL], "neighbours", NUMBERS)


def confined_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: seconds with one thread, and how many times as long an engine takes in the other ways."""
    return _table([row for row in rows if row.params["processors"] != ALL], "processors", {way: way for way in WAYS})


def _table(rows: Sequence[Row], axis: str, names: dict[Any, str]) -> tuple[list[str], list[list[str]]]:
    """A line for each number of requests and engine, a column for each value of `axis`: ratios to the first one."""
    by: dict[tuple[int, str], dict[Any, Row]] = {}
    for row in rows:
        by.setdefault((row.params["rows"], row.contender), {})[row.params[axis]] = row
    first, *others = names
    lines = []
    for (count, engine), columns in sorted(by.items(), key=lambda item: item[0][0]):
        measure = columns.get(first)
        seconds = f"{measure.median:.3f}" if measure and measure.seconds else UNKNOWN
        lines.append([str(count), engine, seconds, *(times(columns.get(value), measure) for value in others)])
    return ["requests", "engine", f"{names[first]}, s", *(names[value] for value in others)], lines


def run(args: argparse.Namespace) -> int:
    """Print the tables, and return the exit code."""
    for name in ("repeats", "seconds"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(args, name)}")
    start = time.monotonic()
    plan = Plan(workload.SIZES[args.size])
    result = output.begin(PART, args, torch.device("cpu"))
    judge = Judge(plan.build())
    output.head()
    for part, share in ((busy, SHARE), (confined, 1.0)):
        with ExitStack() as stack:
            output.say(f"{part.__name__}: starting the engines")
            end = start + share * args.seconds
            setups, turn = part(stack, args.engines, plan, judge, end)
            try:
                repeat(turn, end, args.repeats)
            except RuntimeError as error:  # of bertgen
                result.warnings.append(f"{part.__name__}: {error}")
            by_case: dict[tuple[str, str], list[Row]] = {}
            for row in (row for setup in setups for row in setup.rows(args.size)):
                by_case.setdefault(row.case, []).append(row)
            for rows in by_case.values():
                output.add(result, rows)
    for heads, lines in (busy_table(result.rows), confined_table(result.rows)):
        print("\n" + markdown(heads, lines))
    return output.end(result, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    output.add_arguments(parser)
    parser.add_argument("--size", choices=workload.SIZES, default="demo", help="of the model (default: demo)")
    parser.add_argument("--engines", nargs="+", choices=generate.ENGINES, default=ENGINES, metavar="NAME")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="most turns (default: 7)")
    parser.add_argument("--seconds", type=float, default=230, metavar="X", help="of the whole run (default: 230)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all contexts end
    raise SystemExit(run(args))


if __name__ == "__main__":
    main()
