"""Generation: latencies, wrong tokens, missing engines."""

from __future__ import annotations

import sys
import time

import pytest

from bertgen.bench import contenders, generate, report, result, workload
from bertgen.errors import ConfigError
from tests.support.benchmarks import run_bench


def test_a_run(generated, capsys):
    code, found = generated()
    assert code == 0 and found.environment["commit"] is not None
    rows = [row for row in found.rows if row.seconds]
    assert {row.params["beams"] for row in rows} == {1, 4} and {row.params["batch"] for row in rows} == {2}
    for row in rows:
        assert row.extra["equal"] == row.extra["compared"] == 3 and row.limit > 0
        assert row.amount == 3 * 32 and row.unit == "token" and row.extra["request_p50"] <= row.median
        told = row.extra["token_p50"], row.extra["token_p99"]
        if row.contender == "CTranslate2" and row.params["beams"] > 1:
            assert told == (None, None)
        else:
            assert 0 < told[0] <= told[1]
    assert capsys.readouterr().out.count("3 of 3 equal") >= 4


def test_latencies_of_known_steps():
    class Slow(contenders.Contender):
        def run(self, sources, lengths, beams, batch):
            for numbers in contenders.batches(list(range(len(sources))), batch, sources):
                self.begin()
                since = self.marks[-1][0]
                for _ in range(max(lengths[i] for i in numbers)):
                    time.sleep(0.005)
                    self.step()
                self.end(numbers, since)
            return [[7] * n for n in lengths]

    run = Slow().measured([[7], [8]], [4, 4], 1, 1)
    assert len(run.gaps) == 2 * 3 and all(0.005 <= gap < 0.02 for gap in run.gaps), "the first token has no gap"
    assert len(run.requests) == 2 and all(0.02 <= spent < 0.05 for spent in run.requests)
    assert 0.04 <= run.seconds < 0.1 and 0 < run.loaded <= run.peak
    told = generate.told([run, run._replace(gaps=[9.0])])
    assert told["token_p99"] == 9.0 and told["token_p50"] < 0.02


@pytest.mark.parametrize("name", ["Bertgen", "Transformers"])
def test_a_wrong_token_fails_the_run(generated, monkeypatch, capsys, name):
    kind = getattr(contenders, name)
    right = kind.run

    def wrong(self, sources, *arguments):
        found = right(self, sources, *arguments)
        found[-1][-1] ^= 1
        return found

    monkeypatch.setattr(kind, "run", wrong)
    code, found = generated("--beams", 1)
    rows = [row for row in found.rows if row.contender == "transformers sdpa"]
    assert code == 1 and all(row.wrong and not row.seconds for row in rows)
    printed, said = capsys.readouterr()
    assert "request 2 differs at token 31, margin " in said
    assert all("WRONG" in line for line in printed.splitlines() if "| transformers sdpa |" in line)


def test_one_wrong_turn_takes_all_times(generated, monkeypatch):
    right, runs = contenders.Transformers.run, []

    def sometimes(self, sources, lengths, *arguments):
        found = right(self, sources, lengths, *arguments)
        runs.append(max(lengths))
        if runs.count(32) == 2 and runs[-1] == 32:
            found[-1][-1] ^= 1
        return found

    monkeypatch.setattr(contenders.Transformers, "run", sometimes)
    code, found = generated("--beams", 1, "--repeats", 3)
    (row,) = [row for row in found.rows if row.contender == "transformers sdpa"]
    assert runs.count(32) == 3, "three turns"
    assert code == 1 and row.wrong and not row.seconds


def test_an_output_that_stops_early_is_wrong(generated, monkeypatch, capsys):
    kind = contenders.Transformers
    right = kind.run
    monkeypatch.setattr(kind, "run", lambda self, *arguments: [ids[:-1] for ids in right(self, *arguments)])
    assert generated("--beams", 1)[0] == 1
    assert "request 0 stopped after 32 and 31 tokens of 32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "name"), [("transformers", "transformers sdpa"), ("ctranslate2.converters", "CTranslate2")]
)
def test_a_missing_engine_is_said_to_be_missing(generated, monkeypatch, capsys, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    code, found = generated("--beams", 1)
    assert code == 0
    (row,) = [row for row in found.rows if row.contender == name]
    assert "the comparison needs a package that cannot be imported" in row.absent and not row.seconds
    printed = capsys.readouterr().out
    assert f"| {name} | missing: " in printed and f"missing: {name}: the comparison" in printed.replace(
        ", CTr", ": CTr"
    )
    assert name in report.faults([found])


def generate_arguments(*words: str):
    import argparse

    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return parser.parse_args(words)


def test_given_weights_and_texts(tmp_path):
    (tmp_path / "a.txt").write_text("Where is the station?\nHelp!\n")
    arguments = "--requests 2 --batches 2 --repeats 1 --only mixed --beams 1 --same-process --no-load".split()
    words = [*arguments, "--engines", "bertgen", "--input", tmp_path / "a.txt", "--json", tmp_path / "a.json"]
    assert run_bench("generate", "--model", "demo", *words) == 0
    (row,) = [row for row in result.load(tmp_path / "a.json").rows if row.seconds]
    assert row.params["model"] == "demo" and row.params["requests"] == "mixed" and row.amount < 30
    assert run_bench("generate", "--model", "demo", *words, "--input", tmp_path / "none.txt") == 2
    assert workload.size_of("demo") == workload.SIZES["demo"]
    with pytest.raises(ConfigError, match="--requests must be at least 1, got 0"):
        generate.run(generate_arguments("--requests", "0"))


@pytest.mark.long
def test_all_engines_and_loading(tmp_path):
    """Including the compiled engine and those with rounded weights, each in its own process."""
    words = "--size smoke --requests 2 --repeats 1 --batches 2 --only fixed".split()
    code = run_bench("generate", *words, "--engines", "all", "--json", tmp_path / "a.json")
    found = result.load(tmp_path / "a.json")
    assert code == 0
    assert {row.contender for row in found.rows if row.seconds and row.name == "load"} == set(generate.ENGINES)
    assert {row.contender for row in found.rows if row.seconds and row.name == "generate"} == set(generate.ENGINES)
