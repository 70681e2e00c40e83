"""The errors: which builtin each of them is as well, and how a message quotes a value."""

from __future__ import annotations

import inspect

import pytest

from bertgen import errors
from bertgen.errors import BertgenError, quoted

BUILTINS = {
    "BackendError": RuntimeError,
    "CallbackError": RuntimeError,
    "CapacityError": ValueError,
    "CheckpointError": OSError,
    "ConfigError": ValueError,
    "InputError": ValueError,
    "OutputError": OSError,
    "UnsupportedError": NotImplementedError,
}


def test_every_error_is_listed():
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert classes == BUILTINS.keys() | {"BertgenError"}


@pytest.mark.parametrize("name", BUILTINS)
def test_an_error_is_caught_as_bertgens_and_as_the_builtin_one(name):
    for kind in (BertgenError, BUILTINS[name]):
        with pytest.raises(kind, match="the message"):
            raise getattr(errors, name)("the message")


def test_a_request_that_is_too_large_is_an_input_error():
    assert issubclass(errors.CapacityError, errors.InputError)


@pytest.mark.parametrize("length", [196, 197, 198, 199, 1000])
def test_a_quoted_text_has_at_most_200_characters(length):
    text = quoted("x" * length)
    assert len(text) <= 200 and text.startswith("'xxx")
    assert (text == repr("x" * length)) == (length <= 198) == (not text.endswith("..."))


def test_the_limit_of_a_quoted_value_can_be_set():
    assert quoted([1] * 100, limit=10) == "[1, 1, ..."


def test_an_interrupt_of_a_representation_is_not_swallowed():
    class Interrupted:
        def __repr__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quoted(Interrupted())
