"""The command `bertgen`: run, evaluate, train, info. Results go to stdout, all else to stderr.

torch and what needs it are imported inside the commands, so that `bertgen --help` comes at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import BertgenError, ConfigError

if TYPE_CHECKING:
    from .generator import Generator
    from .jobs import JobReport

FAILED_LINES, BAD_INPUT, BAD_FILE, BROKEN_PIPE = 1, 2, 3, 141
EXIT_CODES = """exit codes:
  0    done
  1    done, but some lines failed and were recorded as such (--on-error record)
  2    wrong options, or input that cannot be used
  3    a model that is missing or corrupt, or an output that cannot be written
  130  interrupted (Ctrl-C)        143  terminated (SIGTERM)
  141  nobody reads the output any more (as in `| head`)
"""
PATIENCE = 2.0  # seconds of work before a progress bar appears


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
            _say("interrupted")
            return 128 + signal.SIGINT
        except _Terminated:
            _say("terminated")
            return 128 + signal.SIGTERM
        except BrokenPipeError:
            _drop_stdout()
            return BROKEN_PIPE
        except OSError as error:  # CheckpointError and OutputError among them
            _say(f"error: {error}")
            _drop_stdout()
            return BAD_FILE
        except BertgenError as error:
            _say(f"error: {error}")
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


def _say(message: str) -> None:
    print(f"bertgen: {message}", file=sys.stderr, flush=True)


def _drop_stdout() -> None:
    """What stdout could not take is not tried again when Python ends, where it would replace the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


# -- arguments --------------------------------------------------------------------------------------------------------


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    """The parser of all commands; only the one that `argv` names has its arguments, as they may need torch."""
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
    for name, (command, add_arguments, help, example) in COMMANDS.items():
        sub = commands.add_parser(name, help=help, description=help, epilog=f"{example}\n\n{EXIT_CODES}", **form)
        sub.set_defaults(command=command)
        if name == asked:
            add_arguments(sub)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", required=True, metavar="PATH", help='folder or hub id, or "demo"')
    group.add_argument("--tokenizer", metavar="PATH", help="folder or hub id (default: where the model is)")
    group.add_argument("--device", help="cpu, cuda, cuda:1, or a GPU's number; -1 is the CPU (default: cpu)")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        help="of the weights (default: the checkpoint's, on a CPU float32)",
    )
    group.add_argument("--batch-tokens", type=int, metavar="N", help="tokens in a batch (default: by device)")
    group.add_argument("--truncate", action="store_true", help="cut texts that are too long instead of refusing them")


# Options of GenerationConfig: flag -> (type, help).
_GENERATION: dict[str, tuple[Any, str]] = {
    "num-beams": (int, "width of the beam search; 1 is greedy"),
    "num-beam-groups": (int, "beams in so many groups, which look for different outputs"),
    "diversity-penalty": (float, "of a token that an earlier group chose in the same step"),
    "max-new-tokens": (int, "longest output, in tokens"),
    "max-length": (int, "the same with the start token counted"),
    "min-length": (int, "shortest output, the start token counted"),
    "min-new-tokens": (int, "the same without the start token"),
    "length-penalty": (float, "exponent of the length that divides a beam's log-probability"),
    "early-stopping": (str, "true, false or never: when a beam search gives up looking for better outputs"),
    "no-repeat-ngram-size": (int, "no n-gram of this size occurs twice"),
    "encoder-no-repeat-ngram-size": (int, "no n-gram of this size is copied from the input"),
    "repetition-penalty": (float, "above 1: tokens that occurred become less likely"),
    "temperature": (float, "of sampling"),
    "top-k": (int, "sample among the K best tokens"),
    "top-p": (float, "sample among the best tokens that have this probability together"),
    "min-p": (float, "sample among the tokens with at least this share of the best one's probability"),
    "typical-p": (float, "sample among the tokens nearest to the expected surprise, of this probability together"),
}


def _add_generation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation", "What is not given is as the model's generation_config.json says.")
    for flag, (kind, help) in _GENERATION.items():
        choices = ("true", "false", "never") if flag == "early-stopping" else None
        metavar = None if choices else {int: "N", float: "X"}[kind]
        group.add_argument(f"--{flag}", type=kind, choices=choices, metavar=metavar, help=help)
    group.add_argument("--do-sample", action="store_true", default=None, help="draw tokens instead of taking the best")
    group.add_argument("--seed", type=int, metavar="N", help="of sampling")


