"""Whose fault it is: functions that a request brought along may raise whatever they like."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

from ..errors import CallbackError, InputError, quoted
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
        super().__init__()  # not with the error's text, whose own code may fail
        self.error, self.called, self.interrupt = error, called, interrupt

    @classmethod
    def of_request(cls, raised: BaseException) -> Failed:
        """What was raised on behalf of some requests as their failure, unless it is the matter of the thread that
        drives: an interrupt, its stack, or that memory did not suffice."""
        if isinstance(raised, Failed):
            return raised
        if isinstance(raised, RecursionError) or (_is_main() and isinstance(raised, (KeyboardInterrupt, SystemExit))):
            raise raised
        if isinstance(raised, RuntimeError) and is_out_of_memory(raised):
            raise raised
        return cls(_answer(raised))

    @classmethod
    def by(cls, raised: BaseException) -> Failed:
        """The failure of a function that raised this."""
        interrupt = _is_main() and isinstance(raised, (KeyboardInterrupt, SystemExit))
        return cls(_answer(raised), True, raised if interrupt else None)


def _is_main() -> bool:
    """Whether this is the thread that gets Ctrl-C."""
    return threading.current_thread() is threading.main_thread()


def _answer(raised: BaseException) -> Exception:
    """The error of a request whose function raised this: no end of a thread, nor of an iterator that waits for it."""
    if isinstance(raised, Exception) and not isinstance(raised, (StopIteration, StopAsyncIteration)):
        return raised
    error = CallbackError(f"a function of the request raised {quoted(raised)}")
    error.__cause__ = raised
    return error


def let_go(error: BaseException) -> None:
    """Empty our own frames of a traceback: they would hold the tensors of a step for as long as somebody has the error.

    Those of a function of a request stay as they are, for whoever looks for its mistake.
    """
    traceback = BaseException.__traceback__.__get__(error)  # type: ignore[attr-defined]  # a class may hide its own
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
            return _read(function(*arguments))
        except BaseException as raised:
            raise Failed.by(raised) from raised
        finally:
            ticket.calling = None

    return call


def _read(found: Any) -> Any:
    """What a function returned without code of its own, which would run later, where others are."""
    if isinstance(found, torch.Tensor) and type(found) is not torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            found = found.as_subclass(torch.Tensor)
        if type(found) is not torch.Tensor:
            raise InputError(f"a function of the request returned a {type(found).__name__}, which is no plain tensor")
    return [*found] if isinstance(found, Iterator) else found


def all_blamed(ticket: Ticket, functions: Any) -> Any:
    """A list of such functions."""
    if not isinstance(functions, (list, tuple)) or not all(map(callable, functions)):
        return functions  # whoever takes them says what is wrong
    return [blamed(ticket, function) for function in functions]
