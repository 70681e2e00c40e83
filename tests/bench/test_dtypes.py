"""Dtypes side by side: the time of a step, and the tables."""

from __future__ import annotations

import pytest
from bertgen.bench.agreement import Judge
from bertgen.bench.contenders import Contender, Run
from bertgen.bench.dtypes import INT4, PART, THEIRS, TOKENS
from bertgen.bench.generate import Race
from bertgen.bench.result import OURS, Row

from bertgen.bench import dtypes, result, scale, tables
from tests.support.benchmarks import SMOKE, make_result, run_module


class Fake(Contender):
    """Takes 1 s for the encoder, and so many seconds for each token."""

    def __init__(self, token: float):
        self.token = token

    def measured(self, sources, lengths, beams, batch):
        return Run([[7] * n for n in lengths], 1.0 + self.token * max(lengths), [], [], None, None)


def rows() -> list[Row]:
    """bfloat16 twice as fast as float32 for a step, transformers three times as slow; float16 was not measured."""
    found = []
    for dtype, present in {
        "float32": {OURS: Fake(0.2), INT4: Fake(0.05), THEIRS: Fake(0.6)},
        "bfloat16": {OURS: Fake(0.1), THEIRS: Fake(0.3)},
    }.items():
        points = [{"batch": 2, "source": 4, "target": tokens, "beams": 1} for tokens in (1, TOKENS)]
        races = [Race(scale.made(point, SMOKE.size.vocabulary), present, Judge(None)) for point in points]
        for race in races:
            race.turn([16])
        params = {"model": "smoke", "requests": 2, "beams": 1, "tokens": TOKENS, "dtype": dtype}
        found += dtypes.of_steps(*races, SMOKE, params)
    evaluated = {"bleu": 44.84, "bytes": 46.6e6, "sentences": 3}
    for name, seconds in (("float32", 2.0), ("int4", 4.0)):
        found.append(Row("evaluate", {"model": "demo", "beams": 4}, name, [seconds], 1000, "token", extra=evaluated))
    return found


def test_a_step_is_the_difference_of_two_outputs():
    by = {(row.params.get("dtype"), row.contender): row for row in rows()}
    assert by["float32", OURS].extra["steps"] == pytest.approx([0.2])
    assert by["bfloat16", THEIRS].extra["steps"] == pytest.approx([0.3])
    assert by["float32", OURS].seconds == pytest.approx([1.0 + 0.2 * TOKENS])


def test_an_engine_that_fails_has_no_step():
    class Broken(Fake):
        def measured(self, sources, lengths, beams, batch):
            if max(lengths) == 1:
                raise RuntimeError("no kernel")
            return super().measured(sources, lengths, beams, batch)

    points = [{"batch": 1, "source": 4, "target": tokens, "beams": 1} for tokens in (1, TOKENS)]
    present = {OURS: Fake(0.2), THEIRS: Broken(0.3)}
    races = [Race(scale.made(point, SMOKE.size.vocabulary), present, Judge(None)) for point in points]
    for race in races:
        race.turn([16])
    (ours, theirs) = dtypes.of_steps(*races, SMOKE, {})
    assert ours.seconds and not theirs.seconds and theirs.absent == "RuntimeError: no kernel"
    assert dtypes.step(theirs) is None


def test_the_tables(tmp_path, monkeypatch):
    one = make_result(*rows())
    one.part = PART
    result.save(one, tmp_path / "dtypes-cpu.json")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    once, unknown = "(timed once)", "not measured"
    expected = {
        "dtypes": f"| int4 | 46.6 | 44.8 | 250 | 0.50 {once} |",
        "steps": f"| 2, greedy | 200.0 | 2.00 {once} | {unknown} | 4.00 {once} |",
        "sixteen": f"| 2, greedy | 4.400 | 2.55 {once} | 2.700 | 2.26 {once} | {unknown} | {unknown} |",
    }
    for name, line in expected.items():
        assert line in tables.TABLES[name]().splitlines(), tables.TABLES[name]()


@pytest.mark.long
def test_a_run(tmp_path):
    (tmp_path / "pairs.tsv").write_text("Where is the station?\tWo ist der Bahnhof?\nHelp!\tHilfe!\n" * 2)
    file = tmp_path / "a.json"
    options = ("--data", tmp_path / "pairs.tsv", "--size", "smoke", "--repeats", 1, "--json", file)
    printed = run_module("dtypes", *options)
    found = result.load(file).rows
    assert not [row for row in found if row.wrong] and printed.count("\n|---") == 4
    formats = [row for row in found if row.name == "evaluate"]
    assert [row.contender for row in formats] == ["float32", "bfloat16", "float16", "int4"]
    sizes = [row.extra["bytes"] for row in formats]
    assert sizes[0] > 1.9 * sizes[1] > 1.9 * sizes[3] and abs(sizes[1] - sizes[2]) < 1000
    assert {row.params["dtype"] for row in found if row.name == PART and row.seconds} == {*dtypes.DTYPES}
