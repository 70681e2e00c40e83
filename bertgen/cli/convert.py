"""`bertgen convert`: the same model in other forms."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and what becomes of it."""
    parser.add_argument("--model", required=True, metavar="PATH", help='folder or hub id, or "demo"')
    parser.add_argument("--tokenizer", metavar="PATH", help="folder or hub id (default: where the model is)")
    parser.add_argument(
        "--to",
        choices=("bertgen", "bart", "ct2"),
        default="bertgen",
        help="safetensors under the names of today, for bertgen and transformers (default); a BART for transformers; "
        "a model of CTranslate2",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="a new one, which appears when it is whole")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of the weights (default: the checkpoint's)",
    )


def run(args: argparse.Namespace) -> int:
    """Convert, and return the exit code."""
    from ..conversion import BART_EPSILON, convert

    drift = convert(args.model, args.output, args.to, tokenizer=args.tokenizer, dtype=args.dtype)
    print(f"{args.output} is written")
    if drift is not None:
        print(
            f"BART's LayerNorms have an epsilon of {BART_EPSILON:g}: on random texts that changes logits by up to "
            f"{drift.logit:.2g}, {drift.relative:.2g} of the largest, and the likeliest token at {drift.turned} of "
            f"{drift.positions} positions"
        )
    return 0
