"""Peak memory of this process.

On a CPU Linux keeps the largest resident size of a process (VmHWM). `reset` frees unused memory and resets that mark;
`peak` reads it after a run. On a GPU torch keeps such a mark of its allocations.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

STATUS, MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset(device: torch.device) -> int | None:
    """Reset the mark; returns the allocated bytes, None where the system has no mark."""
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
    """The largest number of bytes allocated since `reset`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _line("VmHWM") if MARK.exists() else None


def _line(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"{STATUS} has no line {name}")
