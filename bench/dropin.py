"""A model of transformers before and after `bertgen.accelerate`, and bertgen's own class, on a CPU.

Three models with the same random weights take turns: transformers, transformers accelerated, and bertgen's own class.
`generate`: a padded batch of sources and 32 new tokens, greedy and with four beams; the tokens of all three must be
equal. `train`: forward, backward and a step of AdamW with dropout, on pairs of one length, of the lengths of real
texts, and of lengths with which half of all positions are padding; the losses without dropout must be equal.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bertgen.dropin.accelerate import accelerate
from bertgen.optional_imports import load_transformers

from . import output, workload
from .contenders import PURPOSE, Transformers
from .result import OURS, Row
from .workload import END, FIRST, PAD, START, Size, Tokens

ROWS, NEW, IGNORED = 8, 32, -100
OWN, THEIRS, FAST = f"{OURS}'s own class", "transformers", f"{OURS}: accelerated"
Batch = dict[str, torch.Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the texts."""
    output.add_arguments(parser)
    parser.add_argument("--size", choices=workload.SIZES, default="base", help="of the model (default: base)")
    parser.add_argument("--input", type=Path, metavar="FILE", help="as of `generate`")
    parser.add_argument("--only", choices=("generate", "train"), help="one of the two parts")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed turns (default: 5)")


def run(args: argparse.Namespace) -> int:
    """Print a table, and return the exit code."""
    load_transformers(PURPOSE)
    if args.input is None and workload.WIKISPLIT.exists():
        args.input = workload.WIKISPLIT
    result = output.begin("dropin", args, torch.device("cpu"))
    result.environment["input"] = "made-up ids and lengths" if args.input is None else args.input.name
    size, contenders = workload.SIZES[args.size], models(workload.SIZES[args.size])
    output.head()
    if args.only != "train":
        for rows in generated(contenders, *workload.texts(args.input, ROWS, size.vocabulary), args):
            output.add(result, rows)
    if args.only != "generate":
        training = batches(*workload.texts(args.input, 64, size.vocabulary), size.vocabulary)
        for rows in trained(contenders, training, args):
            output.add(result, rows)
    return output.end(result, args)


def models(size: Size) -> dict[str, Any]:
    """Contender -> model, all with the same weights."""
    ours = workload.build(size)
    contenders: dict[str, Any] = {FAST: None, THEIRS: None, OWN: ours}
    for name in (FAST, THEIRS):
        model = Transformers(ours).model
        for settings in (model.config, model.generation_config):
            settings.pad_token_id, settings.eos_token_id, settings.decoder_start_token_id = PAD, END, START
        contenders[name] = accelerate(model) if name == FAST else model
    return contenders


def generated(models: dict[str, Any], sources: Tokens, _: list[int], args: argparse.Namespace) -> Any:
    """Rows of `model.generate`, greedy and with beams."""
    ids = padded(sources, PAD)
    options = dict(input_ids=ids, attention_mask=(ids != PAD).long(), max_new_tokens=NEW, min_new_tokens=NEW)
    for beams in (1, 4):
        rows = [Row("dropin generate", {"model": args.size, "beams": beams}, name, unit="token") for name in models]
        tokens = {row.contender: models[row.contender].generate(**options, num_beams=beams) for row in rows}
        runs: dict[str, Callable[[], Any]] = {}
        for row in rows:
            row.amount = float(ROWS * NEW)
            if not torch.equal(tokens[row.contender], tokens[THEIRS]):
                row.wrong = "other tokens than transformers'"
                continue
            row.correct = "tokens equal"
            runs[row.contender] = lambda model=models[row.contender], n=beams: model.generate(**options, num_beams=n)
        yield timed(rows, runs, args.repeats)


def trained(models: dict[str, Any], cases: dict[str, Batch], args: argparse.Namespace) -> Any:
    """Rows of training steps; bertgen's own class is that of `bertgen bench train`."""
    models = {name: models[name] for name in (FAST, THEIRS)}
    losses = {case: {n: float(m(**batch).loss.detach()) for n, m in models.items()} for case, batch in cases.items()}
    for case, batch in cases.items():
        params = {"model": args.size, "lengths": case, "padding": f"{padding_of(batch):.0%}"}
        rows = [Row("dropin train", params, name, unit="token") for name in models]
        runs: dict[str, Callable[[], Any]] = {}
        for row in rows:
            own, theirs = losses[case][row.contender], losses[case][THEIRS]
            row.amount = float((batch["attention_mask"] != 0).sum() + (batch["labels"] != IGNORED).sum())
            if not abs(own - theirs) <= 1e-4 * theirs:
                row.wrong = f"loss {own}, transformers' is {theirs}"
                continue
            row.correct = f"loss {own:.4f}"
            runs[row.contender] = step_of(models[row.contender], batch)
        yield timed(rows, runs, args.repeats)


def step_of(model: Any, batch: Batch) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        model.train()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.eval()

    return step


def timed(rows: list[Row], runs: dict[str, Callable[[], Any]], repeats: int) -> list[Row]:
    """The rows with the seconds of their runs, which take turns; the first turn does not count."""
    for turn in range(repeats + 1):
        for row in rows:
            if row.contender in runs:
                start = time.perf_counter()
                runs[row.contender]()
                if turn:
                    row.seconds.append(time.perf_counter() - start)
    return rows


def padded(rows: Tokens, padding: int) -> torch.Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)


def batches(sources: Tokens, lengths: list[int], vocabulary: int) -> dict[str, Batch]:
    """Name -> batch: pairs of one length, of real lengths, and of lengths of which one is far longer."""
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randint(FIRST, vocabulary, (n,), generator=generator).tolist() for n in lengths]
    pairs = [(s, t) for s, t in zip(sources, targets) if len(s) >= 24 and len(t) >= 24][:ROWS]
    lengthened = {"one": [64] * ROWS, "one long": [96] + [41] * (ROWS - 1)}
    cut = {name: [((s * n)[:n], (t * n)[:n]) for (s, t), n in zip(pairs, ns)] for name, ns in lengthened.items()}
    return {
        name: _batch(some) for name, some in {"one": cut["one"], "real": pairs, "one long": cut["one long"]}.items()
    }


def _batch(pairs: list[tuple[list[int], list[int]]]) -> Batch:
    ids = padded([source for source, _ in pairs], PAD)
    labels = padded([target for _, target in pairs], IGNORED)
    return dict(input_ids=ids, attention_mask=(ids != PAD).long(), labels=labels)


def padding_of(batch: Batch) -> float:
    """The share of padding in source and target positions."""
    real = int(batch["attention_mask"].sum()) + int((batch["labels"] != IGNORED).sum())
    return 1 - real / (batch["attention_mask"].numel() + batch["labels"].numel())
