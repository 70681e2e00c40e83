"""Memory of this process at its peak.

On a CPU the kernel keeps the largest resident size of a process (VmHWM). Once what is not needed is given back, that
mark is reset; what it has risen to behind a run is the peak. On a GPU torch keeps such a mark of its allocations.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

STATUS, MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset(device: torch.device) -> int | None:
    """Begin the mark anew; bytes that are held. None where this system keeps no mark."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if not MARK.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    MARK.write_text("5")
    return _line("VmRSS")


def peak(device: torch.device) -> int | None:
    """Most bytes that were held since `reset`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _line("VmHWM") if MARK.exists() else None


def _line(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"{STATUS} has no line {name}")
