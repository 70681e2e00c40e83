"""Tables, files and warnings that every part prints."""

from __future__ import annotations

import argparse
import sys

from bertgen.bench import machine, output, result
from tests.support.benchmarks import CPU, make_result, make_row


def test_a_busy_machine_is_told(monkeypatch, capsys):
    monkeypatch.setattr(machine, "busy", lambda: 1.4)
    assert output.begin("ops", argparse.Namespace(json=None), CPU).environment["busy"] == 1.4
    assert "others keep 1.4 cores busy" in capsys.readouterr().err


def test_a_machine_that_became_busy_is_told_at_the_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(machine, "busy", lambda: 0.0)
    args = argparse.Namespace(json=tmp_path / "a.json", csv=None, check=False)
    found = output.begin("ops", args, CPU)
    found.rows.append(make_row())
    monkeypatch.setattr(machine, "busy", lambda: 1.4)
    assert output.end(found, args) == 0
    assert "warning: others kept 1.4 cores busy" in capsys.readouterr().out
    assert result.load(tmp_path / "a.json").busy == 1.4


def test_work_of_unlike_amounts_is_compared_by_rate():
    less = make_row(contender="other", seconds=[1.0], amount=10, unit="sentence")
    more = make_row(seconds=[2.0], amount=100, unit="sentence")
    assert "| 0.20x |" in output.line(less, more)
    assert output.time_text(-0.0119) == "-11.9 ms"


def test_a_command_is_told_without_its_files(monkeypatch):
    words = [
        "bertgen",
        "bench",
        "ops",
        "--size",
        "small",
        "--json",
        "a/b.json",
        "--csv=a.csv",
        "--input",
        "a/texts.tsv",
    ]
    monkeypatch.setattr(sys, "argv", words)
    assert output.command("ops") == "bertgen bench ops --size small --input texts.tsv"
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--repeats", "3"])
    assert output.command("overhead") == "python -m bertgen.bench.overhead --repeats 3"


def test_a_run_that_is_stopped_keeps_what_it_has(tmp_path):
    path = tmp_path / "a.json"
    found = make_result()
    found.path = path
    output.add(found, [make_row()])
    assert result.load(path).rows == [make_row()]
