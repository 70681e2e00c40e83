"""How kernels are launched: (architecture, shape) -> tiles, warps and stages, as pure functions over committed tables.

Nothing is tuned at run time: the first call is as fast as the thousandth, and a batch does not change the order of a
sum. `arch` is a compute capability: 80, 86, 89, 90, 100.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

ARCHITECTURES = (80, 86, 89, 90, 100)
SHARED_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}  # that one program may have


@dataclass(frozen=True)
class Launch:
    """Constants of one launch: tile sizes by the kernel's names for them, warps and stages."""

    tiles: dict[str, int]
    num_warps: int = 4
    num_stages: int = 1

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.tiles.items())), self.num_warps, self.num_stages))


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability of a CUDA device, the nearest lower one that there are tables for; 90 for the interpreter."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return max((a for a in ARCHITECTURES if a <= 10 * major + minor), default=ARCHITECTURES[0])


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n (and 1)."""
    return 1 << max(0, n - 1).bit_length()
