"""The training loop."""

from __future__ import annotations

import copy
import math
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import BackendError, BertgenError, ConfigError
from ..files.atomic import atomic_directory, output_errors, recover_directory
from ..files.line_formats import read_pairs
from ..model.devices import resolve_device
from ..ops.slow_paths import report_slow_paths
from ..optional_imports import load_matplotlib
from ..tokenizer import AutoTokenizer
from . import state
from .data import Corpus, dropout_seed, shares
from .distributed import Interrupt, ProcessGroup
from .evaluation import dev_bleu, dev_loss
from .initialization import make_model, write_tokenizer
from .optimization import cross_entropy, learning_rate, make_optimizer, update_average
from .options import TrainingConfig
from .report import Progress, write_curve, write_history

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    `reason` is the option that ended it ("steps", "epochs", "max_minutes", "decay_steps") or the name of a signal;
    `best` is the history's row of the best evaluation, None before the first.
    """

    reason: str
    step: int
    best: dict[str, Any] | None
    skipped: int
    output: Path

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the run; `resume` continues it."""
        return self.reason.startswith("SIG")


class Trainer:
    """Trains an encoder-decoder as a `TrainingConfig` says; under `torchrun`, one of its processes."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.output = Path(config.output)
        self.device = self._device()
        self.precision = self._precision()
        self.processes = ProcessGroup(self.device)
        self.first = self.processes.rank == 0

    def _device(self) -> torch.device:
        device = resolve_device(self.config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
            torch.cuda.set_device(device)
        return device

    def _precision(self) -> torch.dtype:
        if self.config.precision != "auto":
            return DTYPES[self.config.precision]
        if self.device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16

    def train(self) -> TrainingResult:
        """Train until a stop condition or a signal; write `best`, `last`, the history, the curve and the state.

        Raises:
            ConfigError: options that do not fit each other, the data or the run that is resumed.
            InputError: a training or development file that cannot be used; the message names the line.
            CheckpointError: no usable model, tokenizer or training state.
            BertgenError: the loss is no longer a finite number.
        """
        if self.first:
            report_slow_paths(self.device)  # before the work: evaluations generate
        devices = [self.device] if self.device.type == "cuda" else []
        progress = Progress(self.config, quiet=self.config.quiet or not self.first)
        with torch.random.fork_rng(devices), self.processes.joined(), Interrupt() as self.interrupt, progress:
            self.progress = progress
            self._prepare()
            reason = self._run()
            if self.first:
                self._save(final=True)
            result = TrainingResult(reason, self.step, self.best, self.corpus.skipped, self.output)
            if not result.interrupted:
                progress.finish()
        return result

    def _prepare(self) -> None:
        """Make everything that the loop needs, new or from the saved state."""
        config = self.config
        saved = state.load_state(self.output / "state.pt") if config.resume else None
        if self.first:
            self._claim_output()
            self.draws = self._draws()
        pairs = read_pairs(config.train, config.source_column, config.target_column)
        dev_pairs = read_pairs(config.dev, config.source_column, config.target_column) if config.dev else []
        if self.first and not config.resume:
            self.progress.say("preparing the vocabulary")
            write_tokenizer(config, pairs, self.output)
        self.processes.wait()
        self.tokenizer = AutoTokenizer.from_pretrained(self.output)
        (vocabulary, *_) = self.tokenizer.VOCABULARY_FILES[0].values()
        self.identity = {
            **config.fixed(),
            "batches per update": config.accumulation * self.processes.world,
            "SHA-256 of train": state.digest(config.train),
            "SHA-256 of dev": state.digest(config.dev) if config.dev else None,
            "SHA-256 of the vocabulary": state.digest(self.output / vocabulary),
        }
        del self.identity["accumulation"]
        if saved:
            state.check_same_run(saved["identity"], self.identity)
        torch.manual_seed(config.seed)
        self.model = make_model(config, self.tokenizer).to(self.device)
        self.corpus = Corpus(pairs, self.tokenizer, config.max_length, self.model.config, config.train)
        self.dev = None
        if config.dev:
            self.dev = Corpus(dev_pairs, self.tokenizer, config.max_length, self.model.config, config.dev)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False) if config.average else self.model
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.step = self.epoch = self.next_batch = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        # Loss and labels since the last evaluation, on the device so that no update waits for the sum.
        self.loss_sum = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.started = time.monotonic()
        if saved:
            self._restore(saved)
        elif self.first:
            self._save()  # from here on a killed run can be resumed
        self.saved_at = time.monotonic()
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        self.progress.say(
            f"{len(self.corpus)} training pairs (skipped: {self.corpus.skipped} above {config.max_length} pieces), "
            + (f"{len(self.dev)} development pairs (skipped: {self.dev.skipped}), " if self.dev else "")
            + f"{size:.2f} M parameters on {self.device} in {str(self.precision).removeprefix('torch.')}"
            + (f", resumed at update {self.step}" if saved else "")
        )
        self.progress.restart()

    def _claim_output(self) -> None:
        for name in ("best", "last"):
            recover_directory(self.output / name)
        present = [name for name in ("state.pt", "best", "last") if (self.output / name).exists()]
        if present and not self.config.resume:
            raise ConfigError(
                f"output={self.config.output!r} holds {present[0]} of another run: resume continues it, or take "
                "another folder"
            )
        with output_errors(self.output):
            self.output.mkdir(parents=True, exist_ok=True)

    def _draws(self) -> bool:
        """Whether evaluations draw the curve; says so where they do not."""
        try:
            load_matplotlib("the picture")
        except BackendError as error:
            self.progress.say(f"loss.png is not drawn: {error}")
            return False
        return True

    def _restore(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        if self.average is not self.model:
            self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.loss_sum.copy_(saved["loss_sum"])
        for name in ("step", "epoch", "next_batch", "seconds", "history", "best"):
            setattr(self, name, saved[name])

    def _save(self, final: bool = False) -> None:
        """Write the training state and, at the end of a run, the model of the last update."""
        if final:
            self._save_model("last")
        state.save_state(
            self.output / "state.pt",
            {
                "identity": self.identity,
                "model": self.model.state_dict(),
                "average": self.average.state_dict() if self.average is not self.model else None,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "loss_sum": self.loss_sum.cpu(),
                "step": self.step,
                "epoch": self.epoch,
                "next_batch": self.next_batch,
                "seconds": self._elapsed(),
                "history": self.history,
                "best": self.best,
            },
        )
        self.saved_at = time.monotonic()

    def _save_model(self, name: str) -> None:
        """Write a complete checkpoint of the averaged weights."""
        model = copy.deepcopy(self.average).to(DTYPES[self.config.save_dtype])

        with atomic_directory(self.output / name) as directory:
            model.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started

    def _run(self) -> str:
        """Update, evaluate and save until there is a reason to stop; return it."""
        while True:
            plan = self.corpus.plan(self.config.batch_tokens, f"{self.config.seed}/{self.epoch}")
            for share in shares(len(plan), self.config.accumulation * self.processes.world):
                if share.start < self.next_batch:
                    continue
                self.next_batch = share.start
                self.position = self.epoch + share.start / len(plan)
                reason = self._reason()
                if self.first:
                    self._evaluate_and_save_if_due(reason)
                if reason:
                    return reason
                self._update(plan, share)
            self.epoch, self.next_batch = self.epoch + 1, 0

    def _reason(self) -> str | None:
        """Return why training ends before the next update, the same in all processes, or None."""
        config = self.config
        overtime = config.max_minutes is not None and self._elapsed() >= 60 * config.max_minutes
        number, late = self.processes.agree(self.interrupt.number, overtime)
        if number:
            return signal.Signals(number).name
        for name, value in (("steps", self.step), ("decay_steps", self.step), ("epochs", self.epoch)):
            limit = getattr(config, name)
            if limit is not None and value >= limit:
                return name
        return "max_minutes" if late else None

    def _done(self) -> float:
        """Return the finished part of the run, from 0 to 1."""
        config = self.config
        ends = (
            (self.step, config.steps),
            (self.step, config.decay_steps),
            (self.position, config.epochs),
            (self._elapsed() / 60, config.max_minutes),
        )
        return min(1.0, max(value / limit for value, limit in ends if limit))

    def _evaluate_and_save_if_due(self, reason: str | None) -> None:
        """Evaluate and save where it is due."""
        interrupted = reason is not None and reason.startswith("SIG")
        due = self.step % self.config.evaluate_every == 0 or reason is not None
        evaluated = self.history[-1]["step"] if self.history else 0
        if due and not interrupted and self.step > evaluated:
            self._evaluate()
        if time.monotonic() - self.saved_at >= 60 * self.config.save_minutes:
            self._save()

    def _update(self, plan: list[np.ndarray], share: range) -> None:
        """Take one step on the batches of `share`, of which this process computes its part."""
        config = self.config
        labels = sum(self.corpus.target_tokens(plan[i]) for i in share)
        loss = torch.zeros((), dtype=torch.float32, device=self.device)
        for i in share[self.processes.rank :: self.processes.world]:
            torch.manual_seed(dropout_seed(config.seed, self.epoch, i))
            batch = self.corpus.batch(plan[i], self.device)
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                logits, targets = self.model.target_logits(*batch)
            smoothed, plain = cross_entropy(logits, targets, config.label_smoothing)
            self.scaler.scale(smoothed / labels).backward()
            loss += plain
        loss = self.processes.sum_gradients(self.model, loss)
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        if config.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if config.average:
            update_average(self.average, self.model, config.average, self.step)

        self.loss_sum += torch.stack((loss, loss.new_tensor(labels)))
        pairs = sum(len(plan[i]) for i in share)
        tokens = labels + sum(self.corpus.source_tokens(plan[i]) for i in share)
        if self.progress.count(pairs, tokens, labels, loss):
            self.progress.show(self.step, self.epoch, self._done(), self._elapsed())

    def _evaluate(self) -> None:
        """Evaluate the averaged weights, save them if they are the best so far, and write the history and the curve."""
        config, model = self.config, self.average
        loss, labels = self.loss_sum.tolist()
        self.loss_sum.zero_()
        if not math.isfinite(loss):
            raise BertgenError(f"the training loss is {loss} at update {self.step}: try a lower learning_rate")
        row = {
            "step": self.step,
            "epoch": round(self.position, 4),
            "loss": loss / labels,
            "learning_rate": learning_rate(self.step, config),
            "dev_loss": None,
            "bleu": None,
        }
        model.eval()
        if self.dev:
            row["dev_loss"] = dev_loss(model, self.dev, config.batch_tokens, self.device)
            if config.bleu_sentences:
                row["bleu"] = dev_bleu(model, self.tokenizer, self.dev, config.bleu_sentences, config.batch_tokens)
        if model is self.model:
            model.train()
        row["seconds"] = round(self._elapsed(), 1)
        self.history.append(row)
        if self.best is None or rank(row) > rank(self.best):
            self.best = row
            self._save_model("best")
        write_history(self.output / "history.jsonl", self.history)
        if self.draws:
            write_curve(self.output / "loss.png", self.history, averaged=config.average > 0)
        self.progress.say(describe(row) + (", the best so far" if row is self.best else ""))
        self.progress.restart()


def rank(row: dict[str, Any]) -> tuple[float, float]:
    """Order evaluations: by BLEU, then by development loss, or by training loss where there is no development set."""
    return row["bleu"] or 0.0, -(row["loss"] if row["dev_loss"] is None else row["dev_loss"])


def describe(row: dict[str, Any]) -> str:
    """Return an evaluation as a line of text."""
    text = f"evaluation at update {row['step']}: loss {row['loss']:.4f}"
    if row["dev_loss"] is not None:
        text += f", dev loss {row['dev_loss']:.4f}"
    if row["bleu"] is not None:
        text += f", dev BLEU {row['bleu']:.2f}"
    return text
