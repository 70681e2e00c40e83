"""The pages: links and anchors exist, examples run, named tests and tables are the committed ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from bertgen.bench.workload import SIZES

import bertgen
from bertgen import EncoderDecoderModel, Int4Config
from bertgen.bench import budget, offline
from bertgen.convert import convert

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def text_of(page):
    """A page without code blocks, where brackets are not links and number signs are not headings."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].strip("`") if "](" not in code[0] else "", text)


def anchors(page):
    """The anchors of a page's headings, by GitHub's rule."""
    headings = re.findall(r"^#+ (.*)", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_and_anchor_exists(page):
    text = text_of(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    links += re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    for link in links:
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and ROOT in target.parents, link
        assert not anchor or anchor in anchors(target), f"{link}: {sorted(anchors(target))}"


def test_every_page_is_linked_from_the_readme_or_from_a_page_linked_there():
    linked, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in linked and page.suffix == ".md":
            linked.add(page)
            paths = re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", text_of(page))
            waiting += [(page.parent / path).resolve() for path in paths if "://" not in path]
    assert {page for page in PAGES if page.name != "CHANGELOG.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_has_a_long_stretch_without_a_heading(page):
    """Tables are not counted."""
    parts = re.split(r"^#+ .*", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    longest = max(sum(len(line) for line in part.splitlines() if not line.startswith("|")) for part in parts)
    assert longest < 6000


def test_the_table_of_compatibility_names_tests_that_exist():
    text = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+)::([\w*]+)`", text))
    assert len(named) > 60
    for file, test in sorted(named):
        folder, _, name = file.rpartition("/")
        path = ROOT / "tests" / folder / f"test_{name}.py"
        assert path.exists(), path
        assert test == "*" or f"\ndef {test}(" in path.read_text(encoding="utf-8"), f"{file}::{test}"


def test_the_budget_of_a_step_is_what_the_command_prints():
    table = "\n".join(budget.table(SIZES["large"], 512, 128, 2))
    assert table in (ROOT / "docs/decode.md").read_text(encoding="utf-8")


def test_every_row_of_the_table_has_a_verdict():
    text = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    verdicts = text.partition("## transformers' own tests")[0]
    rows = [line for line in verdicts.splitlines() if line.startswith("| ") and not line.startswith("|---")]
    assert len(rows) > 90
    for row in rows:
        name, verdict, _ = re.split(r"(?<!\\)\|", row)[1:-1]
        assert name.strip() and verdict.strip(), row


def test_the_page_of_kernels_has_the_offline_table():
    table = json.loads((ROOT / "bench/results/offline.json").read_text())["3.6.0"]
    assert offline.markdown(table) in (ROOT / "docs/kernels.md").read_text(encoding="utf-8")


def examples(page):
    return re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_source_files_and_folders_that_a_page_names_exist(page):
    """Except the placeholder NAME, the extension, and tests of transformers."""
    codes = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    pattern = r"(?<![\w./-])(?:bench|bertgen|csrc|docs|kernels|tests)/[\w./-]*"
    paths = [path for code in codes for path in re.findall(pattern, code)]
    others = "NAME|^bertgen/_C|^tests/(test_modeling_common.py|models|generation)$"
    assert [path for path in paths if not ((ROOT / path).exists() or re.search(others, path))] == []


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch, capsys):
    """In order, in a folder with a model of the name that the examples use."""
    EncoderDecoderModel.from_pretrained("demo").save_pretrained(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    blocks = examples("../README.md")
    assert len(blocks) == 3 and len([line for line in blocks[0].splitlines() if line]) == 4
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert type(names["model"]).__name__ == "EncoderDecoderModel" and bertgen.explain(names["model"])
    assert capsys.readouterr().out.splitlines() == ["Wo ist der Bahnhof?", "Ich habe meinen Schlüssel verloren."] + [
        "Wo ist der Bahnhof?"
    ]


def test_the_targets_of_the_pages_are_in_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        target
        for page in PAGES
        for targets_of in re.findall(
            r"(?:^    |`|&& )make ((?:[a-z-]+ ?)+)", page.read_text(encoding="utf-8"), re.MULTILINE
        )
        for target in targets_of.split()
    }
    assert {"install", "test", "demo"} <= named
    assert named <= targets, named - targets


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
    """In order, in a folder with the models that the page creates by commands."""
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
