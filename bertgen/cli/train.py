"""`bertgen train`: train a model on pairs of source and target."""

from __future__ import annotations

import argparse
import os
import signal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fields of TrainingConfig."""
    from ..trainer import TrainingConfig

    TrainingConfig.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train, and return the exit code."""
    from ..trainer import Trainer, TrainingConfig

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
