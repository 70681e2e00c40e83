"""Fewer processors for a process: what it sees, and that this process is not confined afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bertgen.bench.confinement import Quota, environment, one_core

from bertgen.bench import confinement


def printed(expression: str) -> str:
    """What another process prints."""
    command = [sys.executable, "-S", "-c", f"import os; print({expression})"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_environment_variables(monkeypatch):
    monkeypatch.setenv("BERTGEN_A", "1")
    monkeypatch.delenv("BERTGEN_B", raising=False)
    with pytest.raises(ZeroDivisionError), environment(BERTGEN_A="2", BERTGEN_B="3"):
        assert printed("os.environ['BERTGEN_A'], os.environ['BERTGEN_B']") == "2 3"
        raise ZeroDivisionError
    assert os.environ["BERTGEN_A"] == "1" and "BERTGEN_B" not in os.environ


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_one_core():
    before = os.sched_getaffinity(0)
    with one_core():
        assert printed("len(os.sched_getaffinity(0))") == "1"
    assert os.sched_getaffinity(0) == before


def test_a_quota():
    own = Path("/proc/self/cgroup")
    try:
        quota = Quota(1.0)
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        before = own.read_text()
        with quota.inside():
            assert quota.folder.name in printed("open('/proc/self/cgroup').read()")
            child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
        assert own.read_text() == before
        assert str(child.pid) in (quota.folder / "cgroup.procs").read_text().split()
        child.communicate(b"\n")
    finally:
        quota.remove()
    assert not quota.folder.exists()


@pytest.mark.parametrize("tree", ["nothing", "a folder without files"])
def test_why_there_is_no_quota(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(confinement, "CGROUPS", tmp_path / "cgroup")
    if tree != "nothing":
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            (tmp_path / "cgroup" / controllers / path.strip("/")).mkdir(parents=True, exist_ok=True)
    with pytest.raises(OSError, match=r"cgroup.*: No such file|no cgroup"):
        Quota(1.0)
    assert not list(tmp_path.rglob("bertgen-bench-*"))