def _generation(args: argparse.Namespace) -> dict[str, Any]:
    """The generation options that were given."""
    names = [flag.replace("-", "_") for flag in _GENERATION] + ["do_sample", "seed"]
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if given.get("early_stopping") in ("true", "false"):
        given["early_stopping"] = given["early_stopping"] == "true"
    return given


def _generator(args: argparse.Namespace) -> Generator:
    from .generator import Generator

    return Generator(
        args.model,
        args.tokenizer,
        device=args.device,
        dtype=args.dtype,
        max_batch_tokens=args.batch_tokens,
        truncation=args.truncate,
    )


# -- progress ---------------------------------------------------------------------------------------------------------


class _Progress:
    """A bar on stderr with rates and the time left, for work of more than some seconds at a terminal; else nothing.

    Args:
        total: amount of work in any unit; None where it is unknown.
        shown: False for nothing at all.
    """

    def __init__(self, total: float | None, shown: bool):
        self.total, self.shown, self.start = total, shown and sys.stderr.isatty(), time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, done: float, lines: int, tokens: int) -> None:
        """Show that so much of the total, so many lines and tokens are behind us."""
        seconds = time.monotonic() - self.start
        if not self.shown or seconds < PATIENCE:
            return
        if self.bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}"))
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.add_task("", total=self.total, note="")
            self.bar.start()
        note = f"{lines} lines, {lines / seconds:.1f} lines/s, {tokens / seconds:.0f} tokens/s"
        if self.total and done:
            note += f", {timedelta(seconds=round(seconds * (self.total - done) / done))} left"
        self.bar.update(0, completed=done, note=note)


