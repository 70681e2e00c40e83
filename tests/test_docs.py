"""What the documents say of the tests is true."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from bertgen import Int4Config
from bertgen.conversion import convert

ROOT = Path(__file__).parents[1]


def test_the_table_of_compatibility_names_tests_that_exist():
    text = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)::([\w*]+)`", text))
    assert len(named) > 60
    for file, test in sorted(named):
        path = ROOT / f"tests/test_{file}.py"
        assert path.exists(), path
        assert test == "*" or f"\ndef {test}(" in path.read_text(encoding="utf-8"), f"{file}::{test}"


def test_every_row_of_the_table_has_a_verdict():
    text = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("|---")]
    assert all(line.count("|") - line.count("\\|") == 4 for line in rows), [r for r in rows if r.count("|") != 4]


def test_the_page_of_kernels_has_the_offline_table():
    path = str(ROOT / "bench")
    sys.path.insert(0, path)
    try:
        import offline
    finally:
        sys.path.remove(path)
    table = json.loads((ROOT / "bench/results/offline.json").read_text())["3.6.0"]
    assert offline.markdown(table) in (ROOT / "docs/kernels.md").read_text(encoding="utf-8")


EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/transformers.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A folder with the models that the page of transformers makes by commands."""
    folder = tmp_path_factory.mktemp("models")
    convert("demo", folder / "bart", to="bart")
    convert("demo", folder / "small", int4=Int4Config())
    return folder


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_page_of_transformers_run(number, converted, monkeypatch):
    monkeypatch.chdir(converted)
    names: dict = {}
    exec(compile(EXAMPLES[number], f"example {number}", "exec"), names)
    if "model" in names:
        names["model"].generate(**{"inputs": names["model"].dummy_inputs["input_ids"][:1], "max_new_tokens": 3})
