"""Floors of speed-ups, and when they are not judged."""

from __future__ import annotations

import pytest

from bertgen.bench import check, floors, result, tables
from tests.support.benchmarks import make_result, make_row, run_bench


@pytest.mark.parametrize(
    ("seconds", "code", "said"), [((2.0,) * 3, 0, "ok "), ((1.2,) * 3, 1, "BELOW"), ((), 0, "open")]
)
def test_a_ratio_below_its_floor_fails(monkeypatch, tmp_path, capsys, seconds, code, said):
    monkeypatch.setattr(floors, "FLOORS", (floors.Floor("generate", "other", 1.5, {"beams": 4}),))
    row = make_row(contender="other", seconds=seconds, params={"model": "base", "beams": 4})
    result.save(make_result(make_row(seconds=(1.0,) * 3, params=row.params), row), tmp_path / "a.json")
    assert run_bench("check", tmp_path / "a.json") == code
    assert capsys.readouterr().out.startswith(said)


def test_a_check_that_checks_nothing_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(floors, "FLOORS", (floors.Floor("generate", "other", 1.5, device="cuda"),))
    result.save(make_result(make_row()), tmp_path / "a.json")
    assert run_bench("check", tmp_path / "a.json") == 2
    assert "nothing was checked" in capsys.readouterr().err
    monkeypatch.setattr(floors, "FLOORS", (floors.Floor("generate", "other", 1.5),))
    broken = make_result(make_row(seconds=(), wrong="token 3 differs"), make_row(contender="other"))
    assert check.report([broken]) == check.BELOW, "without a time of ours a floor is not reached"


@pytest.mark.parametrize(("name", "code"), [("quiet", 0), ("before", 4), ("behind", 4), ("short", 4)])
def test_what_a_busy_machine_measured_is_not_judged(monkeypatch, doubtful, capsys, name, code):
    monkeypatch.setattr(floors, "FLOORS", (floors.Floor("generate", "other", 1.5, {"beams": 4}),))
    assert run_bench("check", doubtful[name]) == code == (check.NOT_JUDGED if code else 0)
    said = capsys.readouterr().out
    assert said.startswith("not judged generate, beams 4: " if code else "ok "), said
    if code and name != "short":
        assert "the machine was busy (others kept" in said


def test_a_ratio_below_its_floor_counts_beside_what_is_not_judged(monkeypatch, doubtful):
    monkeypatch.setattr(floors, "FLOORS", (floors.Floor("generate", "other", 50.0, {"beams": 4}),))
    assert run_bench("check", doubtful["before"]) == check.NOT_JUDGED
    assert run_bench("check", doubtful["before"], doubtful["quiet"]) == check.BELOW


def test_the_committed_results_reach_the_floors():
    found = [result.load(path) for path in sorted(tables.RESULTS.glob("*-cpu.json"))]
    assert floors.FLOORS and check.report(found) == 0
    assert [one.doubts for one in found] == [[]] * len(found)
    for floor in floors.FLOORS:
        assert any(check.matching(floor, one.rows, floor.ours) for one in found), f"{floor} holds for nothing"
