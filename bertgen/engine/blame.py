"""Whose fault it is: functions that a request brought along may raise whatever they like."""

from __future__ import annotations

import functools
import threading
import time
from types import FrameType
from typing import Any

from ..errors import CallbackError
from ..memory import is_out_of_memory
from .request import Ticket


class Failed(Exception):
    """What a request brought along has failed.

    Attributes:
        error: what the request is answered with.
        called: a function of the request raised it.
        interrupt: what the thread that drives the engine has to raise besides: it is the one that gets Ctrl-C, and may
            have got it while the function ran.
    """

    def __init__(self, error: Exception, called: bool = False, interrupt: BaseException | None = None):
        super().__init__(str(error))
        self.error, self.called, self.interrupt = error, called, interrupt

    @classmethod
    def of_request(cls, error: Exception) -> Failed:
        """What was raised on behalf of some requests as their failure, unless it is that memory did not suffice."""
        if isinstance(error, Failed):
            return error
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise error
        return cls(error)

    @classmethod
    def by(cls, raised: BaseException) -> Failed:
        """The failure of a function that raised this."""
        if isinstance(raised, Exception):
            return cls(raised, called=True)
        error = CallbackError(f"a function of the request raised {raised!r}")
        error.__cause__ = raised
        main = threading.current_thread() is threading.main_thread()
        return cls(error, True, raised if main and isinstance(raised, (KeyboardInterrupt, SystemExit)) else None)


def let_go(error: BaseException) -> None:
    """Empty our own frames of a traceback: they would hold the tensors of a step for as long as somebody has the error.

    Those of a function of a request stay as they are, for whoever looks for its mistake.
    """
    traceback = error.__traceback__
    frame = None if traceback is None else traceback.tb_frame.f_back
    while frame is not None and _emptied(frame):
        frame = frame.f_back
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__", "").startswith("bertgen."):
            _emptied(traceback.tb_frame)
        traceback = traceback.tb_next


def _emptied(frame: FrameType) -> bool:
    """Whether a frame is not running any more, and empty now."""
    try:
        frame.clear()
    except RuntimeError:
        return False
    return True


def blamed(ticket: Ticket, function: Any) -> Any:
    """A function that a request brought along, if it did; what it raises is that request's error."""
    if function is None:
        return None

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        ticket.calling = time.monotonic()
        try:
            return function(*arguments)
        except BaseException as raised:
            raise Failed.by(raised) from raised
        finally:
            ticket.calling = None

    return call


def all_blamed(ticket: Ticket, functions: Any) -> Any:
    """A list of such functions."""
    if not isinstance(functions, (list, tuple)) or not all(map(callable, functions)):
        return functions  # whoever takes them says what is wrong
    return [blamed(ticket, function) for function in functions]
