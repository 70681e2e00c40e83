"""Comparison of two results: changes beyond the spread."""

from __future__ import annotations

import dataclasses
import time

from bertgen.bench.result import Result

from bertgen.bench import check, clock, compare, result
from tests.support.benchmarks import CPU, make_result, make_row, run_bench


def raced(**calls) -> Result:
    taken = clock.race({name: [call] for name, call in calls.items()}, CPU, seconds=0.02, least=9)
    return make_result(*(make_row(contender=name, seconds=times) for name, times in taken.items()))


def test_a_slowed_operator_is_flagged_and_the_same_twice_is_not(tmp_path, capsys):
    def sleep(seconds):
        return lambda: time.sleep(seconds)

    files = {name: tmp_path / f"{name}.json" for name in ("before", "again", "slowed")}
    for name, file in files.items():
        result.save(raced(bertgen=sleep(0.006 if name == "slowed" else 0.003), eager=sleep(0.003)), file)
    assert run_bench("compare", files["before"], files["again"]) == 0
    assert "no verdict; 2 of 2 within the spread" in capsys.readouterr().out
    assert run_bench("compare", files["before"], files["slowed"]) == 1
    assert "| bertgen |" in (said := capsys.readouterr().out) and "slower" in said
    assert run_bench("compare", files["slowed"], files["before"]) == 0
    assert "1 faster" in capsys.readouterr().out


def test_a_slower_machine_is_no_verdict():
    before = make_result(make_row(), make_row(contender="eager"))
    slower = make_result(*(dataclasses.replace(row, seconds=[2 * s for s in row.seconds]) for row in before.rows))
    assert [one.verdict for one in compare.compared(before, slower)] == ["", ""]
    changed = make_result(slower.rows[0], before.rows[1])
    assert [one.verdict for one in compare.compared(before, changed)] == ["slower", ""]
    touching = make_result(make_row(seconds=(1.14, 1.2, 1.3)), before.rows[1])
    assert [one.verdict for one in compare.compared(before, touching)] == ["", ""], "their middle halves touch"


def test_what_is_gone_or_wrong_is_a_verdict(tmp_path):
    before, gone = make_result(make_row()), make_result(make_row(seconds=(), absent="not installed"))
    wrong = make_result(make_row(seconds=(), wrong="token 3 differs"))
    assert [one.verdict for one in compare.compared(before, gone)] == ["gone"]
    assert [one.verdict for one in compare.compared(before, wrong)] == ["WRONG"]
    assert [one.verdict for one in compare.compared(gone, before)] == ["new"]
    for one, other in ((before, gone), (before, wrong)):
        result.save(one, tmp_path / "a.json")
        result.save(other, tmp_path / "b.json")
        assert run_bench("compare", tmp_path / "a.json", tmp_path / "b.json") == 1


def test_busy_and_short_runs_are_not_compared(doubtful, capsys):
    assert run_bench("compare", doubtful["quiet"], doubtful["slow"]) == check.NOT_JUDGED
    said = capsys.readouterr().out
    assert "NOT TO BE RELIED ON: others kept 0.7 cores busy" in said and "not judged" in said and "slower" not in said
    assert run_bench("compare", doubtful["quiet"], doubtful["short"]) == check.NOT_JUDGED
    said = capsys.readouterr().out
    assert "stopped after 60 s" in said and "gone" not in said
    assert run_bench("compare", doubtful["quiet"], doubtful["quiet"]) == 0
