"""What the documents say of the tests is true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from bertgen import Int4Config
from bertgen.bench import offline
from bertgen.convert import convert

ROOT = Path(__file__).parents[1]


def test_the_table_of_compatibility_names_tests_that_exist():
    text = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+)::([\w*]+)`", text))
    assert len(named) > 60
    for file, test in sorted(named):
        folder, _, name = file.rpartition("/")
        path = ROOT / "tests" / folder / f"test_{name}.py"
        assert path.exists(), path
        assert test == "*" or f"\ndef {test}(" in path.read_text(encoding="utf-8"), f"{file}::{test}"


def test_every_row_of_the_table_has_a_verdict():
    text = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    verdicts = text.partition("## transformers' own tests")[0]
    rows = [line for line in verdicts.splitlines() if line.startswith("| ") and not line.startswith("|---")]
    assert len(rows) > 90
    assert all(line.count("|") - line.count("\\|") == 4 for line in rows), [r for r in rows if r.count("|") != 4]


def test_the_page_of_kernels_has_the_offline_table():
    table = json.loads((ROOT / "bench/results/offline.json").read_text())["3.6.0"]
    assert offline.markdown(table) in (ROOT / "docs/kernels.md").read_text(encoding="utf-8")


def examples(page):
    return re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def test_the_examples_of_the_parts_hold():
    torch.manual_seed(0)
    blocks = examples("parts.md")
    assert len(blocks) == 6
    assert [len(block.splitlines()) for block in blocks[1:-1]] == [5] * 4
    names: dict = {}
    for block in blocks:
        exec(block, names)
    with pytest.raises(AssertionError, match="not close"):
        exec(blocks[1].replace("x + residual", "x - residual"), names)


def test_the_examples_of_the_page_of_transformers_run(tmp_path, monkeypatch, capsys):
    """One after the other, in a folder with what the page makes by commands."""
    convert("demo", tmp_path / "bart", to="bart")
    convert("demo", tmp_path / "small", int4=Int4Config())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = examples("transformers.md")
    assert len(blocks) == 5
    for number, block in enumerate(blocks):
        exec(compile(block, f"example {number}", "exec"), names)
        names["model"].generate(names["ids"], max_new_tokens=3)
    assert capsys.readouterr().out.splitlines()[0] == "Wo ist der Bahnhof?"
