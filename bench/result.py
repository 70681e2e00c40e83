"""Results of all parts: an environment, and a row per case and contender (an engine or implementation that is timed).

A file is JSON: the version of the schema, the part and the command that wrote it, the environment, and the rows. A row
has the name and the parameters of its case, the contender, and every single time. Medians, quartiles, rates and shares
of the machine's limit are added for other readers; they follow from the rest.
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
FEW = 8  # up to so many turns the spread is their range, above it the interquartile range


@dataclass
class Row:
    """One contender in one case.

    Attributes:
        name: the work: an operator, "generate", "train", ...
        params: parameters of the case by name: numbers, strings and bools.
        contender: the engine or implementation; those of bertgen begin with "bertgen".
        seconds: time of each run.
        amount: work of a run, in `unit`: "B" (bytes), "FLOP", "token", "sentence".
        limit: maximum units per second of the machine; None where it is unknown.
        correct: the outcome of the comparison of outputs.
        absent: why there is no time: a package is missing, or it does not support the case.
        wrong: why its output is wrong; it was not timed then.
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
        """Quartiles of the seconds; None for a single run."""
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
        """The rate as a share of the machine's limit."""
        return self.rate / self.limit if self.rate and self.limit else None

    @property
    def ours(self) -> bool:
        return self.contender.split()[0] == OURS

    @property
    def case(self) -> tuple[str, str]:
        """The key that rows of the same case share."""
        return self.name, json.dumps(self.params, sort_keys=True)

    @property
    def title(self) -> str:
        """The name and the parameters of the case as text."""
        return ", ".join([self.name, *(f"{key} {value}" for key, value in self.params.items())])


@dataclass
class Result:
    """The result of one part.

    Attributes:
        part: "ops", "generate", ...
        command: that repeats it.
        environment: `machine.environment`; "busy_behind" is `machine.busy` at the end of the run.
        warnings: other reasons for doubt: that the run was stopped, or failed.
    """

    part: str
    command: str
    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    path: Path | None = None  # where it is saved from time to time

    @property
    def wrong(self) -> list[Row]:
        """Rows with outputs that are not accepted."""
        return [row for row in self.rows if row.wrong]

    @property
    def busy(self) -> float | None:
        """Cores that other processes used, where they exceed BUSY; else None."""
        cores = [self.environment.get(name) or 0.0 for name in ("busy", "busy_behind")]
        return max(cores) if max(cores) > BUSY else None

    @property
    def doubts(self) -> list[str]:
        """Reasons not to rely on the figures; empty where there are none."""
        busy = [f"others kept {self.busy:.1f} cores busy, times are too long"] if self.busy else []
        return [*busy, *self.warnings]

    @property
    def cases(self) -> dict[tuple[str, str], list[Row]]:
        """Rows by case, in order."""
        by_case: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            by_case.setdefault(row.case, []).append(row)
        return by_case


FIELDS = tuple(Row.__dataclass_fields__)
DERIVED = ("median", "quartiles", "rate", "fraction")


def save(result: Result, path: Path) -> None:
    """Write a JSON file, one row per line; makes its folder."""
    head = {"schema": SCHEMA, "part": result.part, "command": result.command, "environment": result.environment}
    head |= {"warnings": result.warnings} if result.warnings else {}
    rows = [{name: getattr(row, name) for name in (*FIELDS, *DERIVED)} for row in result.rows]
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def load(path: Path) -> Result:
    """Read a file that `save` wrote.

    Raises:
        InputError: it cannot be read, or is not such a file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        record = json.loads(text)
        if record["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {record['schema']}, this bertgen reads {SCHEMA}")
        rows = [Row(**{name: row[name] for name in FIELDS}) for row in record["rows"]]
        return Result(record["part"], record["command"], record["environment"], rows, list(record.get("warnings", ())))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no result of bertgen bench: {type(error).__name__} {error}") from error


def save_csv(result: Result, path: Path) -> None:
    """Write the rows as CSV: one column per figure, and the environment in every line."""
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
    """Time of `theirs` over `ours`: ratio of the medians, and the spread of the ratios per turn (see FEW)."""
    turns = sorted(a / b for a, b in zip(theirs.seconds, ours.seconds))
    low, high = turns[0], turns[-1]
    if len(turns) > FEW:
        low, _, high = statistics.quantiles(turns, n=4, method="inclusive")
    return theirs.median / ours.median, low, high


def best(rows: Iterable[Row]) -> Row | None:
    """The fastest row of a contender over its settings, among those with the most runs."""
    timed = [row for row in rows if row.seconds]
    most = max((len(row.seconds) for row in timed), default=0)
    return min((row for row in timed if len(row.seconds) == most), key=lambda row: row.median, default=None)
