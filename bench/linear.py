"""`ops.linear` beside `F.linear` on a CPU: GFLOP/s and their ratio, for the products of a decode step.

Behind the semicolon the same with packed weights, where it packs: without what packing takes.

python bench/linear.py [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from bertgen.kernels.linear import PACKED_ROWS

from bertgen import ops
from bertgen.prepacked import Prepacked

SHAPES = [(32000, 768), (3072, 768), (768, 3072), (2304, 768), (768, 768), (8000, 256), (1024, 256)]  # N, K
ROWS = [1, 4, 16, 64, 256]


def seconds(run, weights: list[torch.Tensor]) -> float:
    start = time.perf_counter()
    for weight in weights:
        run(weight)
    return (time.perf_counter() - start) / len(weights)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print("| N x K | " + " | ".join(f"M={rows}" for rows in ROWS) + " |")
    print("|---" * (len(ROWS) + 1) + "|")
    for n, k in SHAPES:
        # More weights than the caches hold, as in a model.
        weights = [torch.randn(n, k) for _ in range(max(1, 2**26 // (n * k * 4)))]
        bias, cells, packed = torch.randn(n), [], Prepacked(enabled=True)
        for rows in ROWS:
            x = torch.randn(rows, k)
            caches = [Prepacked(enabled=False), *[packed] * (rows in PACKED_ROWS)]
            times: list[list[float]] = [[] for _ in range(1 + len(caches))]
            for _ in range(args.repeats + 1):
                times[0].append(seconds(lambda w, x=x, b=bias: F.linear(x, w, b), weights))
                for cache, spent in zip(caches, times[1:]):
                    with cache:
                        spent.append(seconds(lambda w, x=x, b=bias: ops.linear(x, w, b), weights))
            theirs, *ours = (statistics.median(values[1:]) for values in times)
            cells.append("; ".join(f"{2 * n * k * rows / own / 1e9:.0f} ({theirs / own:.2f}x)" for own in ours))
        print(f"| {n} x {k} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
