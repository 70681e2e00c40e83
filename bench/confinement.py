"""Fewer processors for a process: by the number of threads, by affinity, by a quota of its cgroup.

Each is a context: processes that are started inside are confined, also after the end of the context. The process that
starts them is not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PERIOD = 100_000  # microseconds


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """The affinity of one core; OSError where the system has none."""
    if not hasattr(os, "sched_setaffinity"):
        raise OSError("this system has no affinity of processes")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Quota:
    """A cgroup, version 1 or 2, whose processes together get the time of `cpus` processors.

    Raises:
        OSError: this process can make no such cgroup.
    """

    def __init__(self, cpus: float):
        self.own, self.folder = _made(cpus)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The quota: this process belongs to the cgroup for the time of the context."""
        _enter(self.folder)
        try:
            yield
        finally:
            _enter(self.own)

    def remove(self) -> None:
        """Remove the cgroup; a process that is still in it goes back to this one's."""
        for process in (self.folder / "cgroup.procs").read_text().split():
            _write(self.own / "cgroup.procs", process)
        self.folder.rmdir()


def _made(cpus: float) -> tuple[Path, Path]:
    """The cgroup of this process, and a new one with a quota, as near to it as the system allows."""
    known = Path("/proc/self/cgroup")
    lines = known.read_text().splitlines() if known.exists() else []
    quota = int(cpus * PERIOD)
    reason = "no cgroup of this process has processors"
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers  # version 2 has no controllers here
        settings = {"cpu.cfs_period_us": PERIOD, "cpu.cfs_quota_us": quota}
        settings = settings if controllers else {"cpu.max": f"{quota} {PERIOD}"}
        own = root / path.strip("/")
        for parent in (own, *own.parents):
            folder = parent / f"bertgen-bench-{os.getpid()}"
            try:
                folder.mkdir()
            except OSError as error:
                reason = f"{folder.parent}: {error.strerror}"
            else:
                try:
                    for name, value in settings.items():
                        _write(folder / name, str(value))
                    return own, folder
                except OSError as error:  # version 2 may not pass processors on to this level
                    reason = f"{folder}: {error.strerror}"
                    folder.rmdir()
            if parent == root:
                break
    raise OSError(reason)


def _enter(folder: Path) -> None:
    """Move this process into a cgroup."""
    _write(folder / "cgroup.procs", str(os.getpid()))


def _write(path: Path, text: str) -> None:
    """Write into a file of a cgroup, which is never created."""
    with open(path, "r+") as file:
        file.write(text)
