"""How many CPUs this process may use: those of its affinity, and no more than its control groups have a quota for.

A quota is CPU time in each period, both in microseconds: the file cpu.max of cgroup v2, cpu.cfs_quota_us and
cpu.cfs_period_us of cgroup v1. The quotas of all groups above a group apply as well (Linux: admin-guide/cgroup-v2,
scheduler/sched-bwc).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

FILES = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))  # of version 2, of version 1


def available_cpus(root: Path = Path("/")) -> int:
    """CPUs for the calling thread, at least 1; a quota of one and a half counts as two.

    Args:
        root: the folder with proc/ and the mount points of the control groups.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return cpus if quota >= cpus else max(1, math.ceil(quota))


def cpu_quota(root: Path) -> float:
    """CPUs that the smallest quota of the process allows; infinity without a quota, and on systems without /proc."""
    try:
        return min(map(_quota, _groups(root)), default=math.inf)
    except (OSError, ValueError):
        return math.inf


def _quota(group: Path) -> float:
    for names in FILES:
        with suppress(OSError, ValueError):  # no such file; max, and of version 1 no period
            quota, period = map(int, " ".join((group / name).read_text() for name in names).split())
            if quota > 0 and period > 0:
                return quota / period
    return math.inf


def _groups(root: Path) -> Iterator[Path]:
    """The folders of the process's groups, and of all groups above them that are mounted."""
    paths = {}  # of the process, by controller; that of version 2 has no name
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        controller = {"cgroup": "cpu", "cgroup2": ""}.get(kind)
        if controller not in paths or (controller and controller not in options.split(",")):
            continue
        top, mount_point = map(_plain, fields[3:5])
        group = PurePosixPath(paths[controller])
        below = group.relative_to(top).parts if group.is_relative_to(top) else ()  # else seen from another namespace
        folder = root / mount_point.lstrip("/")
        yield folder
        for name in () if ".." in below else below:
            folder /= name
            yield folder


def _plain(path: str) -> str:
    r"""A path of mountinfo, where \040 is a space."""
    return re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), path)
