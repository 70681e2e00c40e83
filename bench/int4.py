"""4-bit weights on a CPU: products in float32 and by integers, and decoding one request.

    python -m bertgen.bench.int4 [products] [decode] [--form symmetric] [--group 64] [--threads 2] [--repeats 7]

`products`: `ops.int4_matmul`, with x in float32 and rounded to 8 bits, against `F.linear`, `ops.linear` and torch's
4-bit product. Each contender cycles through enough weights to exceed the caches, and all take turns; the medians of the
ratios per turn are printed. torch's 4-bit product is so slow that it runs on four weights and at most 4 rows. GB/s are
bytes of packed weights, scales and zero points; the limit is the bandwidth of a sum over a large tensor.

`decode`: a model of 6 + 6 layers of hidden size 768 and a vocabulary of 32,000, greedy, one request at a time: in 4
bits with and without the output layer, each in integers and in float32 products, in float32, and in int8 by
CTranslate2, from the same weights, with equal output lengths, each in its own process. The time per token is that of a
long output minus that of one token, so that the encoder does not count. Times are medians; ratios are per turn. Weights
are random: tokens differ between formats, but not their number.

BERTGEN_CPU=avx2 limits bertgen to AVX2; ATEN_CPU_CAPABILITY=avx2, MKL_ENABLE_INSTRUCTIONS=AVX2, ONEDNN_MAX_CPU_ISA=AVX2
and CT2_FORCE_CPU_ISA=AVX2 limit the others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bertgen.kernels.int4_matmul_cases import NF4

from bertgen import ops
from bertgen.config import Int4Config
from bertgen.errors import BackendError
from bertgen.model import EncoderDecoderModel
from bertgen.ops import extension

from . import workload
from .contenders import Apart, Bertgen, Contender, CTranslate2

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
    """Bytes per second that a sum over a tensor far larger than the caches reads."""
    large = torch.ones(2**26)
    return large.nbytes / statistics.median(seconds(lambda x, _: x.sum(), large, [None]) for _ in range(7))


def torch_int4(n: int, k: int, group: int) -> tuple[Callable[..., Any], Weight] | None:
    """torch's 4-bit product and a weight for it, or None where this torch has none."""
    try:
        scales = torch.randn(k // group, n, 2)
        weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (n, k)).int(), 1), scales
        product = torch.ops.aten._weight_int4pack_mm_for_cpu.default
        product(torch.randn(1, k), weight[0], group, scales)
    except (AttributeError, RuntimeError):
        return None
    return lambda x, w: product(x, w[0], group, w[1]), weight


