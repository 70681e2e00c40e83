"""The errors a user of bertgen can meet. Each is also the builtin that code written for transformers expects."""

from typing import Any


class BertgenError(Exception):
    """Base of every error bertgen raises on purpose."""


class ConfigError(BertgenError, ValueError):
    """An option has an unknown name or a value outside its limits."""


class InputError(BertgenError, ValueError):
    """Text, ids, masks or lengths that the model cannot take; the message names the value and the limit."""


class CapacityError(InputError):
    """A request that can never run, because it alone is larger than what there is; the message names both sizes."""


class CheckpointError(BertgenError, OSError):
    """A file of a model or tokenizer is missing, corrupt or unsafe."""


class OutputError(BertgenError, OSError):
    """A file of results cannot be written."""


class UnsupportedError(BertgenError, NotImplementedError):
    """The request has a meaning, but bertgen does not do it."""


class BackendError(BertgenError, RuntimeError):
    """A backend or device that was asked for by name cannot run."""


class CallbackError(BertgenError, RuntimeError):
    """A function that a request brought along raised what would end a thread or a program, such as SystemExit."""


def quoted(value: Any, limit: int = 200) -> str:
    """Any value as an error message quotes it: short, and whatever its `repr` does.

    Of a tensor or an array the shape and the dtype, as its numbers may be many, or on a device, or nowhere.
    """
    if isinstance(shape := getattr(value, "shape", None), tuple) and shape and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(shape)} and dtype {value.dtype}"
    try:
        text = repr(value)
    except (Exception, SystemExit, GeneratorExit):  # an integer of too many digits, or a class's own __repr__ fails
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
