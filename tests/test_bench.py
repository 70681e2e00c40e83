"""The benchmark scripts run, and their tokens agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertgen import extension

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, ROOT / "bench" / script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=True).stdout


@pytest.mark.long
def test_generation_beside_transformers(tmp_path):
    printed = run("generate.py", "--size", "smoke", "--repeats", 1, "--json", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert [(row["batch"], row["beams"]) for row in result["rows"]] == [(1, 1), (1, 4), (16, 1), (16, 4)]
    assert all(row["equal"] == 1 for row in result["rows"]), printed
    assert result["torch"] and result["commit"] is not None


@pytest.mark.long
def test_the_engine_beside_transformers(tmp_path):
    (tmp_path / "pairs.tsv").write_text("Where is the station?\tWo ist der Bahnhof?\nHelp!\tHilfe!\n" * 4)
    files = ("--data", tmp_path / "pairs.tsv", "--json", tmp_path / "result.json")
    printed = run("engines.py", "--size", "smoke", "--requests", 8, "--singles", 2, "--batches", 3, *files)
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [(row["lengths"], row["beams"]) for row in rows] == [
        (kind, beams) for kind in ("fixed", "mixed", "single") for beams in (1, 4)
    ]
    assert all(row["equal"] == row["compared"] > 0 for row in rows), printed


@pytest.mark.long
def test_tokenizer_beside_transformers(tmp_path):
    (tmp_path / "texts.tsv").write_text("Where is the station?\tx\nI have lost my key.\ty\n" * 50)
    assert "100 sentences" in run("tokenizer.py", "--input", tmp_path / "texts.tsv", "--repeats", 1)


@pytest.mark.long
@pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.absence()}")
def test_the_extension_beside_torch():
    assert "allocator, 1024 rows" in run("extension.py", "--rounds", 1, "--threads", 1, "--rows", 1, 4)


@pytest.mark.long
def test_operators_beside_torch(tmp_path):
    printed = run("ops.py", "--size", "smoke", "--device", "cpu", "--seconds", 0.01, "--json", tmp_path / "ops.json")
    result = json.loads((tmp_path / "ops.json").read_text())
    assert {row["op"] for row in result["rows"]} >= {"attention", "decode_attention", "add_layer_norm", "int4_matmul"}
    assert all("bertgen" in row["times"] and not row["rejected"] for row in result["rows"]), printed