@torch.no_grad()
def products(args: argparse.Namespace) -> None:
    """Print a table of ratios, one row per weight shape."""
    limit = bandwidth()
    integers = args.form != "codebook"
    print(f"{args.form}, group {args.group}, {args.threads} threads; {limit / 1e9:.1f} GB/s can be read")
    print(f"instructions: {extension.instruction_set()}, of torch {torch.backends.cpu.get_cpu_capability()}")
    print(
        "each cell: " + "by integers over F.linear in float32 (GB/s of the weight); " * integers + "in float32 over "
        "F.linear / over ops.linear / over torch's 4-bit product (GB/s)"
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
        if integers:
            runs.append((lambda x, w: ops.int4_matmul(x, **w, int8=True), own))
        if theirs := torch_int4(n, k, args.group):
            runs.append((theirs[0], [tuple(t.clone() for t in theirs[1]) for _ in range(4)]))
        cells = []
        for rows in args.rows:
            x = torch.randn(rows, k)
            some = runs if rows <= 4 else runs[: 3 + integers]
            turns = [[seconds(run, x, weights) for run, weights in some] for _ in range(args.repeats + 1)][1:]
            own_turns = [turn.pop(3) for turn in turns] if integers else []
            cell = ""
            if integers:
                ratio = statistics.median(turn[1] / one for turn, one in zip(turns, own_turns, strict=True))
                cell = f"{ratio:.2f} ({size / statistics.median(own_turns) / 1e9:.1f}); "
            ratios = (statistics.median(turn[i] / turn[0] for turn in turns) for i in range(1, len(turns[0])))
            speed = size / statistics.median(turn[0] for turn in turns) / 1e9
            cells.append(cell + " / ".join(f"{ratio:.2f}" for ratio in ratios) + f" ({speed:.1f})")
        print(f"| {n} x {k} | " + " | ".join(cells) + " |", flush=True)


def decode(args: argparse.Namespace) -> None:
    """Print milliseconds per token, one row per contender."""
    size = workload.SIZES[args.size]
    present, (sources, _) = decoders(size, args.group), workload.texts(None, 1, size.vocabulary)

    def spent(one: Contender, length: int) -> float:
        start = time.perf_counter()
        (tokens,) = one.run(sources, [length], 1, 1)
        if len(tokens) < length:
            raise SystemExit(f"{len(tokens)} tokens of {length}")
        return time.perf_counter() - start

    turns: list[dict[str, tuple[float, float]]] = []
    for _ in range(args.repeats + 1):  # the first wakes threads and does not count
        turns.append({name: (spent(one, 1), spent(one, args.tokens)) for name, one in present.items()})
    token = {name: [(turn[name][1] - turn[name][0]) / (args.tokens - 1) for turn in turns[1:]] for name in present}
    whole = {name: [turn[name][1] for turn in turns[1:]] for name in present}
    first = next(iter(present))
    print(f"\na source of {len(sources[0])} tokens, outputs of {args.tokens}, {args.threads} threads")
    print(f"| | ms a token | of {first} | ms a request | of {first} |\n|---|---|---|---|---|")
    for one in present.values():
        one.close()
    for name in present:
        times = [statistics.median(side[name]) * 1e3 for side in (token, whole)]
        cells = [f"{ms:.1f} | {ratio(side[name], side[first])}" for ms, side in zip(times, (token, whole), strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


def ratio(one: list[float], other: list[float]) -> str:
    """The median of the ratios per turn, and their range."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


class Int4(Bertgen):
    """bertgen with 4-bit weights, quantized during loading so that the float weights are freed."""

    def __init__(self, model: EncoderDecoderModel, group: int, head: bool, compute_dtype: str | None = None):
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            config = Int4Config(group_size=group, head=head, compute_dtype=compute_dtype)
            super().__init__(EncoderDecoderModel.from_pretrained(folder, quantization_config=config).to(model.device))


def decoders(size: workload.Size, group: int) -> dict[str, Contender]:
    """Name -> engine in its own process; prints a line where CTranslate2 is missing."""
    present: dict[str, Contender] = {
        "int4, integers, output layer too": Apart(Int4, size, group, True, "int8"),
        "int4, integers": Apart(Int4, size, group, False, "int8"),
        "int4, output layer too": Apart(Int4, size, group, True),
        "int4": Apart(Int4, size, group, False),
        "float32": Apart(Bertgen, size),
    }
    try:
        present |= {f"CTranslate2 {kind}": Apart(CTranslate2, size, kind) for kind in ("int8", "float32")}
    except BackendError as error:
        print(f"CTranslate2 is missing: {error}")
    return present


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="products, decode (default: both)")
    parser.add_argument("--form", choices=("symmetric", "zero", "codebook"), default="symmetric")
    parser.add_argument("--group", type=int, choices=(32, 64, 128), default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--shapes", type=int, nargs="+", help="N and K of each", default=[n for s in SHAPES for n in s])
    parser.add_argument("--size", choices=workload.SIZES, default="base", help="of the model that decodes")
    parser.add_argument("--tokens", type=int, default=65, help="of an output")
    args = parser.parse_args()
    if unknown := set(args.parts) - {"products", "decode"}:
        parser.error(f"{', '.join(sorted(unknown))}: the parts are products and decode")
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the processes that decode
    for part in (products, decode):
        if not args.parts or part.__name__ in args.parts:
            part(args)


if __name__ == "__main__":
    main()
