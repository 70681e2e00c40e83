"""The suite: time limits, stopped and failed steps."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest

from bertgen.bench import result, suite
from bertgen.cli import main
from tests.support.benchmarks import ROOT, make_result, make_row, run_bench


@pytest.mark.parametrize("kept", [True, False])
def test_a_step_that_is_stopped_or_fails_is_on_the_page(monkeypatch, tmp_path, kept):
    """Also where it was stopped before it wrote a file."""

    def within(seconds, command):
        name = Path(command[-1])
        if "train" in name.name and kept:
            result.save(make_result(make_row("train", params={"model": "base", "batch": 8})), name)
        if "scale" in name.name:
            return 1
        if "train" in name.name:
            return None
        params = {"model": "base", "requests": "mixed", "beams": 4}
        result.save(make_result(make_row(params=params, amount=10.0, unit="token")), name)
        return 0

    monkeypatch.setattr(suite, "within", within)
    assert run_bench("suite", "--level", "quick", "--output", tmp_path, "--only", "generate", "scale", "train") == 1
    page = (tmp_path / "index.html").read_text()
    missing = "cases may be missing" if kept else "all its cases are missing"
    assert f": stopped after 60 s, {missing}" in page and ": failed, all its cases are missing" in page
    assert result.load(tmp_path / "train-cpu.json").warnings == [f"stopped after 60 s, {missing}"]
    assert run_bench("report", *tmp_path.glob("*.json"), "--output", tmp_path / "again") == 0
    assert "stopped after 60 s" in (tmp_path / "again/index.html").read_text(), "the files know it"


def test_a_step_of_the_suite_that_takes_too_long_is_stopped(tmp_path):
    """Including its child processes, so that nothing runs in the background of the next step."""
    start = time.monotonic()
    inner = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    assert suite.within(3.0, [sys.executable, "-c", outer]) is None
    assert time.monotonic() - start < suite.PATIENCE
    for _ in range(100):
        try:
            os.kill(int((tmp_path / "pid").read_text()), 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("what the step had started is still there")
    assert suite.within(60, [sys.executable, "-c", "raise SystemExit(3)"]) == 3


def test_the_time_of_a_quick_suite_is_bounded():
    assert sum(step.seconds for step in suite.LEVELS["quick", "cpu"]) < 600
    assert sum(step.seconds for step in suite.LEVELS["quick", "cuda"]) + suite.PATIENCE < 540
    assert run_bench("suite", "--level", "full", "--device", "cuda", "--output", "nowhere") == 2


@pytest.mark.parametrize(("level", "device"), suite.LEVELS)
def test_the_words_of_the_suite_are_taken(level, device, monkeypatch, tmp_path):
    """The command of every step of every level parses its options."""
    import shlex

    asked = []
    for step in suite.LEVELS[level, device]:
        monkeypatch.setattr(
            getattr(sys.modules["bertgen.bench"], step.part), "run", lambda args: asked.append(args) or 0
        )
        assert main(["bench", *shlex.split(step.words), "--device", device, "--json", str(tmp_path / "a.json")]) == 0
    assert len(asked) == len(suite.LEVELS[level, device])
    assert all(args.json and args.device == device for args in asked)


def test_one_command_takes_all_committed_results_anew():
    """`make figures` removes them first."""
    (recipe,) = re.findall(r"^figures:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = {f"{step.name}-cpu.json" for step in suite.LEVELS["full", "cpu"]}
    made |= set(re.findall(r"[\w-]+-cpu\.json", recipe))
    assert {path.name for path in (ROOT / "bench/results").glob("*-cpu.json")} <= made


@pytest.mark.long
def test_the_smoke_suite(tmp_path):
    assert run_bench("suite", "--level", "smoke", "--output", tmp_path) == 0
    assert {path.name for path in tmp_path.glob("*.json")} == {
        f"{part}-cpu.json" for part in ("ops", "generate", "scale", "train")
    }
    assert (tmp_path / "index.html").exists() and (tmp_path / "roofline.png").exists()
