"""Finds the files of a model, in a local directory or in a repository on the Hugging Face hub."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .arguments import supported_options, value_or_alias
from .errors import CheckpointError, ConfigError, quoted

DEMO_MODEL = Path(__file__).parent / "demo"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class HubOptions:
    """Options of a download, as `huggingface_hub.hf_hub_download` takes them.

    Args:
        subfolder: a folder of the repository, or of the local directory.

    Raises:
        ConfigError: a value of another type.
    """

    revision: str | None = None
    cache_dir: str | os.PathLike | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    force_download: bool = False
    subfolder: str = ""

    def __post_init__(self) -> None:
        for name, types, expected in (
            ("revision", str, "a str"),
            ("cache_dir", (str, os.PathLike), "a path"),
            ("token", (str, bool), "a str, True or False"),
            ("local_files_only", bool, "True or False"),
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, types):
                raise ConfigError(f"{name} must be {expected}, got {quoted(value)}")


HUB_OPTIONS = tuple(option.name for option in fields(HubOptions))


def split_hub_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options without those of `HubOptions` and without arguments that have no effect, and the hub options."""
    others = supported_options(options)
    others["token"] = value_or_alias(others.get("token"), others, "use_auth_token")
    hub = {name: others.pop(name) for name in HUB_OPTIONS if name in others}
    return others, {name: value for name, value in hub.items() if value is not None}


def as_path(path_or_id: Any, argument: str = "path_or_id") -> Path:
    """A path or hub id as a Path, with "~" replaced by the home directory.

    Args:
        argument: name of the argument, for errors.

    Raises:
        ConfigError: it is neither. CheckpointError: a path without permission, or one that is too long.
    """
    name = os.fspath(path_or_id) if isinstance(path_or_id, (str, os.PathLike)) else None
    if not isinstance(name, str) or not name or "\0" in name:  # Path("") would be the current directory
        raise ConfigError(f"{argument} must be a path or a hub id, got {quoted(path_or_id)}")
    try:
        path = Path(path_or_id).expanduser()
        path.exists()
    except RuntimeError as error:
        raise ConfigError(f"{argument} {name!r}: no such home directory") from error
    except OSError as error:
        raise CheckpointError(f"{quoted(name)} cannot be read: {error.strerror}") from error
    return path


def local_directory(path_or_id: str | os.PathLike) -> Path | None:
    """The directory that `path_or_id` names; None if it is a hub id.

    "demo" names the model that ships with the package, unless the current directory has a directory of that name.

    Raises:
        CheckpointError: it names a file, or it is a path and no such directory exists.
    """
    path = as_path(path_or_id)
    if path.is_dir():
        return path
    if str(path) == "demo":
        return DEMO_MODEL
    if path.exists():
        raise CheckpointError(f"{path} is a file; expected the directory of a model, here {path.parent}, or a hub id")
    if re.match(r"\w+://", str(path_or_id)):
        raise CheckpointError(f"{path_or_id} is a URL; expected the directory of a model or a hub id (owner/name)")
    if _is_path(str(path_or_id)):
        nearest = next((parent for parent in path.parents if parent.is_dir()), path.parent)
        missing = f"{nearest} has no {path.relative_to(nearest).parts[0]}" if nearest != path.parent else ""
        hint = missing or _similar_names(path)
        raise CheckpointError(f"no such directory: {path_or_id}{hint and f'; {hint}'}")
    if not _REPOSITORY.fullmatch(str(path_or_id)):
        raise CheckpointError(f"no directory {str(path_or_id)!r}, and it is not a hub id (owner/name)")
    return None


def _is_path(text: str) -> bool:
    """Whether a name can only be a path, and is not searched on the hub."""
    if re.match(r"[A-Za-z]:|[~.]*[/\\]|~", text) or text.endswith(("/", os.sep)) or "\\" in text:
        return True
    return text.count("/") > 1 or ("/" in text and Path(text).parent.is_dir())


def _similar_names(path: Path) -> str:
    """A hint with directories of similar names, for one that does not exist; "" if there are none."""
    parent = path.parent
    try:
        names = [child.name for child in parent.iterdir() if child.is_dir()]
    except OSError:  # the parent does not exist or cannot be read
        return ""
    near = difflib.get_close_matches(path.name, [*names, *(["demo"] if parent == Path() else [])], 3)
    return f"did you mean {' or '.join(str(parent / name) for name in near)}?" if near else ""


