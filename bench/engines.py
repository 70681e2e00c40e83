"""The engine beside transformers on real texts: sources and lengths of outputs are those of a file of pairs.

    python bench/engines.py --data test.tsv [--requests 48] [--batches 8 32] [--json FILE]

Random weights seldom stop, so every request stops at a length that is given: 32 tokens (`fixed`), or those of its real
target (`mixed`). transformers gets batches that are sorted by length and goes on until the longest of a batch is done;
what it computes beyond a length does not count. It runs with each batch size, and the best counts. `single` is one
request after another. Tokens are compared where both stop at one length. Useful FLOP are those of the matrix products
that the asked tokens need, beside the speed of a large product in the same run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from generate import SIZES, build, environment, machine, oracle_of

from bertgen import AutoTokenizer, GenerationConfig
from bertgen.config import EngineConfig
from bertgen.engine import Engine, Request, Ticket
from bertgen.search import settle

FIXED, LONGEST = 32, 128
Tokens = list[list[int]]


def useful_flop(size: str, sources: Tokens, lengths: list[int], beams: int) -> float:
    """Of the matrix products: two for each weight and token."""
    hidden, layers, intermediate, _, vocabulary = SIZES[size]
    body = hidden * (4 * hidden + 2 * intermediate)
    cross = 2 * hidden * hidden
    encode = sum(map(len, sources)) * layers * (body + cross)
    return 2.0 * (encode + sum(lengths) * beams * (layers * (body + cross) + vocabulary * hidden))


def ours(engine: Engine, sources: Tokens, lengths: list[int], beams: int) -> Tokens:
    """All requests at once, longest source first."""
    settled = {
        n: settle(GenerationConfig(max_new_tokens=n, num_beams=beams, pad_token_id=0, bos_token_id=2))
        for n in set(lengths)
    }
    requests = [Request(ids, settled[n], number=i) for i, (ids, n) in enumerate(zip(sources, lengths, strict=True))]
    done: list[Ticket] = []
    engine.submit(sorted(requests, key=lambda request: len(request.ids), reverse=True), done.append)
    while len(done) < len(requests):
        engine.step()
    found = {ticket.request.number: (ticket.outputs or [[]])[0] for ticket in done}
    return [found[i] for i in range(len(requests))]


def theirs(model: torch.nn.Module, sources: Tokens, lengths: list[int], beams: int, batch: int) -> Tokens:
    """Batches of sources sorted by length, each until the longest output of the batch is done."""
    order = sorted(range(len(sources)), key=lambda i: (len(sources[i]), lengths[i]), reverse=True)
    found: dict[int, list[int]] = {}
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(sources[i]) for i in some], batch_first=True)
        most = max(lengths[i] for i in some)
        rows = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=(ids != 0).long(), num_beams=beams, max_new_tokens=most, do_sample=False,
            decoder_start_token_id=2, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        found |= dict(zip(some, rows[:, 1:].tolist(), strict=True))
    return [found[i] for i in range(len(sources))]


def timed(run: Callable[..., Tokens], *arguments: Any) -> tuple[float, Tokens]:
    start = time.perf_counter()
    found = run(*arguments)
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="source TAB target")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--singles", type=int, default=6)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32], help="of transformers")
    parser.add_argument("--max-rows", type=int, nargs="+", default=[64, 128], help="of the engine")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained("demo")
    pairs = [line.split("\t")[:2] for line in args.data.read_text().splitlines()[: args.requests]]
    sources, targets = (
        [ids[:LONGEST] for ids in tokenizer.encode_batch(list(side))] for side in zip(*pairs, strict=True)
    )
    model = build(args.size)
    if SIZES[args.size][4] < 8000:  # a smoke test: any ids will do
        sources = [[5 + i % (SIZES[args.size][4] - 5) for i in ids] for ids in sources]
    oracle = oracle_of(model, "sdpa")
    flops, bandwidth = machine()
    print(f"machine: {flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s; {args.requests} requests", flush=True)
    print(
        "| lengths | beams | bertgen s | transformers s | ratio | bertgen useful FLOP/s | transformers | tokens equal |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for kind in ("fixed", "mixed", "single"):
        count = args.singles if kind == "single" else args.requests
        some = sources[:count]
        lengths = [FIXED if kind == "fixed" else min(len(ids), LONGEST) for ids in targets[:count]]
        for beams in (1, 4):
            mine, other = {}, {}
            for limit in [beams] if kind == "single" else args.max_rows:
                engine = Engine(model, EngineConfig(max_rows=max(limit, beams)))
                ours(engine, some[:1], lengths[:1], beams)  # packs the weights
                mine[limit] = timed(ours, engine, some, lengths, beams)
            for batch in [1] if kind == "single" else args.batches:
                with torch.no_grad():
                    other[batch] = timed(theirs, oracle, some, lengths, beams, batch)
            rows_best, batch_best = (min(found, key=lambda key: found[key][0]) for found in (mine, other))
            (a, got), (b, expected) = mine[rows_best], other[batch_best]
            alike = [x == y for x, y in zip(got, expected, strict=True) if len(x) == len(y)]
            useful = useful_flop(args.size, some, lengths, beams)
            rows.append(
                dict(
                    lengths=kind, beams=beams, seconds=a, transformers=b, ratio=b / a, max_rows=rows_best,
                    batch=batch_best, useful_flop=useful, equal=sum(alike), compared=len(alike),
                    all_seconds={str(k): v[0] for k, v in mine.items()},
                    all_transformers={str(k): v[0] for k, v in other.items()},
                )
            )  # fmt: skip
            print(
                f"| {kind} | {beams} | {a:.1f} | {b:.1f} | {b / a:.2f} | {useful / a / flops:.0%} | "
                f"{useful / b / flops:.0%} | {sum(alike)} of {len(alike)} |",
                flush=True,
            )
    if args.json:
        result = dict(environment(), size=args.size, flops=flops, bandwidth=bandwidth, requests=args.requests)
        args.json.write_text(json.dumps(dict(result, rows=rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
