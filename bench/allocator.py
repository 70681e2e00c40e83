"""The block allocator in C++ and in Python: microseconds of a step of many rows.

python -m bertgen.bench.allocator [--rows 64 256 1024]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from bertgen.cache.block_allocator import BlockAllocator
from bertgen.ops import extension

POSITIONS = 512
PAGE = 16  # positions per page


def step_times(rows: int, backend: str) -> tuple[float, float]:
    """Median microseconds of a step within pages, and of one where every row begins a page."""
    allocator = BlockAllocator(rows, POSITIONS, rows * POSITIONS, backend=backend)
    for row in range(0, rows, 4):
        allocator.admit(4, POSITIONS, row, 0)
    every, slots = torch.arange(rows, dtype=torch.int32), torch.empty(rows, dtype=torch.int32)
    taken = []
    for t in range(POSITIONS):
        at = torch.full((rows,), t, dtype=torch.int32)
        start = time.perf_counter()
        allocator.step(every, at, slots)
        taken.append(1e6 * (time.perf_counter() - start))
    within = [t for i, t in enumerate(taken) if i % PAGE]
    return statistics.median(within), statistics.median(taken[PAGE::PAGE])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256, 1024])
    args = parser.parse_args()
    extension.require()
    for rows in args.rows:
        for backend in ("cpp", "python"):
            usual, most = step_times(rows, backend)
            print(f"{backend}, {rows} rows: {usual:.1f} us a step, {most:.1f} us where every row takes a page")


if __name__ == "__main__":
    main()
