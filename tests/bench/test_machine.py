"""The environment of a run: what it records, and how busy the machine is."""

from __future__ import annotations

import subprocess

import torch

from bertgen.bench import machine


def test_the_environment_says_what_a_figure_depends_on():
    found = machine.environment()
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert {"processor", "isa", "clock", "commit", "dirty", "busy", "triton", "ctranslate2", "time"} <= found.keys()
    assert "commit" in machine.described(found)


def test_how_busy_others_keep_the_machine(tmp_path, monkeypatch):
    """user, nice, system, idle, iowait, interrupts, steal: 100 ticks pass, 20 + 5 of them idle."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1 2 3")
    monkeypatch.setattr(machine.time, "sleep", lambda _: stat.write_text("cpu  60 0 10 90 15 5 0 20 0 0\n"))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    assert machine.busy(stat) == 4 * 0.75
    assert machine.busy(tmp_path / "none") is None


def test_what_benchmarks_write_is_no_change(tmp_path, monkeypatch):
    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for name in ("bench/machine.py", "bench/results/a.json", "docs/report/index.html", "docs/page.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    monkeypatch.setattr(machine, "git", git)
    (tmp_path / "bench/results/a.json").unlink()
    (tmp_path / "docs/report/index.html").write_text("2")
    assert machine.changes() == ""
    (tmp_path / "docs/page.md").write_text("2")
    assert machine.changes() == "M docs/page.md"
