"""What was measured, in one form for every part: an environment, and a row for each contender in each case.

A file is JSON: the version of this form, the part and the command that wrote it, the environment, and the rows. A row
has the name and the parameters of its case, the contender, and every single time. Medians, quartiles, rates and shares
of the machine's limit stand beside them for other readers; they follow from the rest.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertgen.errors import InputError

from .machine import BUSY

SCHEMA = 1
OURS = "bertgen"
FEW = 8  # turns, of which the smallest and the largest tell the spread


@dataclass
class Row:
    """One contender in one case.

    Attributes:
        name: of what is done: an operator, "generate", "train", ...
        params: of the case, by name; numbers, words and truth values.
        contender: who does it.
        seconds: of each run.
        amount: of what a run does, in `unit`: "B" (bytes), "FLOP", "token", "sentence".
        limit: units per second that the machine can do at most; None where nobody knows.
        correct: what was compared, and what came of it.
        absent: why there is no time: a package is missing, or it does not take the case.
        wrong: what is wrong with its answer, for which reason it was not timed.
        extra: other figures, by name.
    """

    name: str
    params: dict[str, Any]
    contender: str
    seconds: list[float] = field(default_factory=list)
    amount: float | None = None
    unit: str | None = None
    limit: float | None = None
    correct: str | None = None
    absent: str | None = None
    wrong: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """Of the seconds; None for a single one, which has no spread."""
        if len(self.seconds) < 2:
            return None
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def rate(self) -> float | None:
        """Units per second."""
        return self.amount / self.median if self.seconds and self.amount else None

    @property
    def fraction(self) -> float | None:
        """Of the machine's limit."""
        return self.rate / self.limit if self.rate and self.limit else None

    @property
    def ours(self) -> bool:
        return self.contender.split()[0] == OURS

    @property
    def case(self) -> tuple[str, str]:
        """What rows that compete with each other have in common."""
        return self.name, json.dumps(self.params, sort_keys=True)

    @property
    def title(self) -> str:
        """The case in words."""
        return ", ".join([self.name, *(f"{key} {value}" for key, value in self.params.items())])


@dataclass
class Result:
    """What one part measured.

    Attributes:
        part: "ops", "generate", ...
        command: that repeats it.
        environment: `machine.environment`; "busy_behind" is how busy others kept the machine when the run had ended.
        warnings: what a reader must know besides: that the run was stopped, or failed.
    """

    part: str
    command: str
    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    path: Path | None = None  # where it is saved from time to time

    @property
    def wrong(self) -> list[Row]:
        """Rows whose answers are not accepted."""
        return [row for row in self.rows if row.wrong]

    @property
    def busy(self) -> float | None:
        """Cores that others kept busy, where it is so many that times are too long to be judged."""
        found = [self.environment.get(name) or 0.0 for name in ("busy", "busy_behind")]
        return max(found) if max(found) > BUSY else None

    @property
    def doubts(self) -> list[str]:
        """Why its figures are not to be relied on, each in words; nothing where they are."""
        busy = [f"others kept {self.busy:.1f} cores busy, times are too long"] if self.busy else []
        return [*busy, *self.warnings]

    @property
    def cases(self) -> dict[tuple[str, str], list[Row]]:
        """Rows by their case, in order."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.case, []).append(row)
        return found


FIELDS = tuple(Row.__dataclass_fields__)
DERIVED = ("median", "quartiles", "rate", "fraction")


def save(result: Result, path: Path) -> None:
    """Write a file of JSON, a row in each line, and its folder where there is none."""
    head = {"schema": SCHEMA, "part": result.part, "command": result.command, "environment": result.environment}
    head |= {"warnings": result.warnings} if result.warnings else {}
    rows = [{name: getattr(row, name) for name in (*FIELDS, *DERIVED)} for row in result.rows]
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def load(path: Path) -> Result:
    """Read a file that `save` wrote.

    Raises:
        InputError: it cannot be read, or is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = json.loads(text)
        if found["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {found['schema']}, this bertgen reads {SCHEMA}")
        rows = [Row(**{name: row[name] for name in FIELDS}) for row in found["rows"]]
        return Result(found["part"], found["command"], found["environment"], rows, list(found.get("warnings", ())))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no result of bertgen bench: {type(error).__name__} {error}") from error


def save_csv(result: Result, path: Path) -> None:
    """The rows as a table for other programs: a column for each figure, the environment in every line."""
    where = {key: result.environment.get(key) for key in ("device", "processor", "bertgen", "torch", "commit", "dirty")}
    columns = ["part", "name", "params", "contender", "samples", "median_s", "low_s", "high_s", "amount", "unit"]
    where["warnings"] = "; ".join(result.doubts)
    columns += ["rate", "limit", "fraction", "correct", "absent", "wrong", *where]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in result.rows:
            low, high = row.quartiles or (None, None)
            times = [len(row.seconds), row.median, low, high]
            figures = [row.amount, row.unit, row.rate, row.limit, row.fraction, row.correct, row.absent, row.wrong]
            name = [result.part, row.name, json.dumps(row.params), row.contender]
            writer.writerow([*name, *times, *figures, *where.values()])


def ratio(theirs: Row, ours: Row) -> tuple[float, float, float]:
    """How many times as long the others take: of the medians, and the middle half of single turns; all of few."""
    turns = sorted(a / b for a, b in zip(theirs.seconds, ours.seconds))
    low, high = turns[0], turns[-1]
    if len(turns) > FEW:
        low, _, high = statistics.quantiles(turns, n=4, method="inclusive")
    return theirs.median / ours.median, low, high


def best(rows: Iterable[Row]) -> Row | None:
    """The fastest of rows of one contender that differ in a setting; one that was timed once only stands behind."""
    timed = [row for row in rows if row.seconds]
    most = max((len(row.seconds) for row in timed), default=0)
    return min((row for row in timed if len(row.seconds) == most), key=lambda row: row.median, default=None)