def resolve_file(
    path_or_id: str | os.PathLike, filename: str, hub: dict[str, Any] | None = None, *, required: bool = True
) -> Path | None:
    """Find one file of a model, and download it if `path_or_id` is a hub id.

    Args:
        path_or_id: a directory, or a repository id such as "google/roberta2roberta_L-24_bbc".
        filename: name of the file inside it.
        hub: options of `HubOptions`.
        required: raise if the file does not exist; otherwise return None.

    Raises:
        CheckpointError: the file, the directory or the repository does not exist or cannot be reached, or the file is
            not usable (`check_file`). ConfigError: a wrong option.
    """
    options = HubOptions(**(hub or {}))
    directory = local_directory(path_or_id)
    if directory is not None:
        directory = directory / options.subfolder
        path = directory / filename
        if path.exists() or path.is_symlink():
            return check_file(path)
        if not required:
            return None
        best = directory / "best"
        kept = f"; {best} has one, the best checkpoint of a training run" if (best / filename).is_file() else ""
        raise CheckpointError(f"{directory} has no {filename}; it holds: {_listing(directory)}{kept}")
    repository_path = f"{options.subfolder}/{filename}" if options.subfolder else filename
    downloaded = _download(str(path_or_id), repository_path, options, required)
    return None if downloaded is None else check_file(Path(downloaded))


def _download(repository: str, filename: str, options: HubOptions, required: bool) -> str | None:
    """The path in the cache of a repository's file, after a download if needed; None if there is no such file."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    revision, cache = options.revision, None if options.cache_dir is None else Path(options.cache_dir)
    hint = _similar_names(Path(repository))
    not_local = f"no directory {repository!r} here{hint and f' ({hint})'}, and"
    config = filename.rpartition("/")[0] + "/config.json" if "/" in filename else "config.json"

    def cached(name: str) -> bool:
        return isinstance(
            huggingface_hub.try_to_load_from_cache(repository, name, cache_dir=cache, revision=revision), str
        )

    try:
        # Without a connection `hf_hub_download` tries six times, with pauses; this fails at once.
        if not options.local_files_only and not cached(filename):
            url = huggingface_hub.hf_hub_url(repository, filename, revision=revision)
            huggingface_hub.get_hf_file_metadata(url, token=options.token)
        return huggingface_hub.hf_hub_download(
            repository, filename, revision=revision, cache_dir=cache, token=options.token,
            local_files_only=options.local_files_only, force_download=options.force_download,
        )  # fmt: skip
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{not_local} the hub has no repository of that name, or you have no access to it: {error}"
        ) from error
    except LocalEntryNotFoundError as error:
        if not required and cached(config):  # a snapshot is cached, and it does not have this file
            return None
        where = "in the local cache" if options.local_files_only else "on the hub or in the local cache"
        raise CheckpointError(f"{not_local} {repository}'s {filename} was not found {where}: {error}") from error
    except EntryNotFoundError as error:
        if not required:
            return None
        raise CheckpointError(f"{repository} on the hub has no {filename}") from error
    except Exception as error:  # the errors of requests differ between versions of huggingface_hub
        if not required and cached(config):
            return None
        raise CheckpointError(
            f"{not_local} {filename} of {repository} could not be fetched from the hub: {error}"
        ) from error


def check_file(path: Path) -> Path:
    """The path of a model's file; CheckpointError if it is not readable or not the file itself."""
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path} is a link to {os.readlink(path)}, which does not exist")
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; expected a file")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty")
    if head.startswith(b"version https://git-lfs"):
        size = re.search(rb"\nsize (\d+)", head)
        missing = f"the {int(size[1])} bytes of the file itself are" if size else "the file itself is"
        raise CheckpointError(f"{path} is a pointer of git-LFS, {missing} not there: `git lfs pull` fetches it")
    if re.match(rb"\s*(<!doctype html|<html)", head, re.IGNORECASE):
        raise CheckpointError(f"{path} is a web page (HTML), not the file itself; download the file")
    return path


def _listing(directory: Path) -> str:
    if not directory.is_dir():
        return "nothing (no such directory)"
    return ", ".join(sorted(p.name for p in directory.iterdir())[:20]) or "nothing"
