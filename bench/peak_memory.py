"""Peak memory of one batch, each engine in a process of its own.

The kernel keeps the largest resident size of a process (VmHWM). Once the model is loaded and what loading took is given
back, that mark is reset; what it has risen to behind the batch is the peak.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import child
from contenders import Bertgen, Transformers
from workload import Case, Size, build

from bertgen.errors import BackendError

CONTENDERS = {"bertgen": Bertgen, "transformers": Transformers}


def compare(case: Case, size: Size) -> dict[str, dict[str, Any]]:
    """Bytes when the model is loaded and at the peak; or why the engine is missing."""
    return {name: child.call(peak, name, case, size) for name in CONTENDERS}


def peak(name: str, case: Case, size: Size) -> dict[str, Any]:
    try:
        contender = CONTENDERS[name](build(size))
    except BackendError as error:
        return {"missing": str(error)}
    loaded = reset()
    contender.run(case.sources, case.lengths, case.beams, len(case.sources))
    return {"loaded": loaded, "peak": memory("VmHWM")}


def reset() -> int:
    """Give back what is not needed, begin the mark anew; bytes that are resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(name: str) -> int:
    """Bytes, of a line in the process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no line {name}")
