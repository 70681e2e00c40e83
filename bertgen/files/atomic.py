"""What makes bytes stay: whole writes, files replaced in one step, folders that remember a change of names."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# A link in the place of a file of ours is not followed, and Windows changes no byte.
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def behind_links(path: str | os.PathLike) -> Path:
    """What a path leads to, so that a link to it stays."""
    target = Path(os.path.realpath(path))
    # /dev/stdout leads to a pipe by a link that names no file.
    return Path(path) if os.path.exists(path) and not target.exists() else target


def write_all(handle: int, data: bytes | bytearray) -> None:
    """Write all of the data, however little the system takes at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def replace_file(path: Path, data: bytes) -> None:
    """Give a file this content so that it has, after a crash at any moment, its old or its new one."""
    temporary = path.with_name(path.name + ".tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | NO_LINK, 0o666)
    try:
        try:
            write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except BaseException:  # a signal among them
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Put the names in a folder on the disk."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
