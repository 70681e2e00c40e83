"""Where the files of a model are: a local directory or a repository on the Hugging Face hub."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

from .arguments import older, settled
from .errors import CheckpointError, ConfigError, quoted

DEMO_MODEL = Path(__file__).parent / "demo"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder")


def split_hub_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options without those of `resolve_file` and without transformers' arguments that change nothing; and those."""
    others = settled(options)
    others["token"] = older(others, "use_auth_token", others.get("token"))
    hub = {name: others.pop(name) for name in OPTIONS if name in others}
    return others, {name: value for name, value in hub.items() if value is not None}


def as_path(path_or_id: Any, called: str = "path_or_id") -> Path:
    """A path, from "~" on a home directory's, or hub id as a Path; `called` is the argument's name.

    Raises:
        ConfigError: it is neither. CheckpointError: a path that may not be looked at, or is too long to be one.
    """
    name = os.fspath(path_or_id) if isinstance(path_or_id, (str, os.PathLike)) else None
    if not isinstance(name, str) or not name or "\0" in name:  # Path("") would be the current directory
        raise ConfigError(f"{called} must be a path or a hub id, got {quoted(path_or_id)}")
    try:
        path = Path(path_or_id).expanduser()
        path.exists()
    except RuntimeError as error:
        raise ConfigError(f"{called} {name!r}: there is no such home directory") from error
    except OSError as error:
        raise CheckpointError(f"{quoted(name)} cannot be looked at: {error.strerror}") from error
    return path


def local_directory(path_or_id: str | os.PathLike) -> Path | None:
    """Return the directory that `path_or_id` names, or None where it is a hub id.

    The name "demo" stands for the model that ships with the package, unless a directory of that name is in the way.

    Raises:
        CheckpointError: it names a file, or has the form of a path to a directory that does not exist.
    """
    path = as_path(path_or_id)
    if path.is_dir():
        return path
    if str(path) == "demo":
        return DEMO_MODEL
    if path.exists():
        raise CheckpointError(f"{path} is a file; a model is named by its directory, here {path.parent}, or its hub id")
    if re.match(r"\w+://", str(path_or_id)):
        raise CheckpointError(f"{path_or_id} is a URL; a model is named by its directory or its hub id (owner/name)")
    if _is_path(str(path_or_id)):
        there = next((one for one in path.parents if one.is_dir()), path.parent)
        lacking = f"{there} has no {path.relative_to(there).parts[0]}" if there != path.parent else ""
        hint = lacking or _alike(path)
        raise CheckpointError(f"no such directory: {path_or_id}{hint and f'; {hint}'}")
    if not _REPOSITORY.fullmatch(str(path_or_id)):
        raise CheckpointError(f"no directory {str(path_or_id)!r}, and that is no hub id (owner/name) either")
    return None


def _is_path(text: str) -> bool:
    """Whether a name that no directory has can be that of a directory only: the hub is not asked for it."""
    if re.match(r"[A-Za-z]:|[~.]*[/\\]|~", text) or text.endswith(("/", os.sep)) or "\\" in text:
        return True
    return text.count("/") > 1 or ("/" in text and Path(text).parent.is_dir())


def _alike(path: Path) -> str:
    """A hint at directories of similar names beside one that does not exist."""
    parent = path.parent
    try:
        names = [one.name for one in parent.iterdir() if one.is_dir()]
    except OSError:  # the parent does not exist either, or may not be read
        return ""
    near = difflib.get_close_matches(path.name, [*names, *(["demo"] if parent == Path() else [])], 3)
    return f"did you mean {' or '.join(str(parent / name) for name in near)}?" if near else ""


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
        CheckpointError: the file, the directory or the repository is not there, or cannot be reached; or the file is
            something else in its place (`checked_file`).
    """
    for name, value, kinds in (
        ("revision", revision, str), ("cache_dir", cache_dir, (str, os.PathLike)), ("token", token, (str, bool)),
        ("local_files_only", local_files_only, bool),
    ):  # fmt: skip
        if value is not None and not isinstance(value, kinds):
            raise ConfigError(f"{name} is not as huggingface_hub.hf_hub_download takes it, got {quoted(value)}")
    directory = local_directory(path_or_id)
    if directory is not None:
        directory = directory / subfolder
        path = directory / filename
        if path.exists() or path.is_symlink():
            return checked_file(path)
        if not required:
            return None
        best = directory / "best"
        kept = f"; {best} has one: what a training into this folder kept" if (best / filename).is_file() else ""
        raise CheckpointError(f"{directory} has no {filename}; it holds: {_listing(directory)}{kept}")
    found = _fetched(
        str(path_or_id), f"{subfolder}/{filename}" if subfolder else filename, required, revision=revision,
        cache_dir=None if cache_dir is None else Path(cache_dir), token=token, local_files_only=local_files_only,
        force_download=force_download,
    )  # fmt: skip
    return None if found is None else checked_file(Path(found))


def _fetched(repository: str, filename: str, required: bool, **options: Any) -> str | None:
    """The path of a repository's file in the cache, where it is now; None where there is no such file.

    Args:
        options: of `hf_hub_download`.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    revision, cache = options["revision"], options["cache_dir"]
    hint = _alike(Path(repository))
    nobody = f"no directory {repository!r} here{hint and f' ({hint})'}, and"
    config = filename.rpartition("/")[0] + "/config.json" if "/" in filename else "config.json"

    def cached(name: str) -> bool:
        return isinstance(hub.try_to_load_from_cache(repository, name, cache_dir=cache, revision=revision), str)

    try:
        # `hf_hub_download` asks for a file that is not in the cache six times, with pauses, where nobody answers.
        if not options["local_files_only"] and not cached(filename):
            hub.get_hf_file_metadata(hub.hf_hub_url(repository, filename, revision=revision), token=options["token"])
        return hub.hf_hub_download(repository, filename, **options)
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{nobody} the hub has no repository of that name that you may read: {error}") from error
    except LocalEntryNotFoundError as error:
        if not required and cached(config):  # some snapshot is there, and this file is not in it
            return None
        where = "in the local cache" if options["local_files_only"] else "on the hub or in the local cache"
        raise CheckpointError(f"{nobody} {repository}'s {filename} was not found {where}: {error}") from error
    except EntryNotFoundError as error:
        if not required:
            return None
        raise CheckpointError(f"{repository} on the hub has no {filename}") from error
    except Exception as error:  # of the library that asks, which is another one in each version of huggingface_hub
        if not required and cached(config):
            return None
        raise CheckpointError(
            f"{nobody} {filename} of {repository} could not be fetched from the hub: {error}"
        ) from error


def checked_file(path: Path) -> Path:
    """The path of a model's file; CheckpointError where something else is in its place."""
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
        lacks = f"the {int(size[1])} bytes of the file itself are" if size else "the file itself is"
        raise CheckpointError(
            f"{path} is a pointer of git-LFS, {lacks} not there: `git lfs pull` fetches what it names"
        )
    if re.match(rb"\s*(<!doctype html|<html)", head, re.IGNORECASE):
        raise CheckpointError(f"{path} is a web page (HTML), not the file that the page is about; download it as it is")
    return path


def _listing(directory: Path) -> str:
    if not directory.is_dir():
        return "nothing (no such directory)"
    return ", ".join(sorted(p.name for p in directory.iterdir())[:20]) or "nothing"