# -- run --------------------------------------------------------------------------------------------------------------


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="*", metavar="TEXT", help="texts; without them and --input, lines of stdin")
    parser.add_argument("--task", default="text2text-generation", help="(default: text2text-generation)")
    _add_model(parser)
    _add_generation(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--n-best", type=int, default=1, metavar="N", help="outputs per text, best first")
    group.add_argument("--scores", action="store_true", help="log-probability / length ** length penalty, too")
    group.add_argument("--quiet", action="store_true", help="no progress and no summary")
    group = parser.add_argument_group(
        "files",
        "One record per line, in order.\n"
        "text   outputs, separated by tabs, each behind its score\n"
        "tsv    the same, in columns behind those of the line\n"
        "jsonl  the line's fields and one more: the output, or a list of outputs",
    )
    group.add_argument("--input", metavar="FILE", help="lines to read")
    group.add_argument("--output", metavar="FILE", help="appears when all of it is written (default: stdout)")
    group.add_argument("--format", choices=("text", "tsv", "jsonl"), help="(default: by suffix, else text)")
    group.add_argument("--column", type=int, metavar="N", help="tsv: column of the text, from 1 (default: 1)")
    group.add_argument("--field", metavar="NAME", help="jsonl: field of the text (default: text)")
    group.add_argument("--output-field", metavar="NAME", help="jsonl: field of the output (default: output)")
    group.add_argument(
        "--on-error",
        choices=("stop", "record"),
        default="stop",
        help="a line that cannot be used: stop (default), or record it as failed and go on",
    )
    group.add_argument("--overwrite", action="store_true", help="replace an output that is there already")


def _run(args: argparse.Namespace) -> int:
    if args.text and (args.input or args.format):
        raise ConfigError("texts as arguments, or lines with --input and --format: not both")
    if args.output and not args.input:
        raise ConfigError("--output needs --input; what goes to stdout can be redirected")
    from .jobs import follow_file, follow_lines
    from .pipelines import check_task

    check_task(args.task)
    generator = _generator(args)
    options = dict(
        _generation(args),
        n_best=args.n_best,
        scores=args.scores,
        column=args.column,
        field=args.field,
        output_field=args.output_field,
        on_error=args.on_error,
    )
    with contextlib.ExitStack() as stack:
        if args.output:
            reports = follow_file(
                generator, args.input, args.output, format=args.format, overwrite=args.overwrite, **options
            )
        else:
            name, lines, format = _lines(args, stack)
            interactive = name == "stdin" and sys.stdin.isatty()
            if interactive:
                _say("type a text and press Enter; Ctrl-D ends")
                options["lookahead"] = 1
            reports = follow_lines(generator, lines, _write_stdout, name=name, format=format, **options)
        total = os.path.getsize(args.input) if args.input and os.path.isfile(args.input) else None
        shown = not args.quiet and (bool(args.output) or not sys.stdout.isatty())
        progress = stack.enter_context(_Progress(total, shown))
        stack.enter_context(contextlib.closing(reports))
        for report in reports:
            progress.update(report.bytes, report.lines, report.tokens)
    if not args.quiet:
        _summarize(report, args.output)
    return FAILED_LINES if report.failed else 0


def _lines(args: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[str, Iterable[bytes], str]:
    """Name, lines and format of what `run` reads where it writes to stdout; each line has an end."""
    from .files import open_input
    from .jobs import FORMAT_OF_SUFFIX

    if args.text:
        return "arguments", (os.fsencode(text) + b"\n" for text in args.text), "text"
    if not args.input:
        return "stdin", map(_ended, sys.stdin.buffer), args.format or "text"
    format = args.format or FORMAT_OF_SUFFIX.get(Path(args.input).suffix.lower(), "text")
    return args.input, map(_ended, stack.enter_context(open_input(args.input))), format


def _ended(line: bytes) -> bytes:
    return line if line.endswith(b"\n") else line + b"\n"


def _write_stdout(record: bytes) -> None:
    sys.stdout.buffer.write(record)
    sys.stdout.buffer.flush()


def _summarize(report: JobReport, output: str | None) -> None:
    for message in report.messages:
        _say(message)
    told = len(report.messages)
    if report.failed + report.truncated > told:
        _say(f"... and {report.failed + report.truncated - told} more such lines")
    if output:
        seconds = max(report.seconds, 1e-9)
        _say(
            f"{output}: {report.lines} lines, {report.failed} failed, {report.truncated} truncated; {seconds:.1f} s, "
            f"{report.lines / seconds:.1f} lines/s, {report.tokens / seconds:.0f} tokens/s"
        )


# -- evaluate ---------------------------------------------------------------------------------------------------------


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_generation(parser)
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


def _evaluate(args: argparse.Namespace) -> int:
    from . import scoring
    from .jobs import NewFile
    from .trainer.data import read_pairs, references

    if args.output and os.path.realpath(args.output) == os.path.realpath(args.data):
        raise ConfigError(f"--output {args.output} is the data")
    grouped = references(read_pairs(args.data))
    generator = _generator(args)
    options = _generation(args)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(NewFile(args.output, args.overwrite)) if args.output else None
        progress = stack.enter_context(_Progress(len(grouped), not args.quiet))
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


# -- train ------------------------------------------------------------------------------------------------------------


def _add_train(parser: argparse.ArgumentParser) -> None:
    from .trainer import TrainingConfig

    TrainingConfig.add_arguments(parser)


def _train(args: argparse.Namespace) -> int:
    from .trainer import Trainer, TrainingConfig

    result = Trainer(TrainingConfig.from_args(args)).train()
    if int(os.environ.get("RANK", 0)) == 0:
        best = result.best or {}
        scores = [f"{name} {best[key]:.3f}" for key, name in (("dev_loss", "loss"), ("bleu", "BLEU")) if best.get(key)]
        print(f"ended at update {result.step} ({result.reason}); checkpoints in {result.output}")
        if best:
            print(f"best at update {best['step']}" + (f": {', '.join(scores)} on dev" if scores else ""))
        if result.interrupted:
            print("--resume continues it")
    return 128 + signal.Signals[result.reason] if result.interrupted else 0


# -- info -------------------------------------------------------------------------------------------------------------


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="PATH", help='describe this model, too: folder or hub id, or "demo"')
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--check",
        nargs="*",
        metavar="OP",
        help="run the kernels of these operators (none named: of all) and compare them with their definitions",
    )


def _info(args: argparse.Namespace) -> int:
    import platform

    import torch

    from . import extension, ops

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found: dict[str, Any] = {
        "versions": {"bertgen": __version__, "python": platform.python_version(), **_library_versions()},
        "devices": {
            "cpu": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
            **{f"cuda:{i}": name for i, name in enumerate(gpus)},
        },
        "extension": {"C++": extension.absence() or "loaded"},
        "ops": dict(ops.explain("cuda" if gpus else "cpu")),
    }
    if args.model:
        found["model"] = _describe(args.model)
    failed = False
    if args.check is not None:
        found["check"], failed = _check(args.check, "cuda" if gpus else "cpu")
    if args.json:
        print(json.dumps(found))
        return int(failed)
    for title, rows in found.items():
        print(title)
        width = max(map(len, rows))
        for name, value in rows.items():
            print(f"  {name:<{width}}  {'none' if value is None else value}")
    return int(failed)


