"""`bertgen bench check`: whether bertgen is as many times faster than others as the floors say (floors.py)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bertgen.errors import InputError

from . import floors
from .floors import Floor
from .result import Result, Row, best, load

BELOW = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Results to look at."""
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE", help="that a part wrote with --json")


def run(args: argparse.Namespace) -> int:
    """Print each floor that holds for these results, and return 1 where a ratio is below one."""
    return BELOW if report([load(path) for path in args.results]) else 0


def report(results: Sequence[Result]) -> list[str]:
    """Print each floor, and return what is below one.

    Raises:
        InputError: no floor holds for any of the results.
    """
    found = [
        judged(floor, result)
        for result in results
        for floor in floors.FLOORS
        if floor.device == result.environment["device"] and matching(floor, result.rows, floor.ours)
    ]
    if not found:
        raise InputError(f"none of the {len(floors.FLOORS)} floors holds for these cases: nothing was checked")
    for text, _ in found:
        print(text)
    return [text for text, good in found if not good]


def matching(floor: Floor, rows: Sequence[Row], contender: str) -> list[Row]:
    """Rows of a contender in the cases that a floor holds for."""
    wanted = floor.params.items()
    return [r for r in rows if r.name == floor.name and r.contender == contender and wanted <= r.params.items()]


def judged(floor: Floor, result: Result) -> tuple[str, bool]:
    """What is to be said of a floor, and whether it is reached. One that cannot be compared is not."""
    case = ", ".join([floor.name, *(f"{key} {value}" for key, value in floor.params.items())])
    ours, theirs = (best(matching(floor, result.rows, name)) for name in (floor.ours, floor.against))
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
