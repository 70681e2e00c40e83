"""The errors of bertgen. Each derives from the builtin error that code written for transformers expects."""

from typing import Any


class BertgenError(Exception):
    """Base of all errors that bertgen raises on purpose."""


class ConfigError(BertgenError, ValueError):
    """An option has an unknown name or a value outside its limits."""


class InputError(BertgenError, ValueError):
    """Text, ids, masks or lengths that the model does not accept; the message names the value and the limit."""


class CapacityError(InputError):
    """A request that can never run: alone it needs more than the engine has; the message names both sizes."""


class CheckpointError(BertgenError, OSError):
    """A file of a model or tokenizer is missing, corrupt or unsafe."""


class OutputError(BertgenError, OSError):
    """A file of results cannot be written."""


class UnsupportedError(BertgenError, NotImplementedError):
    """A valid request that bertgen does not support."""


class BackendError(BertgenError, RuntimeError):
    """A backend or device that was selected by name cannot run."""


class CallbackError(BertgenError, RuntimeError):
    """A function passed with a request raised an exception that ends a thread or a program, such as SystemExit."""


def quoted(value: Any, limit: int = 200) -> str:
    """Any value as a short text for an error message, also if its `repr` fails.

    For a tensor or an array this is its shape and dtype: reading its numbers may be slow, or impossible (meta device).
    """
    if isinstance(shape := getattr(value, "shape", None), tuple) and shape and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(shape)} and dtype {value.dtype}"
    try:
        text = repr(value)
    except (Exception, SystemExit, GeneratorExit):  # an integer with too many digits, or a failing __repr__
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
