"""Files and directories that appear whole: bertgen writes all its files through this module.

Durability. The content goes into a temporary file in the same directory, which is synced (fsync), then renamed; then
the directory is synced. So after a crash of the process or the system, or a power failure, at any moment, a name holds
its old content or its new content and never a part of it, and a new name is whole or absent. When a write returns, the
new content is on the disk under its name.

Errors. A write that fails, on a full disk for example, raises OutputError with the name of the file and the reason of
the system. It removes its temporary file and leaves the old content.

Temporary files. A killed process can leave one. `atomic_write` takes NAME.tmp, which the next write of NAME replaces:
one process at a time writes such a file. `NewFile` takes .bertgen-<random>.tmp and `update_directory` .NAME.<random>:
two processes may write the same output, and the last one to finish wins. A temporary file never follows a link.

Links. Where the user names the file (`NewFile`, and `PartFile` of a job) a symbolic link is followed: the link stays
and its target is replaced. Where bertgen names it, like config.json in a directory, the new file replaces a link and
the target of the link stays as it is.

Permissions. Files get 0o666 and directories 0o777, less the umask; a replaced file does not pass its permissions on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import CheckpointError, ConfigError, OutputError

# A link in the place of a file of ours is not followed, and Windows changes no byte.
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
# What file systems answer that cannot sync a directory, or a directory that may be written and not read.
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)


@contextlib.contextmanager
def output_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn the system's errors about a file that is written into OutputErrors that name it."""
    try:
        yield
    except (BrokenPipeError, OutputError, CheckpointError):  # a pipe without a reader is no fault of the file
        raise
    except Exception as error:
        if (reason := _system_reason(error)) is None:
            raise
        raise OutputError(f"{path} cannot be written: {reason}") from error


def _system_reason(error: Exception) -> str | None:
    """The message of the system, if it is the cause of the error: torch and safetensors wrap it."""
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__
    if isinstance(error, OSError):
        return error.strerror or str(error)
    match = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(match[1])) if match else None


def resolve_links(path: str | os.PathLike) -> Path:
    """The file that a path leads to, so that a link to it stays."""
    target = Path(os.path.realpath(path))
    # /dev/stdout leads to a pipe by a link that names no file.
    return Path(path) if os.path.exists(path) and not target.exists() else target


