"""`bertgen bench compare`: two results of the same cases, and what became faster or slower.

Only bertgen's rows get a verdict, and only where it is clear: the interquartile ranges of the times do not overlap, the
medians differ by 5%, and both also hold for the times divided by those of another contender in the same case, of which
the code did not change. So a machine that is slower today gives no verdict. Times of a busy machine are not judged, and
cases that a stopped run lacks do not count as gone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from .check import NOT_JUDGED
from .output import time_text
from .result import Result, Row, load

LEAST = 1.05  # smaller ratios are no verdict
SAMPLES = 3  # fewer have no meaningful spread
CHANGED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two results."""
    parser.add_argument("before", type=Path, metavar="BEFORE", help="a result that a part wrote with --json")
    parser.add_argument("after", type=Path, metavar="AFTER", help="another one of the same part")
    parser.add_argument("--all", action="store_true", help="print the cases without a verdict, too")


def run(args: argparse.Namespace) -> int:
    """Print verdicts. Return 1 where bertgen became slower or its results wrong, 4 where that is not judged."""
    before, after = load(args.before), load(args.after)
    for result, path in ((before, args.before), (after, args.after)):
        print(f"{path}: {result.command}, {result.environment['processor']}, commit {result.environment['commit']}")
        for doubt in result.doubts:
            print(f"{path}: NOT TO BE RELIED ON: {doubt}")
    unjudged = {"faster", "slower"} if before.busy or after.busy else set()
    unjudged |= {"gone", "new"} if before.warnings or after.warnings else set()
    changes = [
        replace(one, verdict="not judged") if one.verdict in unjudged else one for one in compared(before, after)
    ]
    print("| case | contender | before | after | times as long | verdict |\n|---|---|---|---|---|---|")
    for one in changes:
        if one.verdict or args.all:
            print(one.line())
    counts = {
        word: sum(one.verdict == word for one in changes)
        for word in ("faster", "slower", "gone", "new", "WRONG", "not judged")
    }
    same = sum(not one.verdict for one in changes)
    print(", ".join(f"{count} {word}" for word, count in counts.items() if count) or "no verdict", end="")
    print(f"; {same} of {len(changes)} within the spread")
    if any(one.row.ours and one.verdict in ("slower", "gone", "WRONG") for one in changes):
        return CHANGED
    return NOT_JUDGED if unjudged else 0


@dataclass(frozen=True)
class Change:
    """The change of one contender in one case.

    Attributes:
        row: of the later result; of the earlier one where it is gone.
        ratio: of the median times, later over earlier.
        verdict: "faster", "slower", "gone", "new", "WRONG", "not judged"; empty within the spread.
    """

    row: Row
    before: Row | None
    after: Row | None
    ratio: float | None
    verdict: str

    def line(self) -> str:
        times = (time_text(row.median) if row and row.seconds else "none" for row in (self.before, self.after))
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return f"| {' | '.join([self.row.title, self.row.contender, *times, ratio, self.verdict or 'none'])} |"


def compared(before: Result, after: Result) -> Iterable[Change]:
    """A change for each contender in each case of either result."""
    old, new = ({(*row.case, row.contender): row for row in result.rows} for result in (before, after))
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if not (a and a.seconds and b and b.seconds):
            yield Change(b or a, a, b, None, _without_times(a, b))
            continue
        yardsticks = [_yardstick(rows, key) for rows in (old, new)]
        verdict = verdict_of(a, b, *(yardsticks if all(yardsticks) else ())) if a.ours else ""
        yield Change(b, a, b, b.median / a.median, verdict)


def _without_times(a: Row | None, b: Row | None) -> str:
    if b is not None and b.wrong:
        return "WRONG"
    if a is not None and a.seconds:
        return "gone"
    return "new" if b is not None and b.seconds else ""


def _yardstick(rows: dict[tuple[str, str, str], Row], key: tuple[str, str, str]) -> Row | None:
    """The first contender of a case that is not bertgen's and has enough samples."""
    for other, row in rows.items():
        if other[:2] == key[:2] and other != key and not row.ours and len(row.seconds) >= SAMPLES:
            return row
    return None


def verdict_of(a: Row, b: Row, yard_a: Row | None = None, yard_b: Row | None = None) -> str:
    """ "faster", "slower", or an empty string."""
    if min(len(a.seconds), len(b.seconds)) < SAMPLES:
        return ""
    direction = _direction(a.quartiles, b.quartiles, b.median / a.median)
    if direction and yard_a and yard_b:
        middle = (b.median / yard_b.median) / (a.median / yard_a.median)
        shares = [
            (row.quartiles[0] / yard.quartiles[1], row.quartiles[1] / yard.quartiles[0])
            for row, yard in ((a, yard_a), (b, yard_b))
        ]
        if _direction(*shares, middle) != direction:
            return ""
    return direction


def _direction(before: tuple[float, float], after: tuple[float, float], ratio: float) -> str:
    if after[0] > before[1] and ratio >= LEAST:
        return "slower"
    if after[1] < before[0] and ratio <= 1 / LEAST:
        return "faster"
    return ""
