"""`bertgen compare`: the same model here and in transformers, on a file of texts."""

from __future__ import annotations

import argparse
import json
import math
import re
from typing import Any

from ..errors import InputError
from .console import print_message
from .exit_codes import FAILED_LINES
from .options import add_generation, add_model, generation_options, make_generator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the texts, and the margin of a difference."""
    add_model(parser)
    add_generation(parser)
    group = parser.add_argument_group("comparison")
    group.add_argument("--input", required=True, metavar="FILE", help="a text per line")
    group.add_argument(
        "--margin",
        type=float,
        metavar="X",
        help="tokens with log-probabilities this close differ by rounding (default: 0.0001 in float32, 0.05 in "
        "float16, 0.4 in bfloat16)",
    )
    group.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="texts per batch of transformers (default: 32)"
    )
    group.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print what differs, and return the exit code: 1 where something does by more than the margin."""
    from ..config.validators import check_integer, check_number

    if args.margin is not None:
        check_number(0, math.inf, args.margin, "--margin")
    check_integer(1, args.batch_size, "--batch-size")
    from ..compare import MARGINS, PURPOSE, compare
    from ..files.line_formats import read_texts
    from ..files.text_input import check_name
    from ..optional_imports import load_transformers

    load_transformers(PURPOSE)  # before the model is loaded
    check_name(args.input, "text")
    texts = read_texts(args.input)
    if not texts:
        raise InputError(f"{args.input}: no texts")
    generator = make_generator(args)
    dtype = str(generator.model.dtype).removeprefix("torch.")
    limit = MARGINS[dtype] if args.margin is None else args.margin
    try:
        comparison = compare(
            generator, args.model, texts, batch_size=args.batch_size, **generation_options(args, generator)
        )
    except InputError as error:
        raise InputError(re.sub(r"^text (\d+)", lambda m: f"{args.input}, line {int(m[1]) + 1}", str(error))) from error
    if comparison.missing:
        print_message(
            f"transformers does not find {len(comparison.missing)} weights of this checkpoint, such as "
            f"{comparison.missing[0]}: it uses bertgen's"
        )
    beyond = [one for one in comparison.differences if not one.margin <= limit]
    pieces = generator.tokenizer.convert_ids_to_tokens
    rows: list[dict[str, Any]] = [
        {
            "line": one.index + 1,
            "position": one.position,
            "tokens": one.tokens,
            "pieces": [None if token is None else pieces(token) for token in one.tokens],
            "texts": one.texts,
            "margin": None if one.margin == float("inf") else one.margin,
        }
        for one in comparison.differences
    ]
    if args.json:
        speeds = {
            name: {"seconds": speed.seconds, "tokens": speed.tokens, "tokens_per_second": speed.tokens_per_second}
            for name, speed in (("bertgen", comparison.ours), ("transformers", comparison.theirs))
        }
        equal = comparison.texts - len(rows)
        result = {"texts": comparison.texts, "equal": equal, "beyond_margin": len(beyond), "margin": limit}
        result["dtype"] = dtype
        print(json.dumps({**result, **speeds, "differences": rows}, ensure_ascii=False))
        return FAILED_LINES if beyond else 0
    for row in rows:
        margin = "one ended there" if row["margin"] is None else f"margin {row['margin']:.2g}"
        print(f"line {row['line']}, token {row['position'] + 1}: {row['pieces'][0]} and {row['pieces'][1]}, {margin}")
        print(f"  bertgen       {row['texts'][0]}\n  transformers  {row['texts'][1]}")
    print(
        f"{comparison.texts} texts: {comparison.texts - len(rows)} outputs equal token for token, {len(rows)} not, "
        f"{len(beyond)} by more than {limit:g}, in {dtype}"
    )
    for name, speed in (("bertgen", comparison.ours), ("transformers", comparison.theirs)):
        print(f"{name:<13} {speed.seconds:.2f} s, {speed.tokens} tokens, {speed.tokens_per_second:.0f} tokens/s")
    return FAILED_LINES if beyond else 0
