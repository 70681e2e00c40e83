"""Generation beside CPU-bound processes: these end in every case; turns and tables, by a clock that is no clock."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from bertgen.bench.agreement import Judge
from bertgen.bench.contenders import Contender, Run
from bertgen.bench.neighbours import ALL, COMMAND_LINE, CORE, MANY, NUMBERS, ONE, QUOTA, TOKENS, Setup

from bertgen.bench import neighbours, result, tables
from bertgen.cli import openmp
from tests.support.benchmarks import ROOT, SMOKE, make_result, run_module

# -- neighbours end


def runs(process: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ended(processes: list[int], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while any(map(runs, processes)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(runs, processes))


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_they_end_with_the_context(error):
    with pytest.raises(error), neighbours.neighbours(2, 60) as started:
        assert len(started) == 2 and all(runs(one.pid) for one in started)
        if error is KeyboardInterrupt:
            for one in started:
                one.send_signal(signal.SIGINT)  # a terminal sends it to all
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        raise error
    assert all(one.returncode == -signal.SIGKILL for one in started)


def test_they_end_with_a_process_that_is_killed():
    code = (
        "import time; from bertgen.bench.neighbours import neighbours\n"
        "with neighbours(2, 60) as started: print(*(one.pid for one in started), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    processes = [int(word) for word in parent.stdout.readline().split()]
    assert len(processes) == 2 and all(map(runs, processes))
    parent.kill()
    parent.communicate()
    assert ended(processes)


def test_they_end_after_their_time():
    with neighbours.neighbours(1, 0.1) as (one,):
        assert one.wait(20) == 0


# -- turns


@pytest.mark.parametrize("until, most, expected", [(10.0, 9, 3), (100.0, 4, 4), (0.0, 9, 1), (9.0, 9, 3), (8.9, 9, 2)])
def test_no_turn_begins_that_would_end_too_late(until, most, expected):
    now, turns = [0.0], []

    def turn():
        turns.append(now[0])
        now[0] += 3.0

    neighbours.repeat(turn, until, most, lambda: now[0])
    assert len(turns) == expected


class Fake(Contender):
    """Takes `seconds` for each run, and records what it was asked."""

    def __init__(self, seconds: float):
        self.seconds, self.asked = seconds, []

    def measured(self, sources, lengths, beams, batch):
        self.asked.append((len(sources), lengths[0], beams, batch))
        return Run([[7] * n for n in lengths], self.seconds, [], [], None, None)


def setups():
    """bertgen twice as fast as CTranslate2, four times as slow beside neighbours; CTranslate2 twice."""
    ours, command, theirs = Fake(0.5), Fake(0.25), Fake(1.0)
    missing = {"transformers sdpa": "it is not installed"}
    judge = Judge(None)
    busy = Setup(SMOKE, judge, {"bertgen": ours, "CTranslate2": theirs}, missing, ALL, [*NUMBERS])
    calm = Setup(SMOKE, judge, {"bertgen": command}, {}, ALL, [*NUMBERS], COMMAND_LINE)
    for number in NUMBERS:
        ours.seconds, theirs.seconds = (2.0, 2.0) if number else (0.5, 1.0)
        for setup in (busy, calm):
            setup.turn(number, math.inf)
    ways = {
        way: Setup(SMOKE, judge, {"bertgen": Fake(seconds)}, {}, way) for way, seconds in [(ONE, 1.0), (CORE, 1.25)]
    }
    for setup in ways.values():
        setup.turn(0, math.inf)
    ways[QUOTA] = Setup(SMOKE, judge, {}, {"bertgen": "quota of one CPU: read-only"}, QUOTA)
    assert ours.asked[:3] == [(rows, tokens, 1, 64) for rows, tokens in TOKENS.items()]
    return [busy, calm, *ways.values()]


def test_the_tables():
    rows = [row for setup in setups() for row in setup.rows("smoke")]
    heads, lines = neighbours.busy_table(rows)
    assert heads == ["requests", "engine", "quiet, s", "one neighbour", "two neighbours"]
    assert lines[:4] == [
        ["1", "bertgen", "0.500", *["4.00 (timed once)"] * 2],
        ["1", "CTranslate2", "1.000", *["2.00 (timed once)"] * 2],
        ["1", "transformers sdpa", *["not measured"] * 3],
        ["1", COMMAND_LINE, "0.250", *["1.00 (timed once)"] * 2],
    ]
    assert [line[0] for line in lines] == [str(rows) for rows in TOKENS for _ in range(4)]
    heads, lines = neighbours.confined_table(rows)
    assert heads == ["requests", "engine", "one thread, s", CORE, MANY, QUOTA]
    assert lines == [
        [str(rows), "bertgen", "1.000", "1.25 (timed once)", "not measured", "not measured"] for rows in TOKENS
    ]
    assert {row.absent for row in rows if not row.seconds} == {"it is not installed", "quota of one CPU: read-only"}
    assert all(row.limit is None for row in rows)


def test_the_tables_of_the_page(tmp_path, monkeypatch):
    one = make_result(*(row for setup in setups() for row in setup.rows("smoke")))
    one.part = neighbours.PART
    result.save(one, tmp_path / "neighbours-cpu.json")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "| 1 | bertgen | 0.500 | 4.00 (timed once) |" in tables.busy() and "commit abc" in tables.busy()
    assert "| 64 | bertgen | 1.000 | 1.25 (timed once) |" in tables.confined()


def test_a_way_that_the_system_does_not_allow_is_a_row_with_the_reason(monkeypatch):
    def refused(stack):
        raise OSError("read-only")

    monkeypatch.setattr(neighbours, "WAYS", {QUOTA: refused})
    with ExitStack() as stack:
        for end, reason in ((math.inf, "read-only"), (time.monotonic() - 1, "the time is over")):
            (setup,), turn = neighbours.confined(stack, ["bertgen"], SMOKE, Judge(None), end)
            if end == math.inf:
                turn()
            assert {row.absent for row in setup.rows("smoke")} == {f"quota of one CPU: {reason}"}


def test_the_time_of_a_turn_is_bounded():
    setup = Setup(SMOKE, Judge(None), {"bertgen": Fake(0.5)}, {})
    with pytest.raises(RuntimeError, match="the time is over"):
        setup.turn(0, time.monotonic() - 60)


def test_openmp_is_set_as_the_command_line_sets_it():
    assert neighbours.CALM == openmp.POLICY


# -- the command


@pytest.mark.long
def test_a_run(tmp_path):
    file = tmp_path / "a.json"
    printed = run_module("neighbours", "--size", "smoke", "--seconds", 100, "--repeats", 1, "--json", file)
    rows = result.load(file).rows
    assert printed.count("| requests | engine |") == 2
    assert {row.params["neighbours"] for row in rows} == {0, 1, 2} and not [row for row in rows if row.wrong]
    assert {row.params["processors"] for row in rows if row.seconds} >= {ALL, ONE, MANY}


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_leaves_no_process(number):
    command = [sys.executable, "-m", "bertgen.bench.neighbours", "--size", "smoke", "--repeats", "99"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)

    def session():
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == parent.pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found

    end = time.monotonic() + 120
    while time.monotonic() < end:  # until neighbours run, whose command ends with their seconds
        commands = [Path(f"/proc/{one}/cmdline") for one in session()]
        if any(path.exists() and b"getppid" in path.read_bytes() for path in commands):
            break
        time.sleep(0.05)
    parent.send_signal(number)
    parent.communicate(timeout=60)
    assert ended(session())
