"""`bertgen convert`: a model in another format or precision."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..config import Int4Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, its new form and where it is written."""
    parser.add_argument("--model", required=True, metavar="PATH", help='folder or hub id, or "demo"')
    parser.add_argument("--tokenizer", metavar="PATH", help="folder or hub id (default: where the model is)")
    parser.add_argument(
        "--to",
        choices=("bertgen", "bart", "ct2"),
        default="bertgen",
        help="safetensors with current parameter names, for bertgen and transformers (default); a BART for "
        "transformers; a model of CTranslate2",
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="new folder, which appears when it is complete"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="dtype of the weights (default: the checkpoint's)",
    )
    group = parser.add_argument_group("4 bits", "docs/quantization.md explains formats and sizes.")
    group.add_argument("--int4", action="store_true", help="weights of linear layers in 4 bits, the rest in 16")
    group.add_argument("--format", choices=("int4", "nf4", "fp4"), help="4-bit format (default: int4)")
    group.add_argument(
        "--group-size", type=int, metavar="N", help="weights that share a scale: 32, 64 (default) or 128"
    )
    group.add_argument("--asymmetric", action="store_true", help="store a zero point for each group")
    group.add_argument(
        "--scales",
        choices=("mse", "absmax"),
        help="scales of least squared error (default), or from the largest weight",
    )
    group.add_argument(
        "--compute-dtype",
        choices=("int8", "input", "float32", "float16", "bfloat16"),
        help="dtype of the products (default: int8 for the format int4, else input). int8: integer products on a CPU, "
        "with the layer's input rounded; input: the dtype of the layer's input",
    )
    group.add_argument("--head", action="store_true", help="quantize the output layer, too")
    group.add_argument(
        "--skip", action="append", metavar="NAME", help="leave modules of this name as they are; repeatable"
    )


def run(args: argparse.Namespace) -> int:
    """Convert, and return the exit code."""
    from ..convert import BART_EPSILON, convert

    drift = convert(
        args.model, args.output, args.to, tokenizer=args.tokenizer, dtype=args.dtype, int4=_int4_config(args)
    )
    print(f"{args.output} is written")
    if drift is not None:
        print(
            f"BART's LayerNorms have an epsilon of {BART_EPSILON:g}: on random texts that changes logits by up to "
            f"{drift.logit:.2g}, {drift.relative:.2g} of the largest, and the likeliest token at {drift.turned} of "
            f"{drift.positions} positions"
        )
    return 0


def _int4_config(args: argparse.Namespace) -> Int4Config | None:
    """The 4-bit options of the arguments; None without --int4."""
    names = ("format", "group_size", "scales", "compute_dtype", "skip")
    values = {name: value for name in names if (value := getattr(args, name)) is not None}
    values |= {"symmetric": False} if args.asymmetric else {}
    values |= {"head": True} if args.head else {}
    if args.int4 and values.get("format", "int4") == "int4":
        values.setdefault("compute_dtype", "int8")
    if values.get("compute_dtype") == "input":
        values["compute_dtype"] = None
    if not args.int4:
        if values:
            typed = ", ".join(sorted(args.flags["asymmetric" if name == "symmetric" else name] for name in values))
            raise ConfigError(f"{typed}: options of 4 bits need --int4")
        return None
    from ..config import Int4Config

    return Int4Config(**values)
