"""Arguments that several commands take: of the model, of generation."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .console import print_message

if TYPE_CHECKING:
    from ..generator import Generator


def add_model(parser: argparse.ArgumentParser, several_devices: bool = False) -> None:
    """Where the model is and how it runs.

    Args:
        several_devices: the command can work on several devices.
    """
    group = parser.add_argument_group("model")
    group.add_argument("--model", required=True, metavar="PATH", help='folder or hub id, or "demo"')
    group.add_argument("--tokenizer", metavar="PATH", help="folder or hub id (default: where the model is)")
    group.add_argument("--device", help="cpu, cuda, cuda:1, or a GPU's number; -1 is the CPU (default: cpu)")
    if several_devices:
        group.add_argument(
            "--devices", metavar="LIST", help="several of them, as in cuda:0,cuda:1; each has a copy of the model"
        )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        help="dtype of the weights (default: the checkpoint's, on a CPU float32)",
    )
    group.add_argument(
        "--max-rows", type=int, metavar="N", help="sequences decoded together (default: by device and model)"
    )
    group.add_argument(
        "--encode-tokens", type=int, metavar="N", help="source tokens encoded together (default: by device)"
    )
    group.add_argument("--truncate", action="store_true", help="cut texts that are too long instead of refusing them")


# Options of GenerationConfig: flag -> (type, help).
_GENERATION: dict[str, tuple[Any, str]] = {
    "num-beams": (int, "width of the beam search; 1 is greedy"),
    "num-beam-groups": (int, "groups of beams that search for different outputs"),
    "diversity-penalty": (float, "penalty of a token that an earlier group chose in the same step"),
    "max-new-tokens": (int, "longest output, in tokens"),
    "max-length": (int, "the same with the start token counted"),
    "min-length": (int, "shortest output, the start token counted"),
    "min-new-tokens": (int, "the same without the start token"),
    "length-penalty": (float, "exponent of the length that divides a beam's log-probability"),
    "early-stopping": (
        str,
        "end a beam search: all beams have outputs (true), better ones are unlikely (false) or impossible (never)",
    ),
    "no-repeat-ngram-size": (int, "no n-gram of this size occurs twice"),
    "encoder-no-repeat-ngram-size": (int, "no n-gram of this size is copied from the input"),
    "repetition-penalty": (float, "above 1: tokens that occurred become less likely"),
    "temperature": (float, "temperature of sampling"),
    "top-k": (int, "sample among the K best tokens"),
    "top-p": (float, "sample among the best tokens that have this probability together"),
    "min-p": (float, "sample among the tokens with at least this share of the best one's probability"),
    "typical-p": (float, "sample among the tokens of the most typical surprise that have this probability together"),
}


def add_generation(parser: argparse.ArgumentParser) -> None:
    """The options of generation that have a flag."""
    group = parser.add_argument_group("generation", "Defaults are those of the model's generation_config.json.")
    for flag, (kind, help) in _GENERATION.items():
        choices = ("true", "false", "never") if flag == "early-stopping" else None
        metavar = None if choices else {int: "N", float: "X"}[kind]
        group.add_argument(f"--{flag}", type=kind, choices=choices, metavar=metavar, help=help)
    group.add_argument("--do-sample", action="store_true", default=None, help="draw tokens instead of taking the best")
    group.add_argument("--seed", type=int, metavar="N", help="seed of sampling")


_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")


def generation_options(args: argparse.Namespace, generator: Generator) -> dict[str, Any]:
    """The generation options of the command line; prints those that have no effect."""
    names = [flag.replace("-", "_") for flag in _GENERATION] + ["do_sample", "seed"]
    options = {name: value for name in names if (value := getattr(args, name)) is not None}
    if options.get("early_stopping") in ("true", "false"):
        options["early_stopping"] = options["early_stopping"] == "true"
    idle = [args.flags[name] for name in _OF_SAMPLING if name in options]
    if idle and not options.get("do_sample", generator.model.generation_config.do_sample):
        print_message(f"{', '.join(idle)}: of no effect without --do-sample")
    return options


def make_generator(args: argparse.Namespace) -> Generator:
    """The Generator that the arguments of `add_model` describe."""
    from ..generator import Generator

    devices = getattr(args, "devices", None)
    return Generator(
        args.model,
        args.tokenizer,
        device=args.device,
        devices=None if devices is None else devices.split(","),
        dtype=args.dtype,
        max_rows=args.max_rows,
        encode_tokens=args.encode_tokens,
        truncation=args.truncate,
    )
