"""The training state: what a resumed run needs, in one file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, ConfigError
from ..files.atomic import atomic_write

VERSION = 1


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        result = hashlib.sha256()
        while block := file.read(1 << 20):
            result.update(block)
    return result.hexdigest()


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the training state, whole or not at all."""
    with atomic_write(path) as file:  # with a path, torch's error lacks the system's reason
        torch.save({"version": VERSION, **state}, file)


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


def check_same_run(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuse to resume another run than the one that was saved.

    Raises:
        ConfigError: an option or a data file changed; the message names it with both values.
    """
    for name in sorted(saved.keys() | current.keys()):
        if saved.get(name) != current.get(name):
            raise ConfigError(f"cannot resume: {name} was {saved.get(name)!r} and is now {current.get(name)!r}")
