"""What the documents say of the tests is true."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bertgen.bench import offline

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
    table = json.loads((ROOT / "bench/results/offline.json").read_text())["3.6.0"]
    assert offline.markdown(table) in (ROOT / "docs/kernels.md").read_text(encoding="utf-8")
