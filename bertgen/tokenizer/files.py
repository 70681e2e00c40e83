"""Files of a tokenizer: its vocabulary, and those that transformers 4 and 5 write."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from ..config import read_json
from ..errors import CheckpointError
from ..hub import resolve_file

CONFIG_FILE = "tokenizer_config.json"
ADDED_TOKENS_FILE = "added_tokens.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"  # written by transformers 4, not by 5

# Keys of tokenizer_config.json without an effect here. A path in the file is never opened.
_INERT_KEYS = frozenset(
    "add_bos_token add_eos_token auto_map backend chat_template files_loaded init_inputs is_local local_files_only "
    "max_length merges_file name_or_path pad_to_multiple_of pad_token_type_id processor_class special_tokens_map_file "
    "stride tokenizer_class tokenizer_file transformers_version truncation_strategy use_fast verbose vocab_file".split()
)
_OLD_KEYS = {"additional_special_tokens": "extra_special_tokens", "max_len": "model_max_length"}


def find_vocabulary(
    path_or_id: str | os.PathLike, alternatives: tuple[dict[str, str], ...], hub: dict[str, Any]
) -> dict[str, Path]:
    """The files of the first alternative (key -> name) that exists; CheckpointError where none does."""
    *others, last = alternatives
    for names in others:
        paths = {key: resolve_file(path_or_id, name, hub, required=False) for key, name in names.items()}
        if None not in paths.values():
            return paths
    try:
        return {key: resolve_file(path_or_id, name, hub) for key, name in last.items()}
    except CheckpointError as error:
        alternative = "".join(f"; {' and '.join(names.values())} would do instead" for names in others)
        raise CheckpointError(f"{error}{alternative}") from error


def has_one_of(path_or_id: str | os.PathLike, alternatives: tuple[dict[str, str], ...], hub: dict[str, Any]) -> bool:
    """Whether all files of one alternative (key -> name) exist."""
    return any(
        all(resolve_file(path_or_id, name, hub, required=False) for name in names.values()) for names in alternatives
    )


def saved_options(path_or_id: str | os.PathLike, known: set[str], hub: dict[str, Any]) -> dict[str, Any]:
    """The options among `known` in the files of transformers 4 or 5 or of `save_pretrained`."""
    saved = read_optional(path_or_id, CONFIG_FILE, hub)
    if "added_tokens_decoder" not in saved:
        saved |= read_optional(path_or_id, SPECIAL_TOKENS_FILE, hub)
    # Unlike transformers 5, which renames keys before it reads the map, so that "additional" tokens of the map are not
    # special.
    for old, new in _OLD_KEYS.items():
        if (value := saved.pop(old, None)) and not saved.get(new):
            saved[new] = value
    # transformers gives an id to any other "..._token"; the constructor raises an error for it.
    unknown = sorted(key for key in saved.keys() - known - _INERT_KEYS if not key.endswith("_token"))
    if unknown:
        warnings.warn(f"{path_or_id}: {CONFIG_FILE} has unknown keys {', '.join(unknown)}", stacklevel=3)
    return {key: value for key, value in saved.items() if key not in _INERT_KEYS.union(unknown)}


def read_optional(path_or_id: str | os.PathLike, filename: str, hub: dict[str, Any]) -> dict[str, Any]:
    """The content of a JSON file of a tokenizer; empty where it does not exist."""
    path = resolve_file(path_or_id, filename, hub, required=False)
    return {} if path is None else read_json(path)


def target_file(directory: str | os.PathLike, prefix: str | None, filename: str) -> Path:
    """Path of a file to write; CheckpointError if `directory` is no directory."""
    if not Path(directory).is_dir():
        raise CheckpointError(f"{directory} is no directory; {filename} is written into one")
    return Path(directory) / (f"{prefix}-{filename}" if prefix else filename)
