"""The C++ extension on this machine's CPU: attention of one decode step, and the allocator.

    python bench/extension.py [--threads 2] [--rounds 15] [--rows 1 4 16 64]

Attention, 12 heads of 64, float32: the operator; `F.scaled_dot_product_attention` on keys and values that lie gathered
already, [R, H, T, D] dense; and the same after transformers' way to keep them (the new position concatenated to all
others). Each call goes to the next of several caches, so that a small one is not read from the core's own memory; the
contenders take turns. Printed are medians, and bytes of keys and values per second beside those of a large copy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from bertgen import extension
from bertgen.pages import Pages

HEADS, WIDTH = 12, 64
ROTATION = 64 << 20  # bytes of keys and values that the calls go through


def by_turns(contenders: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each; `call(i)` is the i-th call.

    Before a call that counts comes one that does not: `torch.cat` of large tensors, say, leaves the processor's tables
    of pages cold for whoever is next.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 2):
        for name, call in contenders.items():
            call(2 * i)
            start = time.perf_counter()
            call(2 * i + 1)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[2:]) for name, taken in times.items()}


def copy_bandwidth() -> float:
    """Bytes per second read and written by a copy far larger than the caches."""
    source = torch.ones(64 << 20)
    target = torch.empty_like(source)
    return 2 * source.nbytes / by_turns({"copy": lambda i: target.copy_(source)}, 7)["copy"]


def self_attention(rows: int, length: int, rounds: int, limit: float) -> str:
    one = 2 * rows * (length + 1) * HEADS * WIDTH * 4
    copies = max(2, min(16, ROTATION // one))
    pool = [torch.randn(2, rows * (length + 1), HEADS, WIDTH) for _ in range(copies)]
    table = torch.arange(rows * (length + 1), dtype=torch.int32).view(rows, length + 1)
    slots, lengths = table[:, length].contiguous(), torch.full((rows,), length, dtype=torch.int32)
    q, k, v = torch.randn(rows, 3, HEADS, WIDTH).unbind(1)
    gathered = [p.view(2, rows, length + 1, HEADS, WIDTH).transpose(2, 3).contiguous() for p in pool]
    history = [g[:, :, :, :length].contiguous() for g in gathered]

    def ours(i: int) -> torch.Tensor:
        p = pool[i % copies]
        return torch.ops.bertgen_C.decode_attention(q, k, v, p[0], p[1], slots, table, lengths)

    def sdpa(i: int) -> torch.Tensor:
        g = gathered[i % copies]
        return F.scaled_dot_product_attention(q.unsqueeze(2), g[0], g[1])

    def transformers(i: int) -> torch.Tensor:
        h = history[i % copies]
        keys, values = torch.cat([h[0], k.unsqueeze(2)], 2), torch.cat([h[1], v.unsqueeze(2)], 2)
        return F.scaled_dot_product_attention(q.unsqueeze(2), keys, values)

    torch.testing.assert_close(ours(0), transformers(0).squeeze(2))
    times = by_turns({"ours": ours, "sdpa": sdpa, "transformers": transformers}, rounds)
    return line("self", rows, length, times, one / times["ours"], limit)


def cross_attention(rows: int, beams: int, length: int, rounds: int, limit: float) -> str:
    sources = rows // beams
    one = 2 * sources * length * HEADS * WIDTH * 4
    copies = max(2, min(16, ROTATION // one))
    pool = [torch.randn(2, sources * length, HEADS, WIDTH) for _ in range(copies)]
    table = torch.arange(sources * length, dtype=torch.int32).view(sources, length)
    lengths, starts = torch.full((sources,), length, dtype=torch.int32), torch.arange(sources + 1, dtype=torch.int32)
    starts *= beams
    q = torch.randn(rows, HEADS, WIDTH)
    shared = [p.view(2, sources, length, HEADS, WIDTH).transpose(2, 3).contiguous() for p in pool]
    expanded = [g.repeat_interleave(beams, 1) for g in shared]

    def ours(i: int) -> torch.Tensor:
        p = pool[i % copies]
        return torch.ops.bertgen_C.cross_decode_attention(q, p[0], p[1], table, lengths, starts)

    def sdpa(i: int) -> torch.Tensor:
        g = shared[i % copies]
        return F.scaled_dot_product_attention(q.view(sources, beams, HEADS, WIDTH).transpose(1, 2), g[0], g[1])

    def transformers(i: int) -> torch.Tensor:
        e = expanded[i % copies]
        return F.scaled_dot_product_attention(q.unsqueeze(2), e[0], e[1])

    torch.testing.assert_close(ours(0), transformers(0).squeeze(2))
    times = by_turns({"ours": ours, "sdpa": sdpa, "transformers": transformers}, rounds)
    return line(f"cross, {beams} beams", rows, length, times, one / times["ours"], limit)


def line(name: str, rows: int, length: int, times: dict[str, float], rate: float, limit: float) -> str:
    micro = "".join(f"{1e6 * seconds:10.0f}" for seconds in times.values())
    gain = "".join(f"{times[name] / times['ours']:7.2f}" for name in ("sdpa", "transformers"))
    return f"{name:16}{rows:5}{length:6}{micro}{gain}{rate / 1e9:8.1f}{rate / limit:7.2f}"


def allocator(rows: int, rounds: int) -> None:
    """Microseconds of one step of all rows, where `crossing` of them begin a page."""
    positions = 512
    pages = Pages(rows, positions, rows * positions, backend="cpp")
    for row in range(0, rows, 4):
        pages.admit(4, positions, row, 0)
    every, slots = torch.arange(rows, dtype=torch.int32), torch.empty(rows, dtype=torch.int32)
    taken = []
    for t in range(positions):
        at = torch.full((rows,), t, dtype=torch.int32)
        start = time.perf_counter()
        pages.step(every, at, slots)
        taken.append(1e6 * (time.perf_counter() - start))
    crossing, within = taken[16::16], [t for i, t in enumerate(taken) if i % 16]
    usual, most = statistics.median(within), statistics.median(crossing)
    print(f"allocator, {rows} rows: {usual:.1f} us a step, {most:.1f} us where every row takes a page")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    extension.require()
    limit = copy_bandwidth()
    print(f"{options.threads} threads, a copy moves {limit / 1e9:.1f} GB/s")
    print(f"{'':16}{'rows':>5}{'keys':>6}{'ours us':>10}{'sdpa us':>10}{'transf.':>10}   x sdpa x tr.  GB/s  / copy")
    with torch.inference_mode():
        for rows in options.rows:
            for length in (32, 128, 512):
                print(self_attention(rows, length, options.rounds, limit), flush=True)
        for rows in options.rows:
            for beams in sorted({1, min(4, rows)}):
                for length in (32, 128, 512):
                    print(cross_attention(rows, beams, length, options.rounds, limit), flush=True)
    for rows in (64, 1024):
        allocator(rows, options.rounds)


if __name__ == "__main__":
    main()
