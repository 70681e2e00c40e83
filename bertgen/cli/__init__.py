"""The command `bertgen`: run, score, evaluate, compare, train, convert, bench, info.

Results go to stdout, all else to stderr. torch and what needs it are imported inside the commands, so that
`bertgen --help` comes at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from .. import __version__
from ..errors import BertgenError
from .codes import BAD_FILE, BAD_INPUT, BROKEN_PIPE, EXIT_CODES
from .console import say

# Command, a module of this package -> help, example.
COMMANDS = {
    "run": (
        "generate for texts, for lines of stdin, or for a file",
        'examples:\n  bertgen run --model demo "Where is the station?"\n'
        "  bertgen run --model demo --input in.jsonl --output out.jsonl --field en --output-field de --num-beams 4",
    ),
    "score": (
        "log-probabilities that a model gives to given targets",
        "example:\n  bertgen score --model demo --data pairs.tsv --output scores.txt",
    ),
    "evaluate": (
        "BLEU, chrF and speed of a model on pairs of source and reference",
        "example:\n  bertgen evaluate --model demo --data test.tsv --num-beams 4",
    ),
    "compare": (
        "the outputs of a model here and in transformers, token for token, and the time they take",
        "example:\n  bertgen compare --model demo --input texts.txt --num-beams 4",
    ),
    "train": (
        "train a model on pairs of source and target, from scratch or from a checkpoint",
        "example:\n  bertgen train --train train.tsv --dev dev.tsv --output model --epochs 10",
    ),
    "convert": (
        "the same model in other forms: a checkpoint of today, BART, CTranslate2",
        "example:\n  bertgen convert --model demo --to bart --output demo-bart",
    ),
    "bench": (
        "measure: operators, generation and training beside other engines; reports and comparisons",
        "example:\n  bertgen bench suite --level quick --output build/bench",
    ),
    "info": (
        "versions, devices, which backend each operator takes and why; a model's shape",
        "example:\n  bertgen info --model demo",
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    with _terminating():
        try:
            args = _parser(argv).parse_args(argv)
            code = args.command(args)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            say("interrupted")
            return 128 + signal.SIGINT
        except _Terminated:
            say("terminated")
            return 128 + signal.SIGTERM
        except BrokenPipeError:
            _drop_stdout()
            return BROKEN_PIPE
        except OSError as error:  # CheckpointError and OutputError among them
            say(f"error: {error}")
            _drop_stdout()
            return BAD_FILE
        except BertgenError as error:
            say(f"error: {error}")
            return BAD_INPUT


class _Terminated(BaseException):
    """SIGTERM has come: unwind, so that no half-written file stays."""


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        raise _Terminated

    former = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _drop_stdout() -> None:
    """What stdout could not take is not tried again when Python ends, where it would replace the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    """The parser of all commands; only the one that `argv` names is imported, as it may need torch."""
    form: dict[str, Any] = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser = argparse.ArgumentParser(
        prog="bertgen",
        description="Generate texts with BertGeneration encoder-decoder models, and train them.",
        epilog=EXIT_CODES,
        **form,
    )
    parser.add_argument("--version", action="version", version=f"bertgen {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    asked = next((word for word in argv if word in COMMANDS), None)
    for name, (help, example) in COMMANDS.items():
        sub = commands.add_parser(name, help=help, description=help, epilog=f"{example}\n\n{EXIT_CODES}", **form)
        if name == asked:
            command = importlib.import_module(f".{name}", __package__)
            command.add_arguments(sub)
            sub.set_defaults(command=command.run)
    return parser
