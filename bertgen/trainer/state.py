"""What survives a kill: files and folders that are either whole or not there, and the training state."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, ConfigError, OutputError
from ..files.text_input import reported

VERSION = 1


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step; OutputError if it cannot."""
    temporary = path.with_name(f".{path.name}.tmp")
    with reported(path):
        try:
            write(temporary)
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder beside `path`, then put it in place.

    `restore_folder` mends a kill between the two renames. OutputError where it cannot be written.
    """
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with reported(path):
        try:
            temporary.mkdir()
            write(temporary)
            for file in temporary.rglob("*"):
                _sync(file)
            _sync(temporary)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)  # room for others
            if isinstance(error, OutputError):
                raise OutputError(str(error).replace(str(temporary), str(path))) from error
            raise
        if path.exists():
            os.rename(path, old)
        os.rename(temporary, path)
        _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Put back the former folder if a kill came after it was moved away and before the new one was in place."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        os.rename(old, path)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        result = hashlib.sha256()
        while block := file.read(1 << 20):
            result.update(block)
    return result.hexdigest()


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the training state, whole or not at all."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given a path, torch does not tell why it cannot be written
            torch.save({"version": VERSION, **state}, file)

    write_file(path, write)


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state written by `save_state`.

    Raises:
        CheckpointError: no such file, not a training state, or one of another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no training state to resume from") from error
    except Exception as error:
        raise CheckpointError(f"{path}: not a training state: {error}") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise CheckpointError(f"{path}: not a training state of version {VERSION}")
    return state


def check_unchanged(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuse to resume another run than the one that was saved.

    Raises:
        ConfigError: an option or a data file changed; the message names it with both values.
    """
    for name in sorted(saved.keys() | current.keys()):
        if saved.get(name) != current.get(name):
            raise ConfigError(f"cannot resume: {name} was {saved.get(name)!r} and is now {current.get(name)!r}")
