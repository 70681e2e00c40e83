"""Reports of a run: the history, the loss curve and the progress."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..files.atomic import atomic_write, write_file
from .options import TrainingConfig


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Write one JSON object per evaluation."""
    write_file(path, "".join(json.dumps(row) + "\n" for row in history).encode())


def write_curve(path: Path, history: list[dict[str, Any]], averaged: bool) -> None:
    """Draw losses, and BLEU where there is one, over the updates.

    Args:
        averaged: the development loss is that of averaged weights.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [row["step"] for row in history]
    scored = [row for row in history if row["bleu"] is not None]
    figure = Figure(figsize=(7, 7 if scored else 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 if scored else 1, sharex=True, squeeze=False)[:, 0]
    panels[0].plot(steps, [row["loss"] for row in history], ".-", label="training pairs, with dropout")
    if history[-1]["dev_loss"] is not None:
        panels[0].plot(
            steps,
            [row["dev_loss"] for row in history],
            ".-",
            label="development pairs, averaged weights" if averaged else "development pairs",
        )
    panels[0].set(title="Loss per target piece (nats, without label smoothing)", ylabel="cross-entropy")
    panels[0].legend()
    if scored:
        best = max(scored, key=lambda row: row["bleu"])
        panels[1].plot([row["step"] for row in scored], [row["bleu"] for row in scored], ".-", color="tab:green")
        panels[1].plot(best["step"], best["bleu"], "o", color="tab:green", label=f"best: {best['bleu']:.1f}")
        panels[1].set(title="BLEU of greedy translations of development sentences", ylabel="BLEU", ylim=(0, None))
        panels[1].legend(loc="lower right")
    for panel in panels:
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("updates")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds as 1:02:03."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


class Progress:
    """A progress bar on a terminal, else a line on stderr every `log_seconds`; nothing when quiet."""

    def __init__(self, config: TrainingConfig, quiet: bool) -> None:
        self.quiet = quiet
        self.interval = config.log_seconds
        self.bar = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("training", total=1.0, note="")
            self.interval = 1.0
        self.restart()

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def finish(self) -> None:
        """Fill the bar: the run reached its end."""
        if self.bar:
            self.bar.update(self.task, completed=1.0)

    def restart(self) -> None:
        """Begin a new window for the rates and the loss that are shown."""
        self.since, self.pairs, self.tokens, self.labels = time.monotonic(), 0, 0, 0
        self.loss: torch.Tensor | float = 0.0

    def say(self, message: str) -> None:
        """Write a line."""
        if self.bar:
            self.bar.console.print(message, highlight=False, markup=False)
        elif not self.quiet:
            sys.stderr.write(message + "\n")
            sys.stderr.flush()

    def count(self, pairs: int, tokens: int, labels: int, loss: torch.Tensor) -> bool:
        """Count the work of an update, `loss` summed over its labels; true when it is time to `show`."""
        self.pairs += pairs
        self.tokens += tokens
        self.labels += labels
        self.loss = self.loss + loss  # stays on the device: no update waits for it
        return not self.quiet and time.monotonic() - self.since >= self.interval

    def show(self, step: int, epoch: int, done: float, seconds: float) -> None:
        """Show where the run stands: `done` is the finished part of it, `seconds` the time it took."""
        elapsed = time.monotonic() - self.since
        note = (
            f"update {step}, epoch {epoch + 1}, loss {float(self.loss) / self.labels:.3f}, "
            f"{self.pairs / elapsed:.0f} pairs/s, {self.tokens / elapsed:.0f} pieces/s, "
            f"{clock(seconds * (1 - done) / done) if done else '?'} left"
        )
        if self.bar:
            self.bar.update(self.task, completed=done, note=note)
        else:
            self.say(f"{clock(seconds)} {100 * done:.0f}% {note}")
        self.restart()
