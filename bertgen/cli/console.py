"""Output of the commands on stderr: messages and a progress bar."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from typing import Any, TextIO

BAR_SECONDS = 2.0  # seconds of work before a progress bar appears
LOG_SECONDS = 30.0  # between two lines of progress where there is no terminal


def print_message(message: str) -> None:
    """Print a message under the program's name; a stderr that cannot be written changes no exit code."""
    try:
        print(f"bertgen: {message}", file=sys.stderr, flush=True)
    except OSError:
        silence_if_broken(sys.stderr)


def silence_if_broken(stream: TextIO) -> bool:
    """Whether a stream cannot be written; it then goes to /dev/null, so that Python does not fail on it at exit."""
    try:
        stream.flush()
        return False
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return True


class Progress:
    """Rates and the time left, on stderr: a bar at a terminal, for more than some seconds, else now and then a line.

    Args:
        total: amount of work in any unit; None where it is unknown.
        shown: False for nothing at all.
    """

    def __init__(self, total: float | None, shown: bool):
        self.total, self.shown, self.start = total, shown, time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.last_line = self.start
        self.bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, done: float, lines: int, tokens: int) -> None:
        """Show the progress: the finished part of the total, and the numbers of lines and tokens."""
        now = time.monotonic()
        seconds = now - self.start
        if not self.shown or (seconds < BAR_SECONDS if self.terminal else now - self.last_line < LOG_SECONDS):
            return
        note = f"{lines} lines, {lines / seconds:.1f} lines/s, {tokens / seconds:.0f} tokens/s"
        if self.total and done:
            note += f", {timedelta(seconds=round(seconds * (self.total - done) / done))} left"
        if not self.terminal:
            self.last_line = now
            print_message(f"{100 * done / self.total:.0f}%, {note}" if self.total else note)
            return
        if self.bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}"))
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.add_task("", total=self.total, note="")
            self.bar.start()
        self.bar.update(0, completed=done, note=note)
