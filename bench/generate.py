"""Generation side by side with transformers: the same random weights, the same sources, the same number of tokens.

    python bench/generate.py [--size base|demo] [--repeats 3] [--json FILE]

Prints seconds (median of interleaved repeats) and their ratio, and whether the tokens agree. transformers runs twice:
with its default attention (sdpa) and eager. The physical limit beside them counts only the matrix products, at the
speed this machine reaches on a large one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bertgen import EncoderDecoderConfig, EncoderDecoderModel, __version__

SIZES = {  # hidden, layers, intermediate, heads, vocabulary
    "base": (768, 6, 3072, 12, 32000),
    "demo": (256, 4, 1024, 4, 8000),
    "smoke": (64, 2, 128, 4, 500),
}
CASES = [(1, 1), (1, 4), (16, 1), (16, 4)]  # batch, beams
SOURCE, NEW = 32, 64


def build(size: str) -> EncoderDecoderModel:
    hidden, layers, intermediate, heads, vocabulary = SIZES[size]
    half = dict(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=intermediate, initializer_range=0.05,
    )  # fmt: skip
    torch.manual_seed(0)
    decoder = dict(half, is_decoder=True, add_cross_attention=True)
    return EncoderDecoderModel(
        EncoderDecoderConfig(encoder=half, decoder=decoder, pad_token_id=0, decoder_start_token_id=2)
    ).eval()


def oracle_of(model: EncoderDecoderModel, attention: str):
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.EncoderDecoderConfig(**model.config.to_dict())
    oracle = transformers.EncoderDecoderModel(config).eval()
    oracle.load_state_dict(model.state_dict(), strict=False)
    oracle.set_attn_implementation(attention)
    return oracle


def limit_seconds(size: str, batch: int, beams: int, flops: float, bandwidth: float) -> float:
    """Lower bound: every matrix product at full speed, and every weight read once a step."""
    hidden, layers, intermediate, _, vocabulary = SIZES[size]
    body = hidden * (4 * hidden + 2 * intermediate)
    decoder = layers * (body + 2 * hidden * hidden) + vocabulary * hidden
    encode = batch * SOURCE * layers * (body + 2 * hidden * hidden)  # and the cross keys and values
    products = 2 * (encode + batch * beams * NEW * decoder)
    return max(products / flops, NEW * decoder * 4 / bandwidth)


def machine() -> tuple[float, float]:
    """FLOP/s of a large float32 product, bytes/s of reading a large array."""
    a, big = torch.randn(2048, 2048), torch.ones(256 * 2**20 // 4)
    product = min(timed(torch.matmul, input=a, other=a)[0] for _ in range(5))
    read = min(timed(big.sum)[0] for _ in range(5))
    return 2 * 2048**3 / product, big.numel() * 4 / read


def timed(run: Callable, **arguments) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run(**arguments)
    return time.perf_counter() - start, result


def environment() -> dict:
    root = Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True).stdout.strip()

    import transformers

    processor = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x][:1]
    return dict(
        device="cpu", processor=processor[0].split(":")[1].strip() if processor else platform.processor(),
        cores=os.cpu_count(), threads=torch.get_num_threads(), isa=torch.backends.cpu.get_cpu_capability(),
        python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__,
        bertgen=__version__, commit=git("rev-parse", "--short", "HEAD"), dirty=bool(git("status", "--porcelain")),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    model = build(args.size)
    engines = {"bertgen": model, "sdpa": oracle_of(model, "sdpa"), "eager": oracle_of(model, "eager")}
    flops, bandwidth = machine()
    print(f"machine: {flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s; source {SOURCE}, {NEW} new tokens")
    print("| batch | beams | bertgen s | transformers sdpa s | eager s | best ratio | limit s | tokens equal |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for batch, beams in CASES:
        ids = torch.randint(5, SIZES[args.size][4], (batch, SOURCE), generator=torch.Generator().manual_seed(batch))
        call = dict(
            input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=beams, max_new_tokens=NEW,
            min_new_tokens=NEW, do_sample=False,
        )  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        tokens = {}
        for turn in range(args.repeats + 1):  # the first turn warms up
            for name, engine in engines.items():
                spent, tokens[name] = timed(engine.generate, **call)
                if turn:
                    seconds[name].append(spent)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        equal = float((tokens["bertgen"] == tokens["eager"]).all(1).float().mean())
        ratio = min(medians["sdpa"], medians["eager"]) / medians["bertgen"]
        limit = limit_seconds(args.size, batch, beams, flops, bandwidth)
        rows.append(
            dict(batch=batch, beams=beams, seconds=seconds, median=medians, ratio=ratio, limit=limit, equal=equal)
        )
        print(
            f"| {batch} | {beams} | {medians['bertgen']:.2f} | {medians['sdpa']:.2f} | {medians['eager']:.2f} "
            f"| {ratio:.2f} | {limit:.2f} | {equal:.0%} |",
            flush=True,
        )
    if args.json:
        result = dict(environment(), size=args.size, source=SOURCE, new_tokens=NEW, flops=flops, bandwidth=bandwidth)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(dict(result, rows=rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
