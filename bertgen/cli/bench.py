"""`bertgen bench`: benchmarks of bertgen and other engines. Each part is a module of `bertgen.bench`."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from .parser import Parser

# Part, a module of bertgen.bench -> help, example.
PARTS = {
    "ops": (
        "operators against eager torch, torch.compile, torch's own kernels and other libraries",
        "bertgen bench ops --size small --json ops.json",
    ),
    "generate": (
        "whole models on real texts against transformers and CTranslate2",
        "bertgen bench generate --size demo --requests 8 --json generate.json",
    ),
    "scale": (
        "time as a function of batch, source, output, beams and layers",
        "bertgen bench scale --size demo --json scale.json",
    ),
    "train": ("a training step against transformers: time and memory", "bertgen bench train --size demo"),
    "dropin": (
        "a transformers model before and after accelerate: generate, and a training step",
        "bertgen bench dropin --json dropin.json",
    ),
    "suite": (
        "ops, generate, scale and train, one after the other, and their report",
        "bertgen bench suite --level quick --output build/bench",
    ),
    "report": (
        "results as one HTML page and PNGs",
        "bertgen bench report ops.json generate.json --output report",
    ),
    "compare": (
        "compare two results of the same cases: differences beyond the spread",
        "bertgen bench compare before.json after.json",
    ),
    "check": (
        "check that the speed-ups reach their floors; exits with 1 where one does not",
        "bertgen bench check generate.json",
    ),
}


class _Parser(Parser):
    """The parser of a part; it imports the module of the part when it parses, as most need torch."""

    def parse_known_args(self, *arguments: Any, **named: Any) -> Any:
        part = importlib.import_module(f"...bench.{self.prog.split()[-1]}", __name__)
        part.add_arguments(self)
        self.set_defaults(part=part.run)
        return super().parse_known_args(*arguments, **named)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parts, each with arguments of its own."""
    form: dict[str, Any] = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parts = parser.add_subparsers(required=True, metavar="PART", parser_class=_Parser)
    for name, (help, example) in PARTS.items():
        parts.add_parser(name, help=help, description=help, epilog=f"example:\n  {example}", **form)


def run(args: argparse.Namespace) -> int:
    """Run the part, and return its exit code."""
    return args.part(args)
