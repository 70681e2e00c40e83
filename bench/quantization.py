"""4-bit weights against float weights: size, BLEU and tokens/s, and the rounding error of each layer.

    python -m bertgen.bench.quantization models [--model demo] [--data test.tsv] [--num-beams 4] [--repeats 3]
        [--lines N]
    python -m bertgen.bench.quantization layers [--model demo] [--per-layer]

`models` converts the model to each format and translates the data with `bertgen evaluate`, one format after another in
each turn; tokens/s are medians, and ratios to float32 are medians of the ratios per turn. `layers` prints the ratio of
the weights to their rounding errors in decibels, 6 dB per bit: one row per kind of layer with the mean, or with
`--per-layer` one row per layer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import nn

from bertgen.config import Int4Config
from bertgen.convert import convert
from bertgen.model import EncoderDecoderModel
from bertgen.quantization.int4 import signal_to_noise

DATA = Path(__file__).parents[2] / "shared/data/tatoeba-en-de/test.tsv"
MODELS: dict[str, dict[str, Any]] = {
    "float32": dict(dtype="float32"),
    "float16": dict(dtype="float16"),
    "int4": dict(int4=Int4Config()),
    "int4, integers": dict(int4=Int4Config(compute_dtype="int8")),
    "NF4": dict(int4=Int4Config("nf4")),
    "int4, output layer too": dict(int4=Int4Config(head=True)),
    "int4, integers, output layer too": dict(int4=Int4Config(head=True, compute_dtype="int8")),
    "NF4, output layer too": dict(int4=Int4Config("nf4", head=True)),
}
FORMATS = {
    "int4 absmax": Int4Config(scales="absmax"),
    "int4": Int4Config(),
    "int4, 32": Int4Config(group_size=32),
    "int4, 128": Int4Config(group_size=128),
    "asymmetric": Int4Config(symmetric=False),
    "nf4 absmax": Int4Config("nf4", scales="absmax"),
    "nf4": Int4Config("nf4"),
    "fp4": Int4Config("fp4"),
}


def models(args: argparse.Namespace) -> None:
    """Print size, BLEU and speed in Markdown."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folders = {name: root / str(number) for number, name in enumerate(MODELS)}
        for name, folder in folders.items():
            convert(args.model, folder, **MODELS[name])
        data = root / "data.tsv"
        with args.data.open(encoding="utf-8") as file:
            data.write_text("".join(itertools.islice(file, args.lines)), encoding="utf-8")
        turns = [
            {name: evaluated(folder, data, args.num_beams, "float32") for name, folder in folders.items()}
            for _ in range(args.repeats)
        ]
        print("| weights | folder, MB | BLEU | tokens/s | times float32 |\n|---|---|---|---|---|")
        for name, folder in folders.items():
            size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
            speed = statistics.median(turn[name]["tokens_per_second"] for turn in turns)
            ratios = [turn[name]["tokens_per_second"] / turn["float32"]["tokens_per_second"] for turn in turns]
            bleu = turns[0][name]["bleu"]
            print(f"| {name} | {size:.1f} | {bleu:.1f} | {speed:.0f} | {statistics.median(ratios):.2f} |", flush=True)


def evaluated(folder: Path, data: Path, num_beams: int, dtype: str) -> dict[str, Any]:
    """The report of `bertgen evaluate --json`."""
    start = time.perf_counter()
    words = ["--model", str(folder), "--data", str(data), "--num-beams", str(num_beams), "--dtype", dtype]
    words += ["--json", "--quiet"]
    command = [sys.executable, "-m", "bertgen", "evaluate", *words]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(f"{folder.name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return json.loads(printed)


def layers(args: argparse.Namespace) -> None:
    """Print the errors of layers in Markdown."""
    model = EncoderDecoderModel.from_pretrained(args.model, dtype="float32")
    rows: dict[str, list[list[float]]] = {}
    seen = set()  # encoder and decoder may share weights
    for half in ("decoder", "encoder"):
        for name, module in model.get_submodule(half).named_modules(prefix=half):
            if not isinstance(module, nn.Linear) or module.weight in seen:
                continue
            seen.add(module.weight)
            kind = name if args.per_layer else re.sub(r"layer\.\d+\.", "layer.*.", name)
            kind += " (with head=True)" if module is model.get_output_embeddings() else ""
            weight = module.weight.detach()
            rows.setdefault(kind, []).append([signal_to_noise(weight, config) for config in FORMATS.values()])
    print("| layers | " + " | ".join(FORMATS) + " |\n|---|" + "---|" * len(FORMATS))
    for kind, values in rows.items():
        means = (sum(column) / len(column) for column in zip(*values))
        print(f"| `{kind}` | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    for function in (models, layers):
        part = parts.add_parser(function.__name__, help=function.__doc__)
        part.add_argument("--model", default="demo")
        part.set_defaults(run=function)
        if function is layers:
            part.add_argument("--per-layer", action="store_true")
            continue
        part.add_argument("--data", type=Path, default=DATA, help="lines of source TAB reference (default: Tatoeba)")
        part.add_argument("--num-beams", type=int, default=4)
        part.add_argument("--repeats", type=int, default=3)
        part.add_argument("--lines", type=int, help="number of lines of the data (default: all)")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
