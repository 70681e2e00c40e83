"""What the commands say on stderr: messages, and a progress bar."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

PATIENCE = 2.0  # seconds of work before a progress bar appears


def say(message: str) -> None:
    """Print a message under the program's name."""
    print(f"bertgen: {message}", file=sys.stderr, flush=True)


class Progress:
    """A bar on stderr with rates and the time left, for work of more than some seconds at a terminal; else nothing.

    Args:
        total: amount of work in any unit; None where it is unknown.
        shown: False for nothing at all.
    """

    def __init__(self, total: float | None, shown: bool):
        self.total, self.shown, self.start = total, shown and sys.stderr.isatty(), time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Progress:
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