def write_all(handle: int, data: bytes | bytearray) -> None:
    """Write all of the data, however little the system takes at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def sync_handle(handle: int) -> None:
    """Put what was written to an open file on the disk."""
    os.fsync(handle)


def sync_directory(path: Path) -> None:
    """Put the names in a directory on the disk, where the file system can."""
    if os.name == "nt":  # Windows cannot open a directory
        return
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


def rename_file(path: Path, target: Path) -> None:
    """Give a synced file another name in its directory, durably; a file of that name is replaced."""
    os.replace(path, target)
    sync_directory(target.parent)


def remove_files(*paths: Path) -> None:
    """Remove files of one directory, in this order and durably; those that are absent are skipped."""
    for path in paths:
        path.unlink(missing_ok=True)
    sync_directory(paths[0].parent)


@contextlib.contextmanager
def atomic_write(path: Path, name: str | os.PathLike | None = None) -> Iterator[BinaryIO]:
    """A new file, open for writing bytes, that replaces `path` when the block ends without an error.

    Args:
        path: of the file.
        name: for errors; None is `path`.

    Raises:
        OutputError: it cannot be written; an error of the system inside the block counts as one of this file.
    """
    temporary = temporary_file(path)
    with output_errors(path if name is None else name):
        file = _create(temporary, os.O_TRUNC)
        try:
            with file:
                yield file
                _flush_to_disk(file)
            rename_file(temporary, path)
        except BaseException:  # a signal among them
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_file(path: Path, data: bytes, name: str | os.PathLike | None = None) -> None:
    """Give a file this content, as `atomic_write`."""
    with atomic_write(path, name) as file:
        file.write(data)


def temporary_file(path: Path) -> Path:
    """The temporary file of `atomic_write`."""
    return path.with_name(path.name + ".tmp")


class NewFile:
    """An output of the user that appears under its name, whole, when the `with` block ends without an error.

    A device or a pipe is written to directly, record by record.

    Raises:
        ConfigError: the file is there already and `overwrite` is not set.
        OutputError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike, overwrite: bool = False):
        self.path, self.overwrite = path, overwrite
        self._target = resolve_links(path)
        special = self._target.exists() and not self._target.is_file()
        self._temporary = None if special else self._target.with_name(f".bertgen-{secrets.token_hex(4)}.tmp")

    def __enter__(self) -> NewFile:
        self._check_absent()
        with output_errors(self.path):
            self._file = _create(self._temporary, os.O_EXCL) if self._temporary else open(self._target, "wb")
        return self

    def write(self, data: bytes) -> None:
        """Append to the file."""
        with output_errors(self.path):
            self._file.write(data)
            if not self._temporary:  # the reader of a pipe waits for each record
                self._file.flush()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with output_errors(self.path), self._file:
                if kind is None:
                    _flush_to_disk(self._file) if self._temporary else self._file.flush()
            if kind is None and self._temporary:
                self._check_absent()
                with output_errors(self.path):
                    rename_file(self._temporary, self._target)
        except OutputError:
            if kind is None:
                raise
        finally:
            if self._temporary:
                self._temporary.unlink(missing_ok=True)

    def _check_absent(self) -> None:
        if self._temporary and self._target.exists() and not self.overwrite:
            raise ConfigError(f"{self.path} is there already; overwrite replaces it")


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A new directory that replaces the directory `path` as a whole when the block ends without an error.

    Two renames replace a directory that is there. After a crash between them the old one is complete under another
    name, and `recover_directory` puts it back. One process at a time writes `path`.

    Raises:
        OutputError: it cannot be written; an error of the system inside the block counts as one of this directory.
    """
    temporary, old = path.with_name(f".{path.name}.tmp"), _former(path)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with output_errors(path):
        try:
            temporary.mkdir()
            with _named(temporary, path):
                yield temporary
            _sync_tree(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # its space may be what the next file needs
            raise
        if path.exists():
            os.rename(path, old)
        os.rename(temporary, path)
        sync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_directory(path: Path) -> None:
    """Put the old directory back if a crash came between the two renames of `atomic_directory`."""
    if _former(path).exists() and not path.exists():
        os.rename(_former(path), path)
        sync_directory(path.parent)


@contextlib.contextmanager
def update_directory(path: Path, stale: Callable[[set[str], set[str]], set[str]]) -> Iterator[Path]:
    """A temporary directory that becomes the directory `path` when the block ends without an error.

    A new directory appears whole. Where `path` is there, the stale files are removed and the new files replace those
    of their names, one after the other, JSON files last; all others stay.

    Args:
        path: of the directory; its parents are made.
        stale: names that are there, names that were written -> those of the former to remove.

    Raises:
        OutputError: a file cannot be written.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        outer = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary = outer / "new"
        temporary.mkdir()
    try:
        with _named(temporary, path):
            yield temporary
        with output_errors(path):
            mode = stat.S_IMODE(temporary.stat().st_mode) & 0o666  # safetensors writes files for their owner only
            for file in temporary.iterdir():
                file.chmod(mode)
            _sync_tree(temporary)
            if not path.exists():
                os.rename(temporary, path)
                sync_directory(path.parent)
                return
            written = {file.name for file in temporary.iterdir()}
            for name in stale({file.name for file in path.iterdir()}, written):
                (path / name).unlink()
            for name in sorted(written, key=lambda name: name.endswith(".json")):
                os.replace(temporary / name, path / name)
            sync_directory(path)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _create(path: Path, flag: int) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flag | NO_LINK, 0o666), "wb")


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _named(temporary: Path, path: Path) -> Iterator[None]:
    """Let OutputErrors name the file as it will be called, and not the temporary one."""
    try:
        yield
    except OutputError as error:
        raise OutputError(str(error).replace(str(temporary), str(path))) from error


def _former(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _sync_tree(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_dir():
            sync_directory(file)
            continue
        handle = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    sync_directory(path)
