"""Callbacks that raise or return what they should not, by kind, with the error of their request."""

import asyncio
import time

import torch

from bertgen import (
    CallbackError,
    InputError,
)
from bertgen.cache.block_allocator import Violation

PATIENCE = 120  # seconds after which something hangs


def raising(error):
    def function(*arguments):
        raise error

    return function


def later(function, step):
    """A processor or criterion that does nothing before some step."""

    def wrapped(history, scores):
        if history.shape[1] > step:
            return function(history, scores)
        return scores if isinstance(scores, torch.Tensor) else False

    return wrapped


class Unspeakable(Exception):
    """An error whose `__str__` and `__traceback__` fail."""

    def __init__(self, error):
        super().__init__("mine")
        self.own = error

    def __str__(self):
        raise self.own

    __repr__ = __str__

    @property
    def __traceback__(self):
        raise self.own


class Late(torch.Tensor):
    """Scores or flags of a subclass, with code that would run when the rows of all requests are concatenated."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function is torch.cat:
            raise LookupError("mine")
        return super().__torch_function__(function, types, arguments, options or {})


class Falsy:
    """A callable object that is falsy and has a length."""

    def __init__(self, function):
        self.__call = function

    def __call__(self, *arguments):
        return self.__call(*arguments)

    def __len__(self):
        return 0


def lazily(error):
    def function(index, tokens):
        yield 5
        raise error

    return function


PROCESSORS = {
    "none": (lambda history, scores: None, InputError),
    "a list": (lambda history, scores: scores.tolist(), InputError),
    "too narrow": (lambda history, scores: scores[:, :-1], InputError),
    "another batch": (lambda history, scores: scores.repeat(2, 1), InputError),
    "one row": (lambda history, scores: scores[0], InputError),
    "integers": (lambda history, scores: scores.long(), InputError),
    "bools": (lambda history, scores: scores > 0, InputError),
    "complex": (lambda history, scores: scores.to(torch.complex64), InputError),
    "another device": (lambda history, scores: scores.to("meta"), InputError),
    "sparse": (lambda history, scores: scores.to_sparse(), InputError),
    "resized in place": (lambda history, scores: scores.resize_(2, 3), InputError),
    "nan": (lambda history, scores: scores * torch.nan, InputError),
    "an id out of range": (lambda history, scores: scores.index_fill(1, torch.tensor([10**6]), 0.0), IndexError),
    "its own": (raising(LookupError("mine")), LookupError),
    "like memory": (raising(torch.OutOfMemoryError("mine")), torch.OutOfMemoryError),
    "no memory": (raising(MemoryError("mine")), MemoryError),
    "the end": (raising(SystemExit(3)), CallbackError),
    "an interrupt": (raising(KeyboardInterrupt()), CallbackError),
    "a generator's end": (raising(GeneratorExit()), CallbackError),
    "cancelled": (raising(asyncio.CancelledError()), CallbackError),
    "an iterator's end": (raising(StopIteration()), CallbackError),
    "unspeakable": (raising(Unspeakable(ValueError())), Unspeakable),
    "unspeakable, the end": (raising(Unspeakable(SystemExit())), Unspeakable),
    "no Exception": (raising(BaseException("mine")), CallbackError),
    "compressed rows": (lambda history, scores: scores.to_sparse_csr(), InputError),
    "nested": (lambda history, scores: torch.nested.nested_tensor(list(scores)), InputError),
}


PREFIXES = {
    "none": (lambda index, tokens: None, InputError),
    "nothing": (lambda index, tokens: [], InputError),
    "negative": (lambda index, tokens: [5, -1], InputError),
    "out of range": (lambda index, tokens: [5, 64], InputError),
    "fractions": (lambda index, tokens: [5.5], InputError),
    "a number": (lambda index, tokens: 5, InputError),
    "a text": (lambda index, tokens: "12", InputError),
    "fractions in a tensor": (lambda index, tokens: torch.tensor([5.0]), InputError),
    "its own": (raising(LookupError("mine")), LookupError),
    "its own, lazily": (lazily(LookupError("mine")), LookupError),
    "the end, lazily": (lazily(SystemExit()), CallbackError),
    "falsy": (Falsy(lambda index, tokens: [-1]), InputError),
}


CRITERIA = {
    "none": (lambda history, scores: None, InputError),
    "a text": (lambda history, scores: "no", InputError),
    "too many": (lambda history, scores: [False] * 99, InputError),
    "its own": (raising(LookupError("mine")), LookupError),
    "the end": (raising(SystemExit(3)), CallbackError),
}


HOSTILE = [
    *((dict(logits_processor=[function]), error) for function, error in PROCESSORS.values()),
    *((dict(logits_processor=[later(function, 3)]), error) for function, error in PROCESSORS.values()),
    *((dict(prefix_allowed_tokens_fn=function), error) for function, error in PREFIXES.values()),
    *((dict(stopping_criteria=[function]), error) for function, error in CRITERIA.values()),
    *((dict(on_tokens=raising(error)), kind) for error, kind in [
        (LookupError("mine"), LookupError), (SystemExit(), CallbackError), (asyncio.CancelledError(), CallbackError),
        (Unspeakable(ValueError()), Unspeakable), (Unspeakable(SystemExit()), Unspeakable),
    ]),
]  # fmt: skip


def check_idle(generator):
    """Wait until nothing is left to do, and check that all pages are free."""
    until = time.monotonic() + PATIENCE
    while generator.engine.busy and time.monotonic() < until:
        time.sleep(0.01)
    assert not generator.engine.busy and generator.statistics.pages_used == 0
    assert generator.engine.cache.allocator.check() == Violation.SOUND
