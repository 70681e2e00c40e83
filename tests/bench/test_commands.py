"""`bertgen bench PART` and the modules that are run by `python -m`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bertgen.ops import extension
from tests.support.benchmarks import ROOT, run_bench, run_module


def test_every_part_is_a_command(capsys):
    from bertgen.cli.bench import PARTS

    for part in PARTS:
        with pytest.raises(SystemExit, match="0"):
            run_bench(part, "--help")
        assert "example:" in capsys.readouterr().out


@pytest.mark.long
def test_entry_points_of_pytest_benchmark(tmp_path):
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-p", "no:cacheprovider", "-k",
               "decode_attention and lengths and not cross", f"--benchmark-json={tmp_path / 'a.json'}"]  # fmt: skip
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # of these tests
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stdout
    timed = json.loads((tmp_path / "a.json").read_text())["benchmarks"]
    assert {one["extra_info"]["contender"] for one in timed} == {"eager", "bertgen"}


@pytest.mark.long
def test_tokenizer_beside_transformers(tmp_path):
    (tmp_path / "texts.tsv").write_text("Where is the station?\tx\nI have lost my key.\ty\n" * 50)
    assert "100 sentences" in run_module("tokenizer", "--input", tmp_path / "texts.tsv", "--repeats", 1)


@pytest.mark.long
@pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")
def test_the_allocator():
    assert "allocator, 64 rows" in run_module("allocator", "--rows", 64)


@pytest.mark.long
@pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")
def test_4_bit_products_and_decoding():
    few = ("--repeats", 1, "--rows", 1, 5, "--shapes", 64, 128, "--size", "smoke", "--tokens", 5)
    printed = run_module("int4", *few)
    assert "| 64 x 128 |" in printed
    rows = [line.split(" |")[0] for line in printed.splitlines() if "x (" in line]
    integers = ["| int4, integers, output layer too", "| int4, integers"]
    assert rows[:5] == [*integers, "| int4, output layer too", "| int4", "| float32"]
    assert rows[5:] == ["| CTranslate2 int8", "| CTranslate2 float32"] or "CTranslate2 is missing" in printed


@pytest.mark.long
def test_weights_in_4_bits_beside_floats(tmp_path):
    (tmp_path / "pairs.tsv").write_text("Where is the station?\tWo ist der Bahnhof?\nHelp!\tHilfe!\n" * 2)
    files = ("--data", tmp_path / "pairs.tsv", "--repeats", 1, "--num-beams", 1)
    rows = [line.split(" | ") for line in run_module("quantization", "models", *files).splitlines()[2:]]
    formats = ["int4", "int4, integers", "NF4"]
    expected = ["float32", "float16", *formats, *(f"{one}, output layer too" for one in formats)]
    assert [row[0] for row in rows] == [f"| {one}" for one in expected]
    sizes = [float(row[1]) for row in rows]
    assert sizes[0] > sizes[1] > 8 > sizes[2] and all(float(cell) > 0 for row in rows for cell in row[2:4])
    assert "`decoder.bert.encoder.layer.*.intermediate.dense` | " in run_module("quantization", "layers")


@pytest.mark.long
def test_rows_decoded_together():
    printed = run_module("max_rows", "--size", "smoke", "--rows", 2, 65, "--repeats", 1, "--steps", 4)
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:]] == ["| 2", "| 65"]
