"""Sentences encoded and decoded per second: bertgen, sentencepiece alone, and transformers, by turns.

    python bench/tokenizer.py --input train.tsv [--lines 50000] [--repeats 5] [--json FILE]

The first column of the file is encoded with the demo model's vocabulary. The ids of all three must be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import sentencepiece
from machine import environment

from bertgen import AutoTokenizer
from bertgen.hub import DEMO_MODEL


def rate(run, count: int) -> float:
    start = time.perf_counter()
    run()
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from transformers import BertGenerationTokenizer

    with args.input.open(encoding="utf-8") as file:
        texts = [line.rstrip("\n").split("\t")[0] for line, _ in zip(file, range(args.lines))]
    few = texts[: max(1, len(texts) // 10)]  # for transformers, which takes its time
    ours = AutoTokenizer.from_pretrained("demo")
    plain = sentencepiece.SentencePieceProcessor(model_file=str(DEMO_MODEL / "spiece.model"))
    theirs = BertGenerationTokenizer(str(DEMO_MODEL / "spiece.model"))
    ids = ours.encode_batch(texts)
    if ids != plain.encode(texts) or ids[: len(few)] != theirs(few)["input_ids"]:
        raise SystemExit("the ids differ")

    runs = {
        "encode: bertgen encode_batch": (lambda: ours.encode_batch(texts), texts),
        "encode: bertgen tokenizer(texts)": (lambda: ours(texts), texts),
        "encode: sentencepiece alone": (lambda: plain.encode(texts), texts),
        "encode: transformers tokenizer(texts)": (lambda: theirs(few), few),
        "decode: bertgen batch_decode": (lambda: ours.batch_decode(ids), texts),
        "decode: sentencepiece alone": (lambda: plain.decode(ids), texts),
        "decode: transformers batch_decode": (lambda: theirs.batch_decode(ids[: len(few)]), few),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, (run, part) in runs.items():
            rates[name].append(rate(run, len(part)))
    print(f"{len(texts)} sentences of {sum(map(len, ids)) / len(ids):.1f} pieces on average")
    print("| | sentences/s, median | fastest |\n|---|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):,.0f} | {max(values):,.0f} |")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(dict(environment(), lines=len(texts), rates=rates), indent=1) + "\n")


if __name__ == "__main__":
    main()
