"""Where the files of a model are: a local directory or a repository on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from .arguments import older, settled
from .errors import CheckpointError

DEMO_MODEL = Path(__file__).parent / "demo"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder")


def split_hub_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options without those of `resolve_file` and without transformers' arguments that change nothing; and those."""
    others = settled(options)
    others["token"] = older(others, "use_auth_token", others.get("token"))
    hub = {name: others.pop(name) for name in OPTIONS if name in others}
    return others, {name: value for name, value in hub.items() if value is not None}


def local_directory(path_or_id: str | os.PathLike) -> Path | None:
    """Return the directory that `path_or_id` names, or None where it is a hub id.

    The name "demo" stands for the model that ships with the package, unless a directory of that name is in the way.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if str(path_or_id) == "demo":
        return DEMO_MODEL
    if path.exists():
        raise CheckpointError(f"{path} is a file; a model is named by its directory or its hub id")
    return None


def resolve_file(
    path_or_id: str | os.PathLike,
    filename: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    subfolder: str = "",
    required: bool = True,
) -> Path | None:
    """Find one file of a model, downloading it where `path_or_id` is a hub id.

    Args:
        path_or_id: a directory, or a repository id such as "google/roberta2roberta_L-24_bbc".
        filename: name of the file inside it.
        revision, cache_dir, token, local_files_only, force_download, subfolder: as in
            `huggingface_hub.hf_hub_download`; a subfolder is one of a directory, too.
        required: raise where the file does not exist; otherwise return None.

    Raises:
        CheckpointError: the file, the directory or the repository is not there, or cannot be reached.
    """
    directory = local_directory(path_or_id)
    if directory is not None:
        directory = directory / subfolder
        path = directory / filename
        if path.is_file():
            return path
        if not required:
            return None
        best = directory / "best"
        kept = f"; {best} has one: what a training into this folder kept" if (best / filename).is_file() else ""
        raise CheckpointError(f"{directory} has no {filename}; it holds: {_listing(directory)}{kept}")
    if not _REPOSITORY.fullmatch(str(path_or_id)):
        raise CheckpointError(f"no directory {str(path_or_id)!r}, and that is no hub id (owner/name) either")

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            hf_hub_download(
                str(path_or_id),
                filename,
                revision=revision,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                token=token,
                local_files_only=local_files_only,
                force_download=force_download,
                subfolder=subfolder or None,
            )
        )
    except LocalEntryNotFoundError as error:
        if not required and _snapshot_known(path_or_id, revision, cache_dir, subfolder):
            return None
        where = "in the local cache" if local_files_only else "on the hub or in the local cache"
        raise CheckpointError(f"{path_or_id}: {filename} was not found {where}: {error}") from error
    except EntryNotFoundError as error:
        if not required:
            return None
        raise CheckpointError(f"{path_or_id} on the hub has no {filename}") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"{path_or_id}: {filename} could not be fetched: {error}") from error


def _snapshot_known(
    path_or_id: str | os.PathLike, revision: str | None, cache_dir: str | os.PathLike | None, subfolder: str
) -> bool:
    """True where some snapshot of the repository is cached, so that a missing optional file is simply not in it."""
    from huggingface_hub import try_to_load_from_cache

    cache = None if cache_dir is None else Path(cache_dir)
    name = f"{subfolder}/config.json" if subfolder else "config.json"
    found = try_to_load_from_cache(str(path_or_id), name, cache_dir=cache, revision=revision)
    return isinstance(found, str)


def _listing(directory: Path) -> str:
    if not directory.is_dir():
        return "nothing (no such directory)"
    return ", ".join(sorted(p.name for p in directory.iterdir())[:20]) or "nothing"