def _check(names: list[str], device: str) -> tuple[dict[str, str], bool]:
    """For each operator what came of the short run of its cases, and whether one failed."""
    import torch

    from .kernels.all_cases import CHECKS
    from .kernels.checks import trial
    from .kernels.language import HAS_TRITON, INTERPRETED

    for name in names:
        if name not in CHECKS:
            raise ConfigError(f"--check {name}: there are checks of {', '.join(CHECKS)}")
    if not HAS_TRITON or (device == "cpu" and not INTERPRETED):
        return {"none": "no kernel runs here, only definitions: nothing to compare"}, False
    dtypes = [torch.float32, torch.float16] + [torch.bfloat16] * (device == "cuda")  # Triton's interpreter has no last
    found, failed = {}, False
    for name, check in CHECKS.items():
        if names and name not in names:
            continue
        trials = [(case, dtype) for case in check.cases if case.core for dtype in dtypes]
        wrong = []
        for case, dtype in trials:
            try:
                problem = trial(check, case, dtype, torch.device(device))
            except Exception as error:  # a kernel that does not even run is what this looks for
                problem = f"{type(error).__name__}: {error}"
            if problem is not None:
                wrong.append(f"{case.name}, {str(dtype)[6:]}: {problem}")
        failed |= bool(wrong)
        found[name] = f"{len(trials)} cases, " + (f"{len(wrong)} wrong, such as {wrong[0]}" if wrong else "none wrong")
    return found, failed


def _library_versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in ("torch", "triton", "numpy", "sentencepiece", "safetensors", "huggingface_hub", "transformers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _describe(path_or_id: str) -> dict[str, Any]:
    """Shape, size and vocabulary of a model, from its configuration: the weights are not read."""
    import torch

    from .config import EncoderDecoderConfig
    from .hub import local_directory
    from .model import EncoderDecoderModel
    from .tokenizer import AutoTokenizer

    config = EncoderDecoderConfig.from_pretrained(path_or_id)
    with torch.device("meta"):
        model = EncoderDecoderModel(config)
    rows: dict[str, Any] = {}
    for name, half in (("encoder", config.encoder), ("decoder", config.decoder)):
        rows[name] = (
            f"{half.num_hidden_layers} layers, hidden {half.hidden_size}, {half.num_attention_heads} heads, "
            f"{half.max_tokens} positions, vocabulary {half.vocab_size}"
        )
    rows["encoder and decoder"] = "share their weights" if config.tie_encoder_decoder else "have weights of their own"
    rows["parameters"] = model.num_parameters()
    rows["dtype"] = config.extra.get("dtype") or config.extra.get("torch_dtype")
    directory = local_directory(path_or_id)
    if directory is not None:
        weights = [path for suffix in ("safetensors", "bin") for path in directory.glob(f"*.{suffix}")]
        rows["bytes on disk"] = sum(path.stat().st_size for path in weights)
    rows["tokenizer"] = f"{len(AutoTokenizer.from_pretrained(path_or_id))} tokens"
    return rows


# Command -> what does it, what adds its arguments, help, example.
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], Callable[[argparse.ArgumentParser], None], str, str]] = {
    "run": (
        _run,
        _add_run,
        "generate for texts, for lines of stdin, or for a file",
        'examples:\n  bertgen run --model demo "Where is the station?"\n'
        "  bertgen run --model demo --input in.jsonl --output out.jsonl --field en --output-field de --num-beams 4",
    ),
    "evaluate": (
        _evaluate,
        _add_evaluate,
        "BLEU, chrF and speed of a model on pairs of source and reference",
        "example:\n  bertgen evaluate --model demo --data test.tsv --num-beams 4",
    ),
    "train": (
        _train,
        _add_train,
        "train a model on pairs of source and target, from scratch or from a checkpoint",
        "example:\n  bertgen train --train train.tsv --dev dev.tsv --output model --epochs 10",
    ),
    "info": (
        _info,
        _add_info,
        "versions, devices, which backend each operator takes and why; a model's shape",
        "example:\n  bertgen info --model demo",
    ),
}
