"""Checks of plain values: options of configurations, calls and commands.

Each takes a value and the name of the option, and returns the value in the type that bertgen uses. An invalid value
raises ConfigError with the name, the limits and the value.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from ..errors import ConfigError, quoted


def check_integer(low: int, value: Any, name: str, high: int = 2**31 - 1) -> int:
    """The value as an int from `low` to `high`, numpy's integers too; ConfigError for anything else."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or not low <= number <= high:
        raise ConfigError(f"{name} must be an integer from {low} to {high}, got {quoted(value)}")
    return number


def check_size(value: Any, name: str, most: int | None = None) -> int:
    """The value as an int from 1 to `most` (None: without a limit), whole floats too; ConfigError for anything else.

    transformers writes 1e30 for a length without a limit.
    """
    whole = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
    if isinstance(value, bool) or not whole or value < 1 or (most is not None and value > most):
        limit = "of at least 1" if most is None else f"from 1 to {most}"
        raise ConfigError(f"{name} must be an integer {limit}, got {quoted(value)}")
    return int(value)


def check_number(low: float, high: float, value: Any, name: str) -> float:
    """The value as a float from `low` to `high`, numpy's numbers too; ConfigError for anything else."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:  # an integer beyond all floats
        number = math.nan
    if not low <= number <= high:
        limits = "" if low == -math.inf else f" from {low}"
        limits += "" if high == math.inf else f" to {high}"
        raise ConfigError(f"{name} must be a number{limits}, got {quoted(value)}")
    return number


def check_flag(value: Any, name: str) -> bool:
    """The value as a bool, True or False, numpy's too; ConfigError for anything else."""
    if not isinstance(value, bool) and not _is_numpy_bool(value):
        raise ConfigError(f"{name} must be True or False, got {quoted(value)}")
    return bool(value)


def check_choice(choices: tuple[Any, ...], value: Any, name: str) -> Any:
    """The one of `choices`, texts, integers or None, that the value is; ConfigError for anything else."""
    if value is None and None in choices:
        return None
    if isinstance(value, (str, Integral)) and not isinstance(value, bool):  # comparing other objects may raise
        for choice in choices:  # enumerations of transformers are strings and compare equal
            if value == choice:
                return choice
    raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}, got {quoted(value)}")


def check_callables(value: Any, name: str) -> list[Any] | None:
    """The value as a list of callables, or None; ConfigError for anything else."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(map(callable, value)):
        raise ConfigError(f"{name} must be a list of callables, got {quoted(value)}")
    return [check_callable(one, name) for one in value]


def check_callable(value: Any, name: str) -> Any:
    """The value, something that can be called, or None; ConfigError for anything else."""
    if value is not None and not callable(value):
        raise ConfigError(f"{name} must be a function, got {quoted(value)}")
    if inspect.iscoroutinefunction(value):
        raise ConfigError(f"{name} must be a plain function, not a coroutine function, got {quoted(value)}")
    return value


def check_name(value: Any, name: str) -> str | None:
    """The value as it is, a text that can be part of a file's name, or None; ConfigError for anything else."""
    if value is not None and not (isinstance(value, str) and value and not set(value) & set("/\\\0")):
        raise ConfigError(f"{name} must be a str that can be part of a file's name, got {quoted(value)}")
    return value


def check_mapping(value: Any, name: str, kind: type = object) -> Any:
    """The value as it is, a mapping from names to values of a kind, or None; ConfigError for anything else."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(k, str) and isinstance(v, kind) for k, v in value.items()):
        of = "" if kind is object else f" of {kind.__name__}"
        raise ConfigError(f"{name} must be a dict{of} with names as its keys, got {quoted(value)}")
    return value


def check_kind(own: str, value: Any, name: str) -> str:
    """The value if it is that of the class; ConfigError for anything else, because another kind is another class."""
    if not isinstance(value, str) or value != own:
        raise ConfigError(f"{name} of this class must be {own!r}, got {quoted(value)}")
    return value


def check_token_id(value: Any, name: str) -> int | None:
    """The value as it is, an id or None; ConfigError for anything else."""
    return None if value is None else check_integer(0, value, name)


def check_token_ids(value: Any, name: str) -> int | list[int] | None:
    """The value as it is, an id, a list of ids or None; ConfigError for anything else."""
    if isinstance(value, (list, tuple)):
        if not value:
            raise ConfigError(f"{name} is an empty list")
        return [check_integer(0, v, name) for v in value]
    return check_token_id(value, name)


def check_special_ids(value: Any, name: str) -> int | list[int] | None:
    """The value as it is: an id, a list of ids or None, where negative ids mean "no such token"."""
    if value is None:
        return None
    checked = [check_integer(-(2**31), one, name) for one in (value if isinstance(value, (list, tuple)) else [value])]
    return checked if isinstance(value, (list, tuple)) else checked[0]


def _is_numpy_bool(value: Any) -> bool:
    """Whether a value is numpy's bool, which is no `numbers.Integral`; does not import numpy."""
    return type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")
