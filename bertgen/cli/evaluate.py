"""`bertgen evaluate`: BLEU, chrF and speed on pairs of source and reference."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time

from ..errors import ConfigError
from .console import Progress
from .options import add_generation, add_model, generation, make_generator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the pairs to judge it on."""
    add_model(parser)
    add_generation(parser)
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="source TAB reference; lines with the same source are references of one another",
    )
    group.add_argument("--output", metavar="FILE", help="write the outputs, one line per different source")
    group.add_argument("--overwrite", action="store_true", help="replace an output that is there already")
    group.add_argument("--json", action="store_true", help="print JSON")
    group.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Print the scores, and return the exit code."""
    from .. import scoring
    from ..jobs import NewFile
    from ..trainer.data import read_pairs, references

    if args.output and os.path.realpath(args.output) == os.path.realpath(args.data):
        raise ConfigError(f"--output {args.output} is the data")
    grouped = references(read_pairs(args.data))
    generator = make_generator(args)
    options = generation(args)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(NewFile(args.output, args.overwrite)) if args.output else None
        progress = stack.enter_context(Progress(len(grouped), not args.quiet))
        outputs, tokens, start = [""] * len(grouped), 0, time.monotonic()
        for done, (index, output) in enumerate(generator.stream(grouped, lookahead=len(grouped), **options), 1):
            outputs[index] = " ".join(output.text.split())
            tokens += len(output.token_ids)
            progress.update(done, done, tokens)
        seconds = time.monotonic() - start
        if file:
            file.write("".join(f"{text}\n" for text in outputs).encode())
    bleu, chrf = (score(outputs, list(grouped.values())) for score in (scoring.bleu, scoring.chrf))
    result = {
        "bleu": bleu.value,
        "bleu_signature": bleu.signature,
        "chrf": chrf.value,
        "chrf_signature": chrf.signature,
        "sentences": len(grouped),
        "references": sum(map(len, grouped.values())),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"BLEU {bleu.value:.2f}  {bleu.signature}")
    print(f"chrF {chrf.value:.2f}  {chrf.signature}")
    print(
        f"{len(grouped)} sentences with {result['references']} references; {tokens} tokens in {seconds:.1f} s: "
        f"{len(grouped) / seconds:.1f} sentences/s, {tokens / seconds:.0f} tokens/s"
    )
    return 0
