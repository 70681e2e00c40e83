"""Base of the configurations: named options with checked values, and their JSON files."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from ..errors import CheckpointError, ConfigError, UnsupportedError
from ..files.atomic import write_file
from ..hub import as_path
from .validators import check_kind

# Keys of transformers in config.json that have no effect here. They are read, kept and written back.
INERT_KEYS = frozenset(
    "architectures attn_implementation chunk_size_feed_forward classifier_dropout directionality dtype finetuning_task "
    "gradient_checkpointing id2label is_encoder_decoder label2id name_or_path "
    "position_embedding_type problem_type pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
    "pooler_size_per_head pooler_type prefix sep_token_id task_specific_params tokenizer_class torch_dtype "
    "transformers_version type_vocab_size xla_device".split()
)
_DTYPE_NAMES = ("dtype", "torch_dtype")

# Options of other configurations -> hint where to set them, for the error about an unknown name.
ELSEWHERE: dict[str, str] = {}

JSON_BYTES = 1 << 28  # size limit of a JSON file of a model or tokenizer


@dataclass(init=False)
class Config:
    """A set of named options with checked values; keys of a file that are no options are kept in `extra`."""

    INERT: ClassVar[frozenset[str]] = INERT_KEYS

    extra: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __init__(self, **options: Any):
        object.__setattr__(self, "extra", {})
        if (kind := getattr(type(self), "model_type", None)) and "model_type" in options:  # as in a config.json
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
        """The error for an unknown name, with the most similar option or the place of the option."""
        near = difflib.get_close_matches(name, [f.name for f in fields(self) if f.name != "extra"], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        if name in ELSEWHERE:
            hint = f": {ELSEWHERE[name]}"
        return ConfigError(f"{type(self).__name__} has no option {name!r}{hint}")

    def __getattr__(self, name: str) -> Any:
        """A key in `extra`; None for a key of transformers that is not set."""
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
        """The content of the JSON file."""
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
        """Read a JSON file of options, as `to_json_file` writes it."""
        return cls.from_dict(read_json(Path(json_file)))

    @classmethod
    def from_dict(cls, values: dict[str, Any], return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """A configuration from the content of a JSON file; keys that are no options are kept in `extra`.

        Args:
            values: of the file.
            return_unused_kwargs: return the configuration and those of `overrides` that are no options, instead of
                raising an error for them.
            overrides: options.
        """
        names = {f.name for f in fields(cls)} - {"extra"}
        if return_unused_kwargs:
            unused = {name: overrides.pop(name) for name in set(overrides) - names - cls.INERT}
            return cls.from_dict(values, **overrides), unused
        config = cls(**{**{name: value for name, value in values.items() if name in names}, **overrides})
        known = {*config.extra, *(_DTYPE_NAMES if "dtype" in config.extra else ()), "model_type"}
        config.extra.update((k, v) for k, v in values.items() if k not in names | known)
        return config


def _dtype(name: str | None) -> Any:
    """The torch.dtype of a name in a file; another name is returned as it is."""
    if name is None:
        return None
    import torch

    dtype = getattr(torch, name, None)
    return dtype if isinstance(dtype, torch.dtype) else name


def make_directory(directory: str | os.PathLike, push_to_hub: bool) -> Path:
    """Create a directory to save into, if needed.

    Raises:
        CheckpointError: it is a file. UnsupportedError: `push_to_hub` is True.
    """
    if push_to_hub:
        raise UnsupportedError("push_to_hub=True: upload the saved directory with huggingface_hub (hf upload)")
    path = as_path(directory, "directory")
    if path.is_file():
        raise CheckpointError(f"{path} is a file; a configuration is saved into a directory")
    path.mkdir(parents=True, exist_ok=True)
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; CheckpointError for a file that holds none, or is larger than `JSON_BYTES`."""
    if path.exists() and path.stat().st_size > JSON_BYTES:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes; a JSON file of a model has at most {JSON_BYTES}"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def json_text(values: dict[str, Any]) -> str:
    """The text of a JSON file with these values."""
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object with `files.atomic`; the directory is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json_text(values).encode())
