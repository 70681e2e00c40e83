"""`make test-matrix`: constraints of a row, its search path, counts of a report, and what the table says."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from tests.support import matrix
from tests.support.matrix import Outcome, Row, Unavailable

PINS = 'torch==2.13.0\ntriton==3.7.1\ntransformers==5.23.0; python_version >= "3.11"\ntokenizers==0.23.3\nruff==0.17\n'
REPORT = """<testsuites><testsuite><testcase classname="tests.a" name="one"/>
<testcase classname="tests.a" name="two"><failure message="no"/></testcase>
<testcase classname="tests.a" name="three"><skipped message="Skipped: no GPU"/></testcase>
<testcase classname="tests.b" name="four"><skipped message="no GPU"/></testcase></testsuite></testsuites>"""


def test_a_version_of_a_row_replaces_the_pins_that_depend_on_it():
    assert matrix.constraints(Row("a", versions=("torch==2.10.0",)), PINS).splitlines() == [
        *PINS.splitlines()[2:], "torch==2.10.0",
    ]  # fmt: skip
    assert matrix.constraints(Row("a", versions=("transformers",)), PINS).split() == [
        "torch==2.13.0", "triton==3.7.1", "ruff==0.17",
    ]  # fmt: skip
    assert matrix.constraints(Row("a"), PINS) == PINS


def test_rows_have_names_of_folders_and_each_can_be_chosen():
    names = [row.name for row in matrix.ROWS]
    assert len(set(names)) == len(names) and all(name == os.path.basename(name) for name in names)
    assert matrix.chosen("") == list(matrix.ROWS)
    assert [row.name for row in matrix.chosen("clang oldest")] == ["clang", "oldest"]
    with pytest.raises(SystemExit, match="no row clan; the rows are constraints oldest"):
        matrix.chosen("clan oldest")


def test_a_missing_interpreter_is_named(monkeypatch):
    assert matrix.interpreter(None) == sys.executable
    with pytest.raises(Unavailable, match=r"no python3\.99 on the search path"):
        matrix.interpreter("3.99")
    monkeypatch.setattr(shutil, "which", lambda command: sys.executable)  # a command of that name, another version
    with pytest.raises(Unavailable, match=r"no python3\.99"):
        matrix.interpreter("3.99")


@pytest.mark.skipif(os.name == "nt", reason="links need rights")
def test_a_search_path_without_compilers(tmp_path):
    places = tmp_path / "one", tmp_path / "two"
    commands = "cc gcc g++-12 c++ clang clang++-19 x86_64-linux-gnu-gcc python3 git gcc-help accept".split()
    for place in places:
        place.mkdir()
        for command in commands:
            (place / command).write_text("#!/bin/sh\n")
            (place / command).chmod(0o755)
    path = matrix.without_compilers(os.pathsep.join(map(str, places)), tmp_path / "links")
    assert sorted(os.listdir(path)) == ["accept", "gcc-help", "git", "python3"]
    assert os.readlink(f"{path}/git") == str(places[0] / "git")


def test_a_report_is_counted(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    counts, failed, skips = matrix.read_report(tmp_path / "report.xml")
    assert counts == {"passed": 1, "failed": 1, "skipped": 2}
    assert failed == ["tests.a::two"] and skips == {"no GPU": 2}


def test_a_row_that_was_not_run_is_never_shown_as_passed():
    rows = [
        (Row("a"), None),
        (Row("b"), Outcome("b", "not run", "no python3.99 on the search path")),
        (Row("c"), Outcome("c", "passed", passed=5, skipped=1, skips={"no GPU": 1}, versions={"torch": "2.15.0"})),
    ]
    table, text = matrix.markdown(rows).splitlines(), matrix.summary(rows)
    assert ["passed" in line for line in table[2:]] == [False, False, True]
    assert "| 2.15.0 |" in table[4] and "| 5 | 0 | 1 |" in table[4]
    assert "b: not run: no python3.99 on the search path" in text and "c: 1 skipped: no GPU" in text


@pytest.fixture
def two_rows(tmp_path, monkeypatch):
    """The matrix with two rows that do nothing; the names of those that ran, and what becomes of a row."""
    ran, status = [], {"one": "passed", "two": "passed"}

    class Run:
        def __init__(self, row, names, processes, keep):
            self.row = row

        def outcome(self):
            ran.append(self.row.name)
            return Outcome(self.row.name, status[self.row.name], passed=1, tests=self.row.tests)

    monkeypatch.setattr(matrix, "ROWS", (Row("one"), Row("two")))
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "BUILD", tmp_path / "build")
    monkeypatch.setattr(matrix, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(matrix, "Run", Run)
    monkeypatch.setattr(matrix, "sources", lambda: ["code.py", "page.md"])
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "page.md").write_text("a\n<!-- matrix -->\nold\n<!-- end -->\nb\n")
    return ran, status


def test_a_row_that_passed_runs_again_only_with_other_sources_or_on_request(two_rows, tmp_path):
    ran, status = two_rows
    status["two"] = "failed"
    assert matrix.main([]) == 1 and ran == ["one", "two"]
    assert matrix.main([]) == 1 and ran == ["one", "two", "two"]
    status["two"] = "not run"
    assert matrix.main(["--again"]) == 0 and ran[3:] == ["one", "two"]
    assert matrix.main(["one"]) == 0 and len(ran) == 5
    (tmp_path / "code.py").write_text("2")
    assert matrix.main(["one"]) == 0 and ran[5:] == ["one"]


def test_the_table_is_written_into_the_page(two_rows, tmp_path):
    assert matrix.main(["--write"]) == 0
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("a\n<!-- matrix -->\n| row |") and page.endswith("|\n<!-- end -->\nb\n")
    assert "old" not in page
    assert matrix.main(["--show", "--write"]) == 0 and two_rows[0] == ["one", "two"]


def test_a_part_of_the_tests_does_not_stand_for_all(two_rows, tmp_path, capsys):
    ran, _ = two_rows
    assert matrix.main(["one", "--tests", "tests/ops tests/cache"]) == 0 and ran == ["one"]
    assert "  ops cache" in capsys.readouterr().out
    assert matrix.main(["one"]) == 0 and ran == ["one", "one"]
    assert "  all" in capsys.readouterr().out


def test_an_environment_is_used_again_only_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "BUILD", tmp_path)
    monkeypatch.setattr(matrix, "ROOT", tmp_path / "root")
    for keep in (True, False):
        run = matrix.Run(Row("one", environment=(("CXX", sys.executable),)), [], "0", keep)
        for name in ("venv/lib/old", "sources/old", "log.txt"):
            (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (run.folder / name).write_text("old")
        monkeypatch.setattr(run, "command", lambda *arguments: (0, ""))
        monkeypatch.setattr(matrix.subprocess, "run", lambda *arguments, **options: None)
        run.prepare(sys.executable)
        assert [path.name for path in tmp_path.glob("one/**/old")] == ["old"] * keep
