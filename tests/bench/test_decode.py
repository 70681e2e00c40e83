"""The table of decoding on a GPU, as far as a CPU goes: a small model runs, the largest one has reasons."""

from __future__ import annotations

import os

import pytest
from bertgen.bench.workload import SIZES

from bertgen.bench import budget, decode, result
from bertgen.errors import ConfigError


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Run the module in this process: exit code, and the rows by setting and contender."""

    def command(*words):
        file = tmp_path / "decode.json"
        monkeypatch.setattr("sys.argv", ["decode", *map(str, words), "--device", "cpu", "--json", str(file)])
        with pytest.raises(SystemExit) as done:
            decode.main()
        return done.value.code, {(row.params["what"], row.contender): row for row in result.load(file).rows}

    return command


def test_the_largest_size_has_reasons_on_a_cpu(table):
    code, rows = table()
    assert code == 0 and len(rows) == len(decode.SETTINGS) * len(decode.CONTENDERS)
    assert all(row.absent == decode.ON_A_CPU and not row.seconds for row in rows.values())
    assert {(row.params["batch"], row.params["beams"], row.params["source"]) for row in rows.values()} == {
        (1, 1, 512), (64, 4, 512), (256, 1, 512)
    }  # fmt: skip


def test_a_small_size_runs_on_a_cpu(table):
    pytest.importorskip("transformers", reason="transformers is not installed")
    small = "--size smoke --source 9 --rows 2 --lengths 2 6 --repeats 1 --same-process".split()
    code, rows = table(*small, "--contenders", "bertgen", "bertgen without graphs", "transformers eager",
                       "transformers BART, static and compiled")  # fmt: skip
    assert code == 0 and len(rows) == 12
    for (what, contender), row in rows.items():
        if "static" in contender:
            assert row.absent == "not on a CPU: compiling takes minutes there"
            continue
        assert len(row.seconds) == 1 and row.correct.endswith("equal"), (what, contender)
        assert row.limit and row.amount == {"one row": 1, "beams": 2}.get(what, row.amount)
        if contender != "transformers eager":
            assert row.correct.split()[0] == row.correct.split()[2], "the same engine gives the same tokens"
    assert "BERTGEN_GRAPHS" not in os.environ


def test_what_fails_has_a_reason(table, monkeypatch):
    def fails(self, *_):
        raise RuntimeError("CUDA error: out of memory\nand more")

    monkeypatch.setattr(decode.WithoutGraphs, "run", fails)
    small = "--size smoke --source 5 --rows 1 --lengths 1 2 --repeats 2 --same-process --only".split()
    code, rows = table(*small, "one row", "--contenders", "bertgen", "bertgen without graphs")
    assert code == 0 and len(rows["one row", "bertgen"].seconds) == 2
    assert rows["one row", "bertgen without graphs"].absent == "RuntimeError: CUDA error: out of memory"


def test_the_limit_of_mixed_lengths_counts_the_rows_of_each_step():
    size, setting = SIZES["smoke"], decode.Setting("mixed", 2, 1, (1, 3))
    tokens, limit = decode.bounds(size, setting, [[1, 3]], 10, 2)
    cases = [budget.Case(2, 1, 10, 0), budget.Case(1, 1, 10, 1), budget.Case(1, 1, 10, 2)]
    encoder = 2 * 2 * 10 * size.of_source_token / budget.FLOPS
    assert tokens == 4 and limit == pytest.approx(sum(budget.limit(size, case) for case in cases) + encoder)


def test_the_lengths_must_differ(monkeypatch):
    monkeypatch.setattr("sys.argv", ["decode", "--lengths", "5", "5", "--device", "cpu"])
    with pytest.raises(ConfigError, match="--lengths 5 5"):
        decode.main()
