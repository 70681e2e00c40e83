"""How far weights in 4 bits are off, layer by layer: decibels of signal over rounding error, for several formats.

    python bench/quantization.py [--model demo] [--per-layer]

6 dB are a bit. Layers of one kind are one row, with their mean; `--per-layer` prints each.
"""

from __future__ import annotations

import argparse
import re

from torch import nn

from bertgen import EncoderDecoderModel, Int4Config
from bertgen.quantization import signal_to_noise

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


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--per-layer", action="store_true")
    args = parser.parse_args()
    model = EncoderDecoderModel.from_pretrained(args.model, dtype="float32")
    rows: dict[str, list[list[float]]] = {}
    seen = set()  # halves may share weights
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


if __name__ == "__main__":
    main()
