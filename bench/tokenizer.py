"""Sentences encoded and decoded per second by bertgen, sentencepiece alone and transformers, by turns.

    python -m bertgen.bench.tokenizer --input train.tsv [--lines 50000] [--repeats 5] [--json FILE]

The first column of the file is encoded with the demo model's vocabulary. The ids of all three must be equal.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import sentencepiece
import torch

from bertgen.errors import BackendError
from bertgen.files.line_formats import read_texts
from bertgen.hub import DEMO_MODEL
from bertgen.optional_imports import load_transformers
from bertgen.tokenizer import AutoTokenizer

from . import output
from .machine import seconds
from .result import Row

SHARE = 10  # transformers, which is slow, gets one in SHARE texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    output.add_arguments(parser)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    result = output.begin("tokenizer", args, torch.device("cpu"))
    texts = [line.split("\t")[0] for line in read_texts(args.input, args.lines)]
    output.head()
    for rows in raced(texts, args.repeats):
        output.add(result, rows)
    print(f"{len(texts)} sentences")
    raise SystemExit(output.end(result, args))


def raced(texts: list[str], repeats: int) -> list[list[Row]]:
    """Rows of encoding and of decoding."""
    few = texts[: max(1, len(texts) // SHARE)]
    ours = AutoTokenizer.from_pretrained("demo")
    plain = sentencepiece.SentencePieceProcessor(model_file=str(DEMO_MODEL / "spiece.model"))
    ids = ours.encode_batch(texts)
    if ids != plain.encode(texts):
        raise SystemExit("the ids differ from sentencepiece's")
    runs = {
        ("encode", "bertgen encode_batch"): (lambda: ours.encode_batch(texts), texts),
        ("encode", "bertgen tokenizer(texts)"): (lambda: ours(texts), texts),
        ("encode", "sentencepiece alone"): (lambda: plain.encode(texts), texts),
        ("decode", "bertgen batch_decode"): (lambda: ours.batch_decode(ids), texts),
        ("decode", "sentencepiece alone"): (lambda: plain.decode(ids), texts),
    }
    missing = None
    try:
        kind = load_transformers("the comparison").BertGenerationTokenizer
    except BackendError as error:
        missing = str(error)
    else:
        theirs = kind(str(DEMO_MODEL / "spiece.model"))
        if ids[: len(few)] != theirs(few)["input_ids"]:
            raise SystemExit("the ids differ from transformers'")
        runs["encode", "transformers tokenizer(texts)"] = (lambda: theirs(few), few)
        runs["decode", "transformers batch_decode"] = (lambda: theirs.batch_decode(ids[: len(few)]), few)
    rows = {
        key: Row(key[0], {"vocabulary": len(ours)}, key[1], amount=len(part), unit="sentence", correct="ids equal")
        for key, (_, part) in runs.items()
    }
    for _ in range(repeats):
        for key, (run, _) in runs.items():
            rows[key].seconds.append(seconds(run))
    sides = [[row for (task, _), row in rows.items() if task == side] for side in ("encode", "decode")]
    if missing:
        for side in sides:
            side.append(Row(side[0].name, side[0].params, "transformers", absent=missing))
    return sides


if __name__ == "__main__":
    main()
