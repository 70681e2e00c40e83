"""Attribute callback exceptions to their request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
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
        interrupt: to raise in the thread that steps as well: the main thread receives Ctrl-C, which may have arrived
            while the callback ran.
    """

    def __init__(self, error: Exception, by_callback: bool = False, interrupt: BaseException | None = None):
        super().__init__()  # without the error's text: its `__str__` may be a user's and fail
        self.error, self.by_callback, self.interrupt = error, by_callback, interrupt

    @classmethod
    def of_step(cls, raised: BaseException) -> RequestFailure | None:
        """The failure of the requests for which a part of a step raised this.

        None where the exception concerns the thread that steps: an interrupt, its stack, out of memory. An interrupt is
        any exception that is no Exception: callbacks are `guarded`, so a signal handler has raised it. The caller then
        re-raises it by a plain `raise`: a frame with the exception as a variable would be in its traceback, a reference
        cycle that keeps the tensors of the step alive.
        """
        if isinstance(raised, RequestFailure):
            return raised
        if isinstance(raised, RecursionError) or (_is_main() and not isinstance(raised, Exception)):
            return None
        if isinstance(raised, RuntimeError) and is_out_of_memory(raised):
            return None
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
    """The exception, or a CallbackError in place of one that would end a thread (SystemExit) or an iterator."""
    if isinstance(raised, Exception) and not isinstance(raised, (StopIteration, StopAsyncIteration)):
        return raised
    error = CallbackError(f"a function of the request raised {quoted(raised)}")
    error.__cause__ = raised
    return error


def clear_frames(error: BaseException) -> None:
    """Clear the frames of bertgen in the tracebacks of an error and of its causes.

    They would hold the tensors of the step and the cache as long as the error lives. Frames that are still running
    cannot be cleared. Frames of a user's function stay as they are, for debugging.
    """
    chain = [error]
    for one in chain:
        causes = (_own_attribute(one, "__cause__"), _own_attribute(one, "__context__"))
        chain += [cause for cause in causes if cause is not None and all(cause is not other for other in chain)]
        _clear_traceback(_own_attribute(one, "__traceback__"))


def _own_attribute(error: BaseException, name: str) -> Any:
    """An attribute of BaseException, also where the class of the error hides it."""
    return vars(BaseException)[name].__get__(error)


def _clear_traceback(traceback: TracebackType | None) -> None:
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
    return None if callback is None else _GuardedCallback(request, callback)


class _GuardedCallback:
    """Calls a callback of a request.

    A class, and no function within `guarded`: the traceback of an exception keeps the functions of its frames with the
    variables that they use of outer functions, and the request keeps the exception, a reference cycle.
    """

    def __init__(self, request: Request, callback: Any):
        self.request, self.__wrapped__ = request, callback

    def __call__(self, *arguments: Any) -> Any:
        self.request.callback_started = time.monotonic()
        try:
            return _plain_value(self.__wrapped__(*arguments))
        except BaseException as raised:
            raise RequestFailure.of_callback(raised) from raised
        finally:
            self.request.callback_started = None

    def __repr__(self) -> str:
        return repr(self.__wrapped__)


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
