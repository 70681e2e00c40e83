"""Training runs of tiny models: the data, the options, and what a run has written."""

import dataclasses
import json
import os
import random
import subprocess
import sys

import pytest
import torch

from bertgen.trainer import TrainingConfig, state


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Four to six words, each place with three words of its own, translated one by one: needs cross-attention."""
    rng = random.Random(seed)
    sources = [[rng.randrange(place, place + 3) for place in range(0, 3 * rng.randint(4, 6), 3)] for _ in range(count)]
    return [tuple(" ".join(chr(first + i) for i in words) for first in (ord("A"), ord("a"))) for words in sources]


def write(path, pairs):
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    return str(path)


def config(data, output, **options) -> TrainingConfig:
    tiny = dict(
        vocab_size=42, max_length=16, layers=1, hidden=32, heads=2, intermediate=64, positions=16, batch_tokens=256,
        learning_rate=5e-3, warmup_steps=20, average=0.9, evaluate_every=4, bleu_sentences=0, quiet=True, device="cpu",
    )  # fmt: skip
    return TrainingConfig(**{**data, **tiny, "output": str(output), **options})


def history(output) -> list[dict]:
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


def weights(output) -> dict[str, torch.Tensor]:
    """All tensors of a saved training state by name: weights, their average and the optimizer's moments."""
    saved = state.load_state(output / "state.pt")
    tensors = {f"{part}.{name}": value for part in ("model", "average") for name, value in saved[part].items()}
    for number, moments in saved["optimizer"]["state"].items():
        tensors.update({f"optimizer.{number}.{name}": value for name, value in moments.items()})
    return tensors


def assert_same_state(one, other):
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys() and len(left) > 50
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


PROCESS = """
import json, sys, torch
from bertgen.trainer import Trainer, TrainingConfig
torch.set_num_threads(1)
Trainer(TrainingConfig(**json.loads(sys.argv[1]))).train()
"""


def start(options: TrainingConfig, **environment: str) -> subprocess.Popen:
    """Train in another process."""
    command = [sys.executable, "-c", PROCESS, json.dumps(dataclasses.asdict(options))]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def step_of(output) -> int:
    return state.load_state(output / "state.pt")["step"] if (output / "state.pt").exists() else 0


def gradients(trainer, plan, share):
    """The gradients that the optimizer would get for an update on `share`."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        step = lambda: found.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})  # noqa: E731
        patch.setattr(trainer.optimizer, "step", step)
        trainer._update(plan, share)
    return found
