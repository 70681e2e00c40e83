"""The errors: the builtin that each derives from, quoted values, and the form of messages and reasons."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

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


def texts(source):
    """The messages of errors in a module, and the reasons that functions `why_not_..` and `.._reasons` return."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in BUILTINS and node.args:
            yield node.args[0]
        elif isinstance(node, ast.FunctionDef) and ("why_not" in node.name or node.name.endswith("_reasons")):
            yield from (n.value for n in ast.walk(node) if isinstance(n, (ast.Return, ast.Yield)) and n.value)


def end_of(text):
    """The last characters of a literal or an f-string; "" where they are a value."""
    last = text.values[-1] if isinstance(text, ast.JoinedStr) else text
    return last.value if isinstance(last, ast.Constant) and isinstance(last.value, str) else ""


SOURCES = sorted((Path(__file__).parents[1] / "bertgen").rglob("*.py"))


def test_messages_and_reasons_are_clauses_without_a_full_stop():
    ends = [end_of(text) for path in SOURCES for text in texts(path.read_text(encoding="utf-8"))]
    assert len(ends) > 300
    assert [end for end in ends if end.endswith((".", "\n", " ")) and not end.endswith("...")] == []


def test_the_search_for_messages_sees_errors_and_reasons():
    source = """
        def why_not_x(a):
            if a:
                raise ConfigError(f"{a} is bad.")
            return f"{a} is odd."
    """
    assert {end_of(text) for text in texts(inspect.cleandoc(source))} == {" is bad.", " is odd."}
