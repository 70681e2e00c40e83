"""`ops.linear` beside other products on a CPU: GFLOP/s, and how many times faster, for the products of a decode step.

The others are `F.linear`, oneDNN with the weight as it lies, and oneDNN with a packed copy of it.

python bench/linear.py [--repeats 7]
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from bertgen.kernels.linear import linear_onednn

from bertgen import ops

SHAPES = [(32000, 768), (3072, 768), (768, 3072), (2304, 768), (768, 768), (8000, 256), (1024, 256)]  # N, K
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
BYTES = 2**26  # more weights than the caches hold, as in a model


def seconds(run: Callable[[torch.Tensor], torch.Tensor], weights: list[torch.Tensor]) -> float:
    start = time.perf_counter()
    for weight in weights:
        run(weight)
    return (time.perf_counter() - start) / len(weights)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    args = parser.parse_args()
    print("each cell: GFLOP/s of ops.linear, and its speed over F.linear / oneDNN / oneDNN with packed weights")
    print("| N x K | " + " | ".join(f"M={rows}" for rows in args.rows) + " |")
    print("|---" * (len(args.rows) + 1) + "|")
    for n, k in SHAPES:
        weights = [torch.randn(n, k) for _ in range(max(2, BYTES // (n * k * 4)))]
        packed = [torch.ops.mkldnn._reorder_linear_weight(weight, 16) for weight in weights]
        bias, cells = torch.randn(n), []
        for rows in args.rows:
            x = torch.randn(rows, k)
            runs = [(ops.linear, weights), (F.linear, weights), (linear_onednn, weights), (linear_onednn, packed)]
            times: list[list[float]] = [[] for _ in runs]
            for _ in range(args.repeats + 1):
                for (run, given), spent in zip(runs, times, strict=True):
                    spent.append(seconds(functools.partial(run, x, bias=bias), given))
            own, *others = (statistics.median(values[1:]) for values in times)
            ratios = " / ".join(f"{other / own:.2f}" for other in others)
            cells.append(f"{2 * n * k * rows / own / 1e9:.0f} ({ratios})")
        print(f"| {n} x {k} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
