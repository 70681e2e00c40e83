"""Throughput and memory of a CPU against the rows decoded together: what the default of `max_rows` is chosen by.

    python -m bertgen.bench.max_rows [--size demo] [--dtype float32] [--rows 8 16 32 64 128 256] [--repeats 3]

The time of a decode step is that of outputs of some tokens minus that of shorter ones, so the encoder does not count.
It is CPU time on one thread, which other programs hardly change. Numbers of rows take turns; the lowest and the highest
of the repeats stand behind the median. Memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from . import memory, scale, workload
from .contenders import Bertgen, Contender

CPU = torch.device("cpu")
SOURCE, SHORT = 8, 1  # tokens of a source, and of the shorter outputs


def seconds(engine: Contender, rows: int, tokens: int, vocabulary: int) -> float:
    """CPU seconds of greedy outputs of all rows."""
    case = scale.made({"batch": rows, "source": SOURCE, "target": tokens, "beams": 1}, vocabulary)
    start = time.process_time()
    engine.run(case.sources, case.lengths, 1, rows)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=workload.SIZES, default="demo", help="of the model (default: demo)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256], metavar="N")
    parser.add_argument("--steps", type=int, default=16, metavar="N", help="timed (default: 16)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default: 3")
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = workload.SIZES[args.size]
    model = workload.build(size).to(getattr(torch, args.dtype))
    speeds: dict[int, list[float]] = {rows: [] for rows in args.rows}
    peaks: dict[int, int | None] = {}
    for _ in range(args.repeats):
        for rows in args.rows:
            engine = Bertgen(model)
            seconds(engine, rows, SHORT + 1, size.vocabulary)  # what is created at the first call
            memory.reset(CPU)
            long, short = (seconds(engine, rows, SHORT + more, size.vocabulary) for more in (args.steps, 0))
            peaks[rows] = memory.peak(CPU)
            speeds[rows].append(args.steps * rows / (long - short))
    print("| rows | rows a second of one thread | peak, MB |\n|---|---|---|")
    for rows, speed in speeds.items():
        peak = "not reported" if peaks[rows] is None else f"{peaks[rows] / 1e6:.0f}"
        print(f"| {rows} | {statistics.median(speed):.0f} ({min(speed):.0f} to {max(speed):.0f}) | {peak} |")


if __name__ == "__main__":
    main()
