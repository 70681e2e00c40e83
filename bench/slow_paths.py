"""How long generation takes on the slow paths of a CPU: without the C++ extension, and with weights in 16 bits.

    python -m bertgen.bench.slow_paths [--size demo] [--threads 1] [--repeats 3]

CPU time as a multiple of that with the extension in float32: the median of the repeats, and the lowest and highest. A
model of this size has random weights and generates 24 tokens for each text of 8 tokens. Each path and repeat has a
process of its own; paths take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch

from bertgen.ops import extension

from . import child, workload

TOKENS = 24
PATHS = {"fast": (True, "float32"), "no extension": (False, "float32"), "bfloat16": (True, "bfloat16"),
         "float16": (True, "float16")}  # fmt: skip
CASES = [(1, 1), (1, 4), (64, 1), (64, 4)]  # texts together, beams


def seconds(path: str, size: str, threads: int) -> list[float]:
    """CPU seconds of each case, in a new process."""
    has_extension, dtype = PATHS[path]
    if not has_extension:
        os.environ["BERTGEN_WITHOUT_EXT"] = "1"
    if extension.available() != has_extension:
        raise RuntimeError(f"the C++ extension: {extension.why_not()}")
    torch.set_num_threads(threads)
    model = workload.build(workload.SIZES[size]).to(getattr(torch, dtype))
    return [case_seconds(model, texts, beams) for texts, beams in CASES]


def case_seconds(model: torch.nn.Module, texts: int, beams: int) -> float:
    ids = torch.full((texts, 8), workload.FIRST)

    def run() -> None:
        model.generate(ids, num_beams=beams, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)

    run()
    start = time.process_time()
    for _ in range(3 if texts == 1 else 1):
        run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=workload.SIZES, default="demo", help="of the model (default: demo)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    extension.require()
    taken: dict[str, list[list[float]]] = {path: [] for path in PATHS}
    for _ in range(args.repeats):
        for path in PATHS:
            taken[path].append(child.call(seconds, path, args.size, args.threads))
    for path in list(PATHS)[1:]:
        for i, (texts, beams) in enumerate(CASES):
            ratios = sorted(slow[i] / fast[i] for slow, fast in zip(taken[path], taken["fast"], strict=True))
            spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"{path}, {texts} texts, beams {beams}: {statistics.median(ratios):.2f} {spread}")


if __name__ == "__main__":
    main()
