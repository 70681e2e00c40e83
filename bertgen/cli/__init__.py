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
import traceback
from collections.abc import Iterator
from typing import Any

from .. import __version__
from ..errors import BertgenError
from .console import drop, say
from .exit_codes import BAD_FILE, BAD_INPUT, BROKEN_PIPE, EXIT_CODES, FAULT
from .parser import Parser, as_typed

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
    flags: dict[str, str] = {}
    with _terminating():
        try:
            _open_streams()
            try:
                args = _parser(argv).parse_args(argv)
                flags = args.flags
                code = args.command(args)
            except SystemExit:  # --help, or a line that cannot be read
                sys.stdout.flush()
                raise
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            say("interrupted")
            return 128 + signal.SIGINT
        except _Terminated:
            say("terminated")
            return 128 + signal.SIGTERM
        except BrokenPipeError:
            drop(sys.stdout)
            return BROKEN_PIPE
        except OSError as error:  # CheckpointError and OutputError among them
            # An unbuffered stdout has nothing left to drop; the files' own errors have names and types.
            nameless = drop(sys.stdout) or (type(error) is OSError and error.filename is None)
            say(f"error: {f'stdout cannot be written: {error.strerror}' if nameless else as_typed(str(error), flags)}")
            return BAD_FILE
        except BertgenError as error:
            say(f"error: {as_typed(str(error), flags)}")
            return BAD_INPUT
        except Exception as error:
            if _lacks_memory(error):
                say(f"error: out of memory: {' '.join(str(error).split()) or 'this process has no more'}")
                return BAD_FILE
            traceback.print_exc()
            say(f"error: {type(error).__name__} is a fault in bertgen; please report what stands above")
            return FAULT


def _lacks_memory(error: Exception) -> bool:
    if isinstance(error, RuntimeError) and "torch" in sys.modules:
        from ..memory import is_out_of_memory

        return is_out_of_memory(error)
    return isinstance(error, MemoryError)


def _open_streams() -> None:
    """Open a standard stream that the caller has closed, so that no file gets its number; it answers with an error."""
    for name, mode, flag in (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:  # what is said to a closed stderr vanishes
            setattr(sys, name, open(os.open(os.devnull, flag), mode, encoding="utf-8"))


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
    asked = next((word for word in argv if word in COMMANDS), None)
    for name, (help, example) in COMMANDS.items():
        sub = commands.add_parser(name, help=help, description=help, epilog=f"{example}\n\n{EXIT_CODES}", **form)
        if name == asked:
            command = importlib.import_module(f".{name}", __package__)
            command.add_arguments(sub)
            sub.set_defaults(command=command.run, flags=sub.flags())
    return parser
