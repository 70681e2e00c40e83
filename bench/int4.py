"""`ops.int4_matmul` on a CPU in float32: speed over float32 weights and over torch's 4-bit product, GB/s and the limit.

    python bench/int4.py [--form symmetric] [--group 64] [--threads 2] [--repeats 7]

Each contender goes through enough weights that the caches do not hold them, and all take turns; printed are medians of
the ratios of each turn. torch's own product is so slow that it gets four weights, and only up to 4 rows. GB/s are bytes
of packed weights, scales and zero points; the limit is what a sum over a large tensor reads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bertgen.kernels.int4_matmul_cases import NF4

from bertgen import ops

SHAPES = [(32000, 768), (3072, 768), (768, 3072), (768, 768), (1024, 256)]  # N, K
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
BYTES = 2**26  # of weights, packed or not: twice a large cache
Weight = tuple[torch.Tensor, ...]


def seconds(run: Callable[..., Any], x: torch.Tensor, weights: list[Any]) -> float:
    start = time.perf_counter()
    for weight in weights:
        run(x, weight)
    return (time.perf_counter() - start) / len(weights)


def packed_weight(n: int, k: int, group: int, form: str) -> dict[str, torch.Tensor]:
    weight = {
        "packed": torch.randint(0, 256, (n, k // 2), dtype=torch.uint8),
        "scale": torch.randn(n, k // group),
        "bias": torch.randn(n),
    }
    if form == "zero":
        weight["zero"] = torch.randint(0, 16, (n, k // group)).float()
    if form == "codebook":
        weight["codebook"] = torch.tensor(NF4)
    return weight


def bandwidth() -> float:
    """Bytes a second that a sum over a tensor far larger than the caches reads."""
    large = torch.ones(2**26)
    return large.nbytes / statistics.median(seconds(lambda x, _: x.sum(), large, [None]) for _ in range(7))


def torch_int4(n: int, k: int, group: int) -> tuple[Callable[..., Any], Weight] | None:
    """torch's own product with 4-bit weights and one of them, or None where it has none."""
    try:
        scales = torch.randn(k // group, n, 2)
        weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (n, k)).int(), 1), scales
        product = torch.ops.aten._weight_int4pack_mm_for_cpu.default
        product(torch.randn(1, k), weight[0], group, scales)
    except (AttributeError, RuntimeError):
        return None
    return lambda x, w: product(x, w[0], group, w[1]), weight


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=("symmetric", "zero", "codebook"), default="symmetric")
    parser.add_argument("--group", type=int, choices=(32, 64, 128), default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--shapes", type=int, nargs="+", help="N and K of each", default=[n for s in SHAPES for n in s])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    limit = bandwidth()
    print(f"{args.form}, group {args.group}, {args.threads} threads; {limit / 1e9:.1f} GB/s can be read")
    print(
        "each cell: speed over F.linear in float32 / over ops.linear / over torch's 4-bit product (GB/s of the weight)"
    )
    print("| N x K | " + " | ".join(f"M={rows}" for rows in args.rows) + " |")
    print("|---" * (len(args.rows) + 1) + "|")
    for n, k in zip(args.shapes[::2], args.shapes[1::2], strict=True):
        own = [packed_weight(n, k, args.group, args.form) for _ in range(max(2, BYTES // (n * k // 2)))]
        dense = [(torch.randn(n, k), own[0]["bias"]) for _ in range(max(2, BYTES // (n * k * 4)))]
        size = sum(tensor.nbytes for tensor in own[0].values())
        runs: list[tuple[Callable[..., Any], list[Any]]] = [
            (lambda x, w: ops.int4_matmul(x, **w), own),
            (lambda x, w: F.linear(x, *w), dense),
            (lambda x, w: ops.linear(x, *w), dense),
        ]
        if theirs := torch_int4(n, k, args.group):
            runs.append((theirs[0], [tuple(t.clone() for t in theirs[1]) for _ in range(4)]))
        cells = []
        for rows in args.rows:
            x = torch.randn(rows, k)
            some = runs if rows <= 4 else runs[:3]
            turns = [[seconds(run, x, weights) for run, weights in some] for _ in range(args.repeats + 1)][1:]
            ratios = (statistics.median(turn[i] / turn[0] for turn in turns) for i in range(1, len(some)))
            speed = size / statistics.median(turn[0] for turn in turns) / 1e9
            cells.append(" / ".join(f"{ratio:.2f}" for ratio in ratios) + f" ({speed:.1f})")
        print(f"| {n} x {k} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
