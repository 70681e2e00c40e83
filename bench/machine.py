"""The machine of a run: what it is, and how fast it is right now."""

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


def speeds() -> tuple[float, float]:
    """FLOP/s of a large float32 product, by the faster of torch's two libraries (MKL, oneDNN); bytes/s of reading."""
    a, big = torch.randn(2048, 2048), torch.ones(256 * 2**20 // 4)
    with torch.inference_mode():
        product = min(seconds(run) for run in (lambda: a @ a, lambda: ops.linear(a, a)) for _ in range(4))
        read = min(seconds(big.sum) for _ in range(4))
    return 2 * 2048**3 / product, big.numel() * 4 / read


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def environment() -> dict[str, Any]:
    root = Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True).stdout.strip()

    processor = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x][:1]
    return dict(
        device="cpu", processor=processor[0].split(":")[1].strip() if processor else platform.processor(),
        cores=os.cpu_count(), threads=torch.get_num_threads(), isa=torch.backends.cpu.get_cpu_capability(),
        load=os.getloadavg()[0], python=platform.python_version(), torch=torch.__version__,
        transformers=version("transformers"), ctranslate2=version("ctranslate2"), bertgen=__version__,
        commit=git("rev-parse", "--short", "HEAD"), dirty=bool(git("status", "--porcelain")),
    )  # fmt: skip


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
