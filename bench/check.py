"""`bertgen bench check`: compares the speed-ups in results with the floors of floors.py.

Results that were measured while other processes kept the machine busy are not judged.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bertgen.errors import InputError

from . import floors
from .floors import Floor
from .result import Result, Row, best, load

BELOW, NOT_JUDGED = 1, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The results to check."""
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE", help="that a part wrote with --json")


def run(args: argparse.Namespace) -> int:
    """Print each floor that applies to these results, and return the exit code."""
    return report([load(path) for path in args.results])


def report(results: Sequence[Result]) -> int:
    """Print each floor, and return `BELOW` where a ratio is below one, else `NOT_JUDGED` where one was not judged.

    Raises:
        InputError: no floor applies to any of the results.
    """
    judgements = [
        judged(floor, result)
        for result in results
        for floor in floors.FLOORS
        if floor.device == result.environment["device"]
        and any(matching(floor, result.rows, name) for name in known(floor, result))
    ]
    if not judgements:
        raise InputError(f"none of the {len(floors.FLOORS)} floors holds for these cases: nothing was checked")
    for text, _ in judgements:
        print(text)
    verdicts = [good for _, good in judgements]
    return BELOW if False in verdicts else NOT_JUDGED if None in verdicts else 0


def known(floor: Floor, result: Result) -> tuple[str, ...]:
    """Contenders that show that a floor applies to a result; a stopped run may have measured only one of them."""
    return (floor.ours, floor.against) if result.warnings else (floor.ours,)


def matching(floor: Floor, rows: Sequence[Row], contender: str) -> list[Row]:
    """Rows of a contender in the cases of a floor."""
    wanted = floor.params.items()
    return [r for r in rows if r.name == floor.name and r.contender == contender and wanted <= r.params.items()]


def judged(floor: Floor, result: Result) -> tuple[str, bool | None]:
    """A line about a floor, and whether it is reached; None where it is not judged.

    A floor that cannot be compared is not reached, unless the run was stopped before.
    """
    case = ", ".join([floor.name, *(f"{key} {value}" for key, value in floor.params.items())])
    ours, theirs = (best(matching(floor, result.rows, name)) for name in (floor.ours, floor.against))
    if result.busy:
        return f"not judged {case}: the machine was busy ({result.doubts[0]})", None
    if ours is None and result.warnings:
        return f"not judged {case}: {'; '.join(result.warnings)}", None
    if ours is None:
        return f"BELOW {case}: {floor.ours} has no time", False
    if theirs is None:
        return f"open  {case}: {floor.against} has no time here", True
    ratio = theirs.median / ours.median
    good = ratio >= floor.ratio
    return (
        f"{'ok   ' if good else 'BELOW'} {case}: {floor.against} / {floor.ours} {ratio:.2f}, at least {floor.ratio}",
        good,
    )
