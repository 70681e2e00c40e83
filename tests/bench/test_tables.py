"""Tables of the documentation pages."""

from __future__ import annotations

import re

import pytest

from bertgen.bench import figures, tables


def test_tables_are_not_made_of_what_is_not_to_be_relied_on(doubtful, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", doubtful["quiet"].parent)
    for path in doubtful.values():
        path.rename(path.with_name(f"{path.stem}-cpu.json"))
    said = tables.filled("<!-- bench: readme -->\n<!-- end -->")
    assert "No figures yet: bench/results/before-cpu.json is not to be relied on (others kept 2.0 cores busy" in said


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda path: path.name)
def test_the_tables_are_what_the_committed_results_give(page):
    text = page.read_text(encoding="utf-8")
    assert tables.BLOCK.search(text) and tables.filled(text) == text, "python -m bertgen.bench.tables"
    assert re.search(r"^`.*`: .*commit \w+\.$", text, re.MULTILINE), "command, device and commit"


def test_the_picture_of_the_readme_has_the_figures_of_its_table():
    results = tables.results("generate", figures.MODEL)
    (axes,) = figures.overview(tables.rows_of(results), results).axes
    drawn = sorted(text.get_text().removesuffix("x") for text in axes.texts)
    cells = [
        line.strip("| ").split(" | ")[1:]
        for line in tables.readme().splitlines()
        if "greedy" in line or "beams" in line
    ]
    assert len(cells) == 6 and drawn == sorted(cell for row in cells for cell in row)
