"""Progress of a call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ..config.validators import check_callable, check_flag


@contextlib.contextmanager
def progress_callback(
    progress: bool | Callable[[int, int], Any] | None, total: int
) -> Iterator[Callable[[int, int], Any]]:
    """Yields the progress callback, a function of (done, total): the user's, that of a bar on stderr, or an empty one.

    Raises:
        ConfigError: `progress` is neither a bool nor a function.
    """
    if callable(progress):
        yield check_callable(progress, "progress")
        return
    if progress is None or not check_flag(progress, "progress, where it is no function,"):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, total: bar.update(task, completed=done)
