"""`bertgen evaluate`: BLEU, chrF and speed on pairs of source and reference."""

from __future__ import annotations

import argparse
import contextlib
import json
import time

from ..errors import InputError
from .console import Progress, print_message
from .exit_codes import FAILED_LINES
from .options import add_generation, add_model, generation_options, make_generator
from .parser import as_typed
from .records import add_writing, check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the pairs to judge it on."""
    add_model(parser, several_devices=True)
    add_generation(parser)
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="source TAB reference; lines with the same source are references of one another",
    )
    group.add_argument("--output", metavar="FILE", help="write the outputs, one line per different source")
    add_writing(group)
    group.add_argument("--json", action="store_true", help="print JSON")
    group.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Print the scores, and return the exit code."""
    from .. import metrics
    from ..files.atomic import NewFile
    from ..files.line_formats import read_numbered_pairs
    from ..jobs.report import MESSAGES

    check_output(args)
    grouped: dict[str, list[str]] = {}
    lines: dict[str, int] = {}  # of each source, where it stands first
    failures: list[tuple[int, str]] = []  # line and message

    def fail(line: int, error: Exception) -> None:
        failures.append((line, f"{args.data}, line {line}: {error}"))
        if args.strict:
            raise InputError(failures[0][1]) from error

    for number, pair in read_numbered_pairs(args.data):
        if isinstance(pair, InputError):
            fail(number, pair)
        else:
            source, target = pair
            grouped.setdefault(source, []).append(target)
            lines.setdefault(source, number)
    if not grouped:
        raise InputError(failures[0][1] if failures else f"{args.data}: no pairs")
    generator = make_generator(args)
    options = generation_options(args, generator)
    sources = list(grouped)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(NewFile(args.output, args.overwrite)) if args.output else None
        progress = stack.enter_context(Progress(len(sources), not args.quiet))
        outputs: list[str | None] = [None] * len(sources)  # None of one that could not be used
        tokens, start = 0, time.monotonic()
        stream = generator.stream(sources, lookahead=len(sources), return_errors=True, **options)
        for done, (index, output) in enumerate(stream, 1):
            if output.error is not None:
                fail(lines[sources[index]], output.error)
            else:
                outputs[index] = " ".join(output.text.split())
                tokens += len(output.token_ids)
            progress.update(done, done, tokens)
        seconds = time.monotonic() - start
        judged = [(text, grouped[source]) for text, source in zip(outputs, sources, strict=True) if text is not None]
        if not judged:
            raise InputError(f"no line can be used; {min(failures)[1]}")
        if file:
            file.write("".join(f"{text or ''}\n" for text in outputs).encode())
    texts, targets = [text for text, _ in judged], [targets for _, targets in judged]
    bleu, chrf = (score(texts, targets) for score in (metrics.bleu, metrics.chrf))
    result = {
        "bleu": bleu.value,
        "bleu_signature": bleu.signature,
        "chrf": chrf.value,
        "chrf_signature": chrf.signature,
        "sentences": len(judged),
        "references": sum(map(len, targets)),
        "failed": len(failures),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "dtype": str(generator.model.dtype).removeprefix("torch."),
    }
    for _, message in sorted(failures)[:MESSAGES]:
        print_message(as_typed(message, args.flags))
    if failures:
        print_message(f"{len(failures)} lines could not be used, and are not in the scores")
    code = FAILED_LINES if failures else 0
    if args.json:
        print(json.dumps(result))
        return code
    print(f"BLEU {bleu.value:.2f}  {bleu.signature}")
    print(f"chrF {chrf.value:.2f}  {chrf.signature}")
    print(
        f"{len(judged)} sentences with {result['references']} references; {tokens} tokens in {seconds:.1f} s: "
        f"{len(judged) / seconds:.1f} sentences/s, {tokens / seconds:.0f} tokens/s in {result['dtype']}"
    )
    return code
