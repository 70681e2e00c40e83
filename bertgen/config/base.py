"""What all configurations share: named options with checked values, and JSON files."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

from ..errors import CheckpointError, ConfigError, UnsupportedError, quoted
from ..files.atomic import write_file
from ..hub import as_path

# Keys that transformers writes or wrote into config.json and that change nothing here: read, kept, written back.
INERT_KEYS = frozenset(
    "architectures attn_implementation chunk_size_feed_forward classifier_dropout directionality dtype finetuning_task "
    "gradient_checkpointing id2label is_encoder_decoder label2id name_or_path "
    "position_embedding_type problem_type pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
    "pooler_size_per_head pooler_type prefix sep_token_id task_specific_params tokenizer_class torch_dtype "
    "transformers_version type_vocab_size xla_device".split()
)
_DTYPE_NAMES = ("dtype", "torch_dtype")

# Options of another configuration -> where to set them, for the error about a name in the wrong place.
ELSEWHERE: dict[str, str] = {}

JSON_BYTES = 1 << 28  # of the largest JSON file of a model or tokenizer that is read


@dataclass(init=False)
class Config:
    """A set of named options with checked values; keys without a meaning here are kept in `extra`."""

    INERT: ClassVar[frozenset[str]] = INERT_KEYS

    extra: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __init__(self, **options: Any):
        object.__setattr__(self, "extra", {})
        if (kind := getattr(type(self), "model_type", None)) and "model_type" in options:  # as a config.json has it
            check_kind(kind, options.pop("model_type"), "model_type")
        known = {f.name: f for f in fields(self) if f.name != "extra"}
        for name in options:
            if name not in known and name not in self.INERT:
                raise self._unknown(name)
        for name, f in known.items():
            setattr(self, name, options.get(name, f.default))
        for name, value in options.items():
            if name not in known:
                setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dataclass_fields__:
            if name not in self.INERT:
                raise self._unknown(name)
            if name in _DTYPE_NAMES:
                self.extra.pop("torch_dtype", None)
                name, value = "dtype", None if value is None else str(value).removeprefix("torch.")
            self.extra[name] = value
            return
        object.__setattr__(self, name, self._checked(name, value))

    def _unknown(self, name: str) -> ConfigError:
        """The error for a name that no option has: which one may be meant, or where it belongs."""
        near = difflib.get_close_matches(name, [n for n in self.__dataclass_fields__ if n != "extra"], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        if name in ELSEWHERE:
            hint = f": {ELSEWHERE[name]}"
        return ConfigError(f"{type(self).__name__} has no option {name!r}{hint}")

    def __getattr__(self, name: str) -> Any:
        """A key that is kept in `extra`; None for one of transformers' that there is none of."""
        extra = self.__dict__.get("extra", {})
        if name in _DTYPE_NAMES:
            return _dtype(extra.get("dtype", extra.get("torch_dtype")))
        if name in extra:
            return extra[name]
        if name in self.INERT:
            return None
        raise AttributeError(f"{type(self).__name__} has no option {name!r}")

    def _checked(self, name: str, value: Any) -> Any:
        return value

    def to_dict(self) -> dict[str, Any]:
        """What the JSON file holds."""
        raise NotImplementedError

    def to_diff_dict(self) -> dict[str, Any]:
        """`to_dict` without options that have their default."""
        values, default = self.to_dict(), {f.name: f.default for f in fields(self)}
        return {name: value for name, value in values.items() if name not in default or value != default[name]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """`to_diff_dict`, or `to_dict`, as JSON."""
        return json_text(self.to_diff_dict() if use_diff else self.to_dict())

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        """Write `to_json_string`."""
        write_json(Path(json_file_path), self.to_diff_dict() if use_diff else self.to_dict())

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike):
        """Read what `to_json_file` wrote, or any other JSON file of such options."""
        return cls.from_dict(read_json(Path(json_file)))

    @classmethod
    def from_dict(cls, values: dict[str, Any], return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """Build from the content of a JSON file, keeping keys that mean nothing here.

        Args:
            values: of the file.
            return_unused_kwargs: return the configuration and those of `overrides` that are no options, instead of
                refusing them.
            overrides: options.
        """
        names = {f.name for f in fields(cls)} - {"extra"}
        if return_unused_kwargs:
            unused = {name: overrides.pop(name) for name in set(overrides) - names - cls.INERT}
            return cls.from_dict(values, **overrides), unused
        config = cls(**{**{name: value for name, value in values.items() if name in names}, **overrides})
        given = {*config.extra, *(_DTYPE_NAMES if "dtype" in config.extra else ()), "model_type"}
        config.extra.update((k, v) for k, v in values.items() if k not in names | given)
        return config


def check_integer(low: int, value: Any, name: str, high: int = 2**31 - 1) -> int:
    """The value as an int from `low` to `high`, numpy's integers too; ConfigError for anything else."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or not low <= number <= high:
        raise ConfigError(f"{name} must be an integer from {low} to {high}, got {quoted(value)}")
    return number


def check_number(low: float, high: float, value: Any, name: str) -> float:
    """The value as a float from `low` to `high`, numpy's numbers too; ConfigError for anything else."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:  # an integer beyond all floats
        number = math.nan
    if not low <= number <= high:
        raise ConfigError(f"{name} must be a number from {low} to {high}, got {quoted(value)}")
    return number


def check_flag(value: Any, name: str) -> bool:
    """The value as a bool, True or False, numpy's too; ConfigError for anything else."""
    if not isinstance(value, bool) and not _is_numpy_bool(value):
        raise ConfigError(f"{name} must be True or False, got {quoted(value)}")
    return bool(value)


def check_choice(choices: tuple[Any, ...], value: Any, name: str) -> Any:
    """The one of `choices`, texts or integers, that the value is; ConfigError for anything else."""
    if isinstance(value, (str, Integral)) and not isinstance(value, bool):  # to compare other objects may raise
        for choice in choices:
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
        raise ConfigError(f"{name} must be a plain function, nobody awaits what {quoted(value)} returns")
    return value


def check_name(value: Any, name: str) -> str | None:
    """The value as it is, text that can be a part of a file's name, or None; ConfigError for anything else."""
    if value is not None and not (isinstance(value, str) and value and not set(value) & set("/\\\0")):
        raise ConfigError(f"{name} must be a str that can stand in the name of a file, got {quoted(value)}")
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
    """The value as it is, the class's own; ConfigError for anything else: another kind is another class."""
    if not isinstance(value, str) or value != own:
        raise ConfigError(f"{name} of this class is {own!r}, it cannot be {quoted(value)}")
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


def _dtype(name: str | None) -> Any:
    """The torch.dtype of a name in a file; what is none stays as it is."""
    if name is None:
        return None
    import torch

    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else name


def make_directory(directory: str | os.PathLike, push_to_hub: bool) -> Path:
    """A directory to save into.

    Raises:
        CheckpointError: it is a file. UnsupportedError: `push_to_hub`.
    """
    if push_to_hub:
        raise UnsupportedError("push_to_hub=True: huggingface_hub uploads what was saved (hf upload)")
    path = as_path(directory, "directory")
    if path.is_file():
        raise CheckpointError(f"{path} is a file; a configuration is saved into a directory")
    path.mkdir(parents=True, exist_ok=True)
    return path


def check_special_ids(value: Any, name: str) -> int | list[int] | None:
    """The value as it is: an id, a list of ids or None, where -1 and the like stand for no such token."""
    if value is None:
        return None
    checked = [check_integer(-(2**31), one, name) for one in (value if isinstance(value, (list, tuple)) else [value])]
    return checked if isinstance(value, (list, tuple)) else checked[0]


def _is_numpy_bool(value: Any) -> bool:
    """Whether it is numpy's bool, which no abstract class of numbers knows; numpy itself need not be imported."""
    return type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; CheckpointError with the file's name where it is none, or larger than `JSON_BYTES`."""
    if path.exists() and path.stat().st_size > JSON_BYTES:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes; a JSON file of a model has at most {JSON_BYTES}"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(values).__name__}")
    return values


def json_text(values: dict[str, Any]) -> str:
    """Options as the files hold them."""
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object with `files.atomic`; the directory is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json_text(values).encode())
