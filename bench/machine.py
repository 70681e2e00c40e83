"""The machine of a run: its hardware and software, and its current speed."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bertgen import __version__, ops

PACKAGES = ("torch", "triton", "transformers", "ctranslate2", "liger_kernel", "gemlite", "bitsandbytes", "torchao")
BUSY = 0.5  # cores used by other processes above which times are not trusted
WRITTEN = ("bench/results", "docs/report")  # written by the benchmarks: not a change of what is measured


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes and FLOPs per second that the machine reaches now: reading or copying a large array (the faster one), and a
    large matrix product by the fastest library."""
    if device.type == "cuda":
        from .clock import on_device

        a, b = (torch.empty(2**29, device=device, dtype=torch.uint8) for _ in range(2))
        x = torch.randn(8192, 8192, device=device, dtype=dtype)
        copy, product = (min(on_device(run) for _ in range(10)) for run in (lambda: a.copy_(b), lambda: x @ x))
        return {"B": 2 * a.numel() / copy, "FLOP": 2 * 8192**3 / product}
    x, big = torch.randn(2048, 2048), torch.ones(256 * 2**20 // 4)
    other = torch.empty_like(big)
    with torch.inference_mode():
        product = min(seconds(run) for run in (lambda: x @ x, lambda: ops.linear(x, x)) for _ in range(4))
        read = min(seconds(big.sum) for _ in range(4))
        copy = min(seconds(lambda: other.copy_(big)) for _ in range(4))
    return {"B": max(big.nbytes / read, 2 * big.nbytes / copy), "FLOP": 2 * 2048**3 / product}


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """What a figure depends on besides its command: device, versions, commit, time."""
    device = device or torch.device("cpu")
    facts: dict[str, Any] = {"device": device.type, "processor": processor(), "cores": os.cpu_count()}
    if device.type == "cuda":
        facts |= gpu(device)
    facts |= {
        "threads": torch.get_num_threads(), "isa": torch.backends.cpu.get_cpu_capability(), "clock": clock(),
        "busy": busy(),
        "system": platform.system(), "python": platform.python_version(), "bertgen": __version__,
        **{name: version(name) for name in PACKAGES},
        "commit": git("rev-parse", "--short", "HEAD") or None, "dirty": bool(changes()),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    return facts


def gpu(device: torch.device) -> dict[str, Any]:
    """Name, memory, driver, current and maximum clocks."""
    properties = torch.cuda.get_device_properties(device)
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", str(device.index or 0)]
    try:
        values = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip().split(", ")
    except (OSError, subprocess.TimeoutExpired):
        values = []
    return {
        "gpu": properties.name, "gpu_memory": properties.total_memory, "cuda": torch.version.cuda,
        **dict(zip(("driver", "gpu_clock", "gpu_clock_limit", "gpu_memory_clock", "gpu_power_limit"), values)),
    }  # fmt: skip


def processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def clock() -> str | None:
    """Current MHz of a core."""
    return _cpuinfo("cpu MHz")


def busy(path: Path = Path("/proc/stat"), seconds: float = 0.5) -> float | None:
    """Cores that other processes use while this one sleeps for `seconds`; None where the system has no figure."""
    if not path.exists():
        return None

    def idle() -> tuple[int, int]:
        fields = [int(field) for field in path.read_text().splitlines()[0].split()[1:9]]
        return fields[3] + fields[4], sum(fields)

    (idle_before, all_before), _, (idle_after, all_after) = idle(), time.sleep(seconds), idle()
    spent = max(1, all_after - all_before)
    return round((os.cpu_count() or 1) * (1 - (idle_after - idle_before) / spent), 2)


def _cpuinfo(name: str) -> str | None:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def git(*words: str) -> str:
    """Output of a git command in the checkout of this file; empty outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def changes() -> str:
    """`git status` of changed files, except those that benchmarks write."""
    return git("status", "--porcelain", "--", ":(top)", *(f":(top,exclude){path}" for path in WRITTEN))


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def described(environment: dict[str, Any]) -> str:
    """A short description: device, versions, commit."""
    dirty = ", with changes" if environment["dirty"] else ""
    threads = environment["threads"]
    machine = f"{threads} thread{'s' * (threads > 1)} of {environment['processor']} ({environment['isa']})"
    machine = environment.get("gpu") or machine
    names = ("torch", "transformers", "ctranslate2")
    versions = ", ".join(f"{name} {environment[name]}" for name in names if environment.get(name))
    return f"{machine}; {versions}; commit {environment['commit'] or 'unknown'}{dirty}"
