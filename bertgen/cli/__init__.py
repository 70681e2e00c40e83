"""The command `bertgen`: run, score, evaluate, compare, train, convert, bench, info.

Results go to stdout, everything else to stderr. Commands import torch, and modules that need it, when they run, so that
`bertgen --help` prints at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from .. import __version__
from ..errors import BertgenError
from .console import print_message, silence_if_broken
from .exit_codes import BAD_FILE, BAD_INPUT, BROKEN_PIPE, EXIT_CODES, FAULT
from .openmp import set_wait_policy
from .parser import Parser, as_typed

# Command, a module of this package -> help, example.
COMMANDS = {
    "run": (
        "generate for texts, for lines of stdin, or for a file",
        'examples:\n  bertgen run --model demo "Where is the station?"\n'
        "  bertgen run --model demo --input in.jsonl --output out.jsonl --field en --output-field de --num-beams 4",
    ),
    "score": (
        "log-probabilities of given targets under a model",
        "example:\n  bertgen score --model demo --data pairs.tsv --output scores.txt",
    ),
    "evaluate": (
        "BLEU, chrF and speed of a model on pairs of source and reference",
        "example:\n  bertgen evaluate --model demo --data test.tsv --num-beams 4",
    ),
    "compare": (
        "compare outputs and speed of a model in bertgen and in transformers, token for token",
        "example:\n  bertgen compare --model demo --input texts.txt --num-beams 4",
    ),
    "train": (
        "train a model on pairs of source and target, from scratch or from a checkpoint",
        "example:\n  bertgen train --train train.tsv --dev dev.tsv --output model --epochs 10",
    ),
    "convert": (
        "convert a model: to the current checkpoint format, BART or CTranslate2",
        "example:\n  bertgen convert --model demo --to bart --output demo-bart",
    ),
    "bench": (
        "benchmark operators, generation and training against other engines; reports and comparisons",
        "example:\n  bertgen bench suite --level quick --output build/bench",
    ),
    "info": (
        "versions, devices, the backend of each operator with the reason; the shape of a model",
        "example:\n  bertgen info --model demo",
    ),
}

# Those that generate or score. The work of training is that of torch's threads, and others compare engines.
CALM = ("run", "score", "evaluate")


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    flags: dict[str, str] = {}
    with _terminating():
        try:
            _open_streams()
            try:
                args = _parser(argv).parse_args(argv)
                flags = args.flags
                code = args.command(args)
            except _Terminated:
                raise
            except SystemExit:  # --help, or a line that cannot be read
                sys.stdout.flush()
                raise
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            print_message("interrupted")
            return 128 + signal.SIGINT
        except _Terminated:
            print_message("terminated")
            return 128 + signal.SIGTERM
        except BrokenPipeError:
            silence_if_broken(sys.stdout)
            return BROKEN_PIPE
        except OSError as error:  # CheckpointError and OutputError among them
            # An unbuffered stdout has nothing left to drop; the files' own errors have names and types.
            nameless = silence_if_broken(sys.stdout) or (type(error) is OSError and error.filename is None)
            print_message(
                f"error: {f'stdout cannot be written: {error.strerror}' if nameless else as_typed(str(error), flags)}"
            )
            return BAD_FILE
        except BertgenError as error:
            print_message(f"error: {as_typed(str(error), flags)}")
            return BAD_INPUT
        except Exception as error:
            if _lacks_memory(error):
                print_message(f"error: out of memory: {' '.join(str(error).split()) or 'this process has no more'}")
                return BAD_FILE
            traceback.print_exc()
            print_message(f"error: {type(error).__name__} is a fault in bertgen; please report the traceback above")
            return FAULT


def _lacks_memory(error: Exception) -> bool:
    if isinstance(error, RuntimeError) and "torch" in sys.modules:
        from ..out_of_memory import is_out_of_memory

        return is_out_of_memory(error)
    return isinstance(error, MemoryError)


def _open_streams() -> None:
    """Open a standard stream that the caller has closed, so that no file gets its number; using it is an error."""
    for name, mode, flag in (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:  # messages to a closed stderr are lost
            setattr(sys, name, open(os.open(os.devnull, flag), mode, encoding="utf-8"))


class _Terminated(SystemExit):
    """Raised at SIGTERM, so that no half-written file stays.

    A SystemExit: the engine attributes every other exception that arrives during a callback to the callback's request.
    """

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


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


def _parser(argv: list[str]) -> Parser:
    """The parser of all commands; only the one that `argv` names is imported, as it may need torch."""
    form: dict[str, Any] = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser = Parser(
        prog="bertgen",
        description="Generate texts with BertGeneration encoder-decoder models, and train them.",
        epilog=EXIT_CODES,
        **form,
    )
    parser.add_argument("--version", action="version", version=f"bertgen {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    selected = next((word for word in argv if word in COMMANDS), None)
    for name, (help, example) in COMMANDS.items():
        sub = commands.add_parser(name, help=help, description=help, epilog=f"{example}\n\n{EXIT_CODES}", **form)
        if name == selected:
            if name in CALM:
                set_wait_policy()
            command = importlib.import_module(f".{name}", __package__)
            command.add_arguments(sub)
            sub.set_defaults(command=command.run, flags=sub.flags())
    return parser
