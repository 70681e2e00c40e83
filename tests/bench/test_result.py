"""Results: files, tables for other programs, ratios, warnings."""

from __future__ import annotations

import csv
import json

import pytest

from bertgen.bench import result
from bertgen.errors import InputError
from tests.support.benchmarks import make_result, make_row


def test_a_result_is_read_as_it_was_written(tmp_path):
    before = make_result(make_row(extra={"peak": 3}), make_row(contender="other", seconds=(), absent="not installed"))
    result.save(before, tmp_path / "new/a.json")
    after = result.load(tmp_path / "new/a.json")
    assert (after.rows, after.environment, after.command) == (before.rows, before.environment, before.command)
    first = json.loads((tmp_path / "new/a.json").read_text())["rows"][0]
    assert (first["median"], first["quartiles"]) == (1.1, [1.05, 1.15]), "for other readers"


def test_what_is_no_result_is_refused(tmp_path):
    result.save(make_result(make_row()), tmp_path / "a.json")
    whole = (tmp_path / "a.json").read_text()
    other = whole.replace('"schema": 1', '"schema": 99')
    for text, said in (("", "no result"), ("{}", "no result"), (whole[:-9], "no result"), (other, "schema 99, this")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=rf"a\.json .*{said}"):
            result.load(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot be read"):
        result.load(tmp_path / "none.json")


def test_a_table_for_other_programs(tmp_path):
    result.save_csv(
        make_result(make_row(amount=22.0, unit="token"), make_row(seconds=(), absent="gone")), tmp_path / "a.csv"
    )
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["samples"] for row in rows] == ["3", "0"] and rows[1]["absent"] == "gone"
    assert float(rows[0]["rate"]) == pytest.approx(20) and rows[0]["commit"] == "abc"


def test_ratios_are_of_turns():
    ours, theirs = make_row(seconds=(1.0, 2.0, 4.0)), make_row(seconds=(2.0, 4.0, 6.0), contender="other")
    assert result.ratio(theirs, ours) == (2.0, 1.5, 2.0)
    assert result.best([make_row(seconds=[0.1]), ours, make_row(seconds=[5, 5, 5])]) is ours, (
        "one run alone tells little"
    )


def test_warnings_are_a_part_of_the_result(doubtful, tmp_path):
    found = {name: result.load(path) for name, path in doubtful.items()}
    assert found["quiet"].doubts == [] and found["quiet"].busy is None
    assert found["before"].doubts == ["others kept 2.0 cores busy, times are too long"]
    assert found["behind"].doubts == ["others kept 1.4 cores busy, times are too long"]
    assert found["short"].doubts == ["stopped after 60 s, cases may be missing"]
    result.save_csv(found["short"], tmp_path / "short.csv")
    assert (tmp_path / "short.csv").read_text().count("stopped after 60 s") == len(found["short"].rows)
