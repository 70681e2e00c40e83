"""The number of CPUs: affinity, and quotas of control groups in folders that stand for those of the system."""

from __future__ import annotations

import math
import os

import pytest

from bertgen.ops.available_cpus import available_cpus, cpu_quota

V2 = "34 31 0:29 {root} {at} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 {root} {at} rw,relatime - cgroup cgroup rw,{controllers}"
OTHERS = [
    "21 1 8:1 / / rw,relatime - ext4 /dev/vda1 rw",
    "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
]


def system(root, groups, mounts, files):
    """Write what a system tells of a process: its groups, what is mounted, and files of groups."""
    for name, lines in {"proc/self/cgroup": groups, "proc/self/mountinfo": [*OTHERS, *mounts], **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in ([lines] if isinstance(lines, str) else lines)))
    return root


def v2(root, group, files, top="/", at="/sys/fs/cgroup"):
    mount = V2.format(root=top, at=at.replace(" ", r"\040"))
    return system(root, [f"0::{group}"], [mount], {f"{at[1:]}{name}": text for name, text in files.items()})


def v1(root, group, files, top="/", controllers="cpu,cpuacct"):
    at = f"/sys/fs/cgroup/{controllers}"
    mounts = [V1.format(root=top, at=at, controllers=controllers)]
    groups = ["9:memory:/other", f"4:{controllers}:{group}", "1:name=systemd:/", "0::/"]
    return system(root, groups, mounts, {f"{at[1:]}{name}": text for name, text in files.items()})


def quota_files(folder, quota, period=100000):
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": str(period)}


@pytest.mark.parametrize(
    ("group", "files", "quota"),
    [
        ("/", {"/cpu.max": "150000 100000"}, 1.5),
        ("/", {"/cpu.max": "max 100000"}, math.inf),
        ("/", {}, math.inf),
        ("/a/b", {"/a/b/cpu.max": "25000 50000"}, 0.5),
        ("/a/b", {"/a/cpu.max": "300000 100000", "/a/b/cpu.max": "max 100000"}, 3),
        ("/a/b", {"/a/cpu.max": "100000 100000", "/a/b/cpu.max": "200000 100000"}, 1),
        ("/a", {"/a/b/cpu.max": "100000 100000"}, math.inf),
        ("/a", {"/a/cpu.max": "no number"}, math.inf),
        ("/../other", {"/cpu.max": "200000 100000", "/../other/cpu.max": "100000 100000"}, 2),
    ],
)
def test_a_quota_of_version_2(tmp_path, group, files, quota):
    assert cpu_quota(v2(tmp_path, group, files)) == quota


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(
    ("group", "top", "files", "quota"),
    [
        ("/", "/", quota_files("", 50000), 0.5),
        ("/", "/", quota_files("", -1), math.inf),
        ("/", "/", {}, math.inf),
        ("/a/b", "/", quota_files("/a", 100000) | quota_files("/a/b", 200000), 1),
        ("/a/b", "/", quota_files("/a", -1) | quota_files("/a/b", 20000, 10000), 2),
        ("/docker/5f", "/docker/5f", quota_files("", 400000), 4),  # the mount shows the group itself
        ("/docker/5f/in", "/docker/5f", quota_files("", 400000) | quota_files("/in", 100000), 1),
        ("/", "/docker/5f", quota_files("", 400000), 4),
        ("/a", "/", {"/a/cpu.cfs_quota_us": "100000"}, math.inf),
    ],
)
def test_a_quota_of_version_1(tmp_path, group, top, files, quota, controllers):
    assert cpu_quota(v1(tmp_path, group, files, top, controllers)) == quota


def test_a_mount_point_with_a_space(tmp_path):
    assert cpu_quota(v2(tmp_path, "/a b", {"/a b/cpu.max": "100000 100000"}, at="/my groups")) == 1


def test_both_versions(tmp_path):
    """Where version 1 has the CPUs, version 2 has no such file."""
    v1(tmp_path, "/a", quota_files("/a", 100000))
    with (tmp_path / "proc/self/mountinfo").open("a") as mounts:
        print(V2.format(root="/", at="/sys/fs/cgroup/unified"), file=mounts)
    assert cpu_quota(tmp_path) == 1


def test_a_system_that_tells_nothing(tmp_path):
    assert cpu_quota(tmp_path) == math.inf
    assert cpu_quota(system(tmp_path, ["0::/"], ["cut"], {})) == math.inf


def test_available_cpus_are_whole_and_at_least_one(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    for quota, cpus in {"10000": 1, "100000": 1, "150000": 2, "900000": 4, "max": 4}.items():
        assert available_cpus(v2(tmp_path, "/", {"/cpu.max": f"{quota} 100000"})) == cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_available_cpus_are_those_of_the_affinity():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
