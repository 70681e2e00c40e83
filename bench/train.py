"""A training step of bertgen and of transformers: forward, backward and AdamW, with the same weights and texts.

First the loss and the norm of its gradient are compared without dropout: they must be equal up to rounding, else the
run fails. Timed steps have the model's dropout. Batches are padded and masked; labels of padding are ignored. Each
engine has its own process; its peak memory includes weights, gradients and the state of the optimizer.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bertgen.errors import BackendError

from . import generate, memory, output, workload
from .child import Child
from .contenders import Transformers
from .result import OURS, Row
from .workload import PAD, Plan, Tokens

ENGINES = (OURS, "transformers sdpa", "transformers eager")
IGNORED = -100  # label of an ignored position
ROUNDING = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}  # relative, of the loss and the gradient


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the batches."""
    output.add_arguments(parser, device=True)
    generate.add_model(parser)
    parser.add_argument("--input", type=Path, metavar="FILE", help="as of `generate`")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32], metavar="N", help="default: 8 32")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="timed steps (default: 5)")


def run(args: argparse.Namespace) -> int:
    """Print a table, and return the exit code."""
    if args.input is None and workload.WIKISPLIT.exists():
        args.input = workload.WIKISPLIT
    device = torch.device(args.device)
    result = output.begin("train", args, device)
    name, plan = generate.plan(args)
    if args.dtype is None and args.device == "cuda":
        plan = plan._replace(dtype="bfloat16")  # in float16 gradients may overflow
    result.environment["input"] = "made-up ids and lengths" if args.input is None else args.input.name
    result.environment["dtype"] = plan.dtype
    output.head()
    for batch in args.batches:
        sources, lengths = workload.texts(args.input, batch, plan.size.vocabulary, args.model or "demo")
        targets = [(source * 4)[:n] for source, n in zip(sources, lengths)]
        output.add(result, compared(name, plan, sources, targets, args.steps))
    return output.end(result, args)


def compared(name: str, plan: Plan, sources: Tokens, targets: Tokens, steps: int) -> list[Row]:
    """One row per engine; they take turns."""
    tokens = sum(map(len, sources)) + sum(map(len, targets))
    rows, trainers, expected = [], {}, None
    for engine in ENGINES:
        row = Row("train", {"model": name, "batch": len(sources)}, engine, amount=tokens, unit="token")
        rows.append(row)
        try:
            trainer = Child(Trainer, engine, plan, sources, targets)
        except BackendError as error:
            row.absent = str(error)
            continue
        measured = trainer.call("checked")
        expected = expected or measured
        apart = max(abs(a - b) / abs(b) for a, b in zip(measured, expected))
        if not apart <= ROUNDING[plan.dtype]:
            row.wrong = f"loss and gradient norm {measured}, bertgen's are {expected}"
            trainer.close()
            continue
        row.correct = f"loss {measured[0]:.4f} and gradient equal to {apart:.0e}"
        trainers[engine] = trainer
    for turn in range(steps + 1):  # the first step creates the state of the optimizer
        for row in rows:
            if row.contender in trainers:
                seconds, loaded, peak = trainers[row.contender].call("step")
                if turn:
                    row.seconds.append(seconds)
                    row.extra = {"loaded": loaded, "peak": max(peak or 0, row.extra.get("peak") or 0) or None}
    for trainer in trainers.values():
        trainer.close()
    return rows


class Trainer:
    """A model with an optimizer and one batch."""

    def __init__(self, engine: str, plan: Plan, sources: Tokens, targets: Tokens):
        model = plan.build()
        if engine != OURS:
            model = Transformers(model, engine.split()[1]).model
            model.config.decoder_start_token_id, model.config.pad_token_id = workload.START, PAD
        self.model, self.device = model, torch.device(plan.device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        ids, labels = (
            nn.utils.rnn.pad_sequence([torch.tensor(x) for x in side], batch_first=True, padding_value=fill)
            for side, fill in ((sources, PAD), (targets, IGNORED))
        )
        self.batch: dict[str, Any] = {
            "input_ids": ids.to(self.device), "attention_mask": (ids != PAD).long().to(self.device),
            "labels": labels.to(self.device),
        }  # fmt: skip

    def checked(self) -> tuple[float, float]:
        """The loss and the norm of its gradient, without dropout."""
        self.model.eval()
        loss = self.model(**self.batch).loss
        loss.backward()
        squares = [p.grad.double().square().sum() for p in self.model.parameters() if p.grad is not None]
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        return loss.item(), float(torch.stack(squares).sum().sqrt())

    def step(self) -> tuple[float, int | None, int | None]:
        """Seconds of one step; bytes allocated before it, and at most during it."""
        loaded = memory.reset(self.device)
        start = time.perf_counter()
        self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start, loaded, memory.peak(self.device)
