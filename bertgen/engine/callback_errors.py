"""Attribute the exceptions of callbacks to the request that brought them."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

from ..errors import CallbackError, InputError, quoted
from ..out_of_memory import is_out_of_memory
from .request import Request


class RequestFailure(Exception):
    """A request has failed.

    Attributes:
        error: becomes the request's error.
        by_callback: a callback of the request raised it.
        interrupt: raised in the thread that steps as well. The main thread receives Ctrl-C, which may have arrived
            while the callback ran.
    """

    def __init__(self, error: Exception, by_callback: bool = False, interrupt: BaseException | None = None):
        super().__init__()  # without the error's text: its `__str__` may be a user's and fail
        self.error, self.by_callback, self.interrupt = error, by_callback, interrupt

    @classmethod
    def of_step(cls, raised: BaseException) -> RequestFailure:
        """The failure of the requests for which a part of a step raised this.

        Raises:
            the exception itself where it concerns the thread that steps: an interrupt, its stack, out of memory. An
                interrupt is whatever is no Exception: callbacks are `guarded`, so a signal handler has raised it.
        """
        if isinstance(raised, RequestFailure):
            return raised
        if isinstance(raised, RecursionError) or (_is_main() and not isinstance(raised, Exception)):
            raise raised
        if isinstance(raised, RuntimeError) and is_out_of_memory(raised):
            raise raised
        return cls(_as_request_error(raised))

    @classmethod
    def of_callback(cls, raised: BaseException) -> RequestFailure:
        """The failure of a request whose callback raised this."""
        is_interrupt = _is_main() and isinstance(raised, (KeyboardInterrupt, SystemExit))
        return cls(_as_request_error(raised), True, raised if is_interrupt else None)


def _is_main() -> bool:
    """Whether this is the thread that runs signal handlers, that of Ctrl-C among them."""
    return threading.current_thread() is threading.main_thread()


def _as_request_error(raised: BaseException) -> Exception:
    """An error that neither ends the thread that reads it nor an iterator: others become a CallbackError."""
    if isinstance(raised, Exception) and not isinstance(raised, (StopIteration, StopAsyncIteration)):
        return raised
    error = CallbackError(f"a function of the request raised {quoted(raised)}")
    error.__cause__ = raised
    return error


def clear_frames(error: BaseException) -> None:
    """Clear the frames of bertgen in a traceback, which would hold the tensors of the step as long as the error lives.

    Frames of a user's function stay as they are, for debugging.
    """
    traceback = BaseException.__traceback__.__get__(error)  # type: ignore[attr-defined]  # a class may hide its own
    frame = None if traceback is None else traceback.tb_frame.f_back
    while frame is not None and _clear(frame):
        frame = frame.f_back
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__", "").startswith("bertgen."):
            _clear(traceback.tb_frame)
        traceback = traceback.tb_next


def _clear(frame: FrameType) -> bool:
    """Clear a frame; False where it is still running."""
    try:
        frame.clear()
    except RuntimeError:
        return False
    return True


def guarded(request: Request, callback: Any) -> Any:
    """A callback of a request, whose exceptions become a RequestFailure; None stays None."""
    if callback is None:
        return None

    @functools.wraps(callback)
    def call(*arguments: Any) -> Any:
        request.callback_started = time.monotonic()
        try:
            return _plain_value(callback(*arguments))
        except BaseException as raised:
            raise RequestFailure.of_callback(raised) from raised
        finally:
            request.callback_started = None

    return call


def guarded_all(request: Request, callbacks: Any) -> Any:
    """A list of callbacks, each guarded; anything else is returned as it is, for the caller's checks to reject."""
    if not isinstance(callbacks, (list, tuple)) or not all(map(callable, callbacks)):
        return callbacks
    return [guarded(request, callback) for callback in callbacks]


def _plain_value(value: Any) -> Any:
    """What a callback returned, without user code that would run later, outside of the guard."""
    if isinstance(value, torch.Tensor) and type(value) is not torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            value = value.as_subclass(torch.Tensor)
        if type(value) is not torch.Tensor:
            raise InputError(f"a function of the request returned a {type(value).__name__}, which is no plain tensor")
    return [*value] if isinstance(value, Iterator) else value
