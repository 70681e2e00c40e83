"""The process that engines live in: it may end at any time, and it may be the child of a fork."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol


class Inhabitant(Protocol):
    """What has to know of its process."""

    def forked(self) -> None:
        """This is the child of a fork: no thread but this one is there, and locks may be held by those that are not."""

    def ends(self) -> None:
        """The interpreter is about to end: from now on no other thread may be inside of torch."""


_inhabitants: weakref.WeakSet[Inhabitant] = weakref.WeakSet()
_registered = False


def inhabit(one: Inhabitant) -> None:
    """Tell something of the end of the process and of forks, as long as it is there."""
    global _registered
    if not _registered:  # with the first one, and not when this is imported
        _registered = True
        atexit.register(_end)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_fork)
    _inhabitants.add(one)


def _end() -> None:
    for one in [*_inhabitants]:
        one.ends()


def _fork() -> None:
    for one in [*_inhabitants]:
        one.forked()
