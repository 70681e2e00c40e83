"""The budget of a decode step on a GPU, predicted: launches x fixed cost + bytes / bandwidth or FLOP / speed.

    python -m bertgen.bench.budget [--size large] [--source 512] [--position 128] [--bytes 2] [--kernels]

The kernels of a step as a CUDA graph runs them, one after the other. A kernel takes FIXED, and then the longer of its
bytes at BANDWIDTH and its products at FLOPS; a product of few rows has too few tiles for all processors, and is slower
in proportion. Nothing overlaps. The limit is that of the bytes alone: each weight once, the keys and values that the
step reads. The constants are those of an H200 in other people's measurements. None of the results is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

from .workload import SIZES, Size

BANDWIDTH = 4.3e12  # bytes a second, of a copy
FLOPS = 790e12  # of a large product in 16 bits
PROCESSORS = 132
TILE = 128, 64  # of a product, rows by columns; one for each processor at a time
FIXED = 2.5e-6  # seconds from the start of a kernel to the start of the next in a graph, without its work
SEARCH = {"greedy": 27, "beams": 104}  # launches of a step outside of layers, embeddings and head, counted


class Case(NamedTuple):
    """What is decoded together: rows are sources times beams, of `position` tokens each; `source` tokens a source."""

    sources: int
    beams: int
    source: int
    position: int

    @property
    def rows(self) -> int:
        return self.sources * self.beams

    def __str__(self) -> str:
        return f"{self.sources} x {self.beams} beams" if self.beams > 1 else f"{self.rows}, greedy"


class Kernel(NamedTuple):
    """Launches of one kind in a step.

    Attributes:
        kind: "product", "attention", "norm", "activation", "embedding" or "search".
        count: launches. moved: bytes of each. flops: of each. tiles: of its result, where it is a product.
    """

    name: str
    kind: str
    count: int
    moved: float
    flops: float = 0.0
    tiles: int = PROCESSORS

    @property
    def work(self) -> float:
        """Seconds of one launch, without FIXED."""
        return max(self.moved / BANDWIDTH, self.flops / (FLOPS * min(1.0, self.tiles / PROCESSORS)))


def kernels(size: Size, case: Case, item: int) -> Iterator[Kernel]:
    """The launches of one step.

    Args:
        item: bytes of an element of weights, keys and values.
    """
    rows, hidden, layers = case.rows, size.hidden, size.layers

    def product(name: str, count: int, columns: int, inputs: int) -> Kernel:
        weights, activations = columns * inputs, rows * (columns + inputs)
        tiles = -(-rows // TILE[0]) * -(-columns // TILE[1])
        flops = 2.0 * rows * columns * inputs
        return Kernel(name, "product", count, item * (weights + activations), flops, tiles)

    def rowwise(name: str, kind: str, count: int, columns: int, reads: int) -> Kernel:
        return Kernel(name, kind, count, item * rows * columns * (reads + 1))

    yield product("query, key, value", 3 * layers, hidden, hidden)
    yield Kernel("self-attention", "attention", layers, 2.0 * item * hidden * rows * (case.position + 2))
    yield product("outputs and cross query", 3 * layers, hidden, hidden)
    yield Kernel(
        "cross-attention", "attention", layers,
        2.0 * item * hidden * (case.sources * case.source + rows), 4.0 * rows * hidden * case.source,
    )  # fmt: skip
    yield product("feed-forward in", layers, size.intermediate, hidden)
    yield rowwise("bias and GELU", "activation", layers, size.intermediate, 1)
    yield product("feed-forward out", layers, hidden, size.intermediate)
    yield rowwise("bias, residual, LayerNorm", "norm", 3 * layers, hidden, 2)
    yield rowwise("embeddings: words, positions, sum", "embedding", 3, hidden, 1)
    yield rowwise("LayerNorm of the embeddings", "norm", 1, hidden, 1)
    yield product("head", 1, size.vocabulary, hidden)
    search = SEARCH["beams" if case.beams > 1 else "greedy"]
    yield Kernel("search, tables, lengths", "search", search, item * rows * size.vocabulary / search)


class Budget(NamedTuple):
    """Seconds of a step.

    Attributes:
        launches: number of kernels. fixed: their fixed costs.
        products, attention, rest: work of kernels of these kinds.
        limit: weights, keys and values of the step at BANDWIDTH.
    """

    launches: int
    fixed: float
    products: float
    attention: float
    rest: float
    limit: float

    @property
    def step(self) -> float:
        return self.fixed + self.products + self.attention + self.rest


def budget(size: Size, case: Case, item: int = 2) -> Budget:
    """The prediction for a step."""
    work = {"product": 0.0, "attention": 0.0}
    launches, rest = 0, 0.0
    for kernel in kernels(size, case, item):
        launches += kernel.count
        if kernel.kind in work:
            work[kernel.kind] += kernel.count * kernel.work
        else:
            rest += kernel.count * kernel.work
    return Budget(launches, FIXED * launches, work["product"], work["attention"], rest, limit(size, case, item))


def limit(size: Size, case: Case, item: int = 2) -> float:
    """Seconds for the bytes that a step cannot do without."""
    tokens = case.rows * case.position + case.sources * case.source
    return item * (size.of_output_token + 2 * size.layers * size.hidden * tokens) / BANDWIDTH


def cases(source: int, position: int) -> list[Case]:
    return [Case(n, 1, source, position) for n in (1, 8, 64, 256)] + [Case(64, 4, source, position)]


def table(size: Size, source: int, position: int, item: int) -> list[str]:
    """The table in docs/decode.md."""
    lines = [
        "| rows | launches | fixed, us | products, us | attention, us | rest, us | step, us | limit of bytes, us | "
        "tokens a second | measured |",
        "|" + "---|" * 10,
    ]
    for case in cases(source, position):
        one = budget(size, case, item)
        times = (one.fixed, one.products, one.attention, one.rest, one.step, one.limit)
        cells = [str(case), f"{one.launches}", *(f"{1e6 * t:,.0f}" for t in times)]
        lines.append("| " + " | ".join([*cells, f"{case.sources / one.step:,.0f}", "not measured"]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--source", type=int, default=512, help="tokens of a source (default: 512)")
    parser.add_argument("--position", type=int, default=128, help="tokens of a history (default: 128)")
    parser.add_argument("--bytes", type=int, default=2, choices=(2, 4), help="of an element (default: 2)")
    parser.add_argument("--kernels", action="store_true", help="print each kernel of one greedy row, too")
    args = parser.parse_args()
    size = SIZES[args.size]
    print(*table(size, args.source, args.position, args.bytes), sep="\n")
    if args.kernels:
        for kernel in kernels(size, Case(1, 1, args.source, args.position), args.bytes):
            work = 1e6 * kernel.count * kernel.work
            print(f"{kernel.name}: {kernel.count} launches, {work:.1f} us of work, {1e6 * FIXED * kernel.count:.1f} us")


if __name__ == "__main__":
    main()
