"""The output of a job while it grows: a file of finished windows, and beside it what they are the answer to.

For an output OUT there are OUT.part, the records, and OUT.job, JSON: the task, how many bytes of OUT.part count, their
digest, and the report. A commit puts the records on the disk, then replaces OUT.job in one step; so OUT.job never
speaks of bytes that are not there, and what OUT.part has behind them is cut off by the next run. What was marked, a
finished window, is committed by the next commit, whatever was written behind it. At the end OUT.part
takes the name OUT, then OUT.job goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from ..errors import ConfigError, OutputError
from ..files.atomic import (
    NO_LINK,
    output_errors,
    remove_files,
    rename_file,
    resolve_links,
    sync_handle,
    temporary_file,
    write_all,
    write_file,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

VERSION = 1  # of OUT.job
_BUFFER = 1 << 20
_START_OVER = "restart throws away what is done and starts over"


class PartFile:
    """The unfinished output of a job, which one process at a time can hold; a context manager.

    When the `with` block is left by an error, or by a crash, what was committed stays.

    Args:
        path: of the output, OUT.
        overwrite: replace a file OUT that is there already.
        restart: throw away what an earlier run has committed.

    Raises:
        ConfigError: OUT is there and `overwrite` is not set; another process holds OUT.part.
        OutputError: a file cannot be written.
    """

    def __init__(self, path: str | os.PathLike, overwrite: bool = False, restart: bool = False):
        self.path, self.overwrite, self.restart = path, overwrite, restart
        self.target = resolve_links(path)
        self.part = self.target.with_name(self.target.name + ".part")
        self.job = self.target.with_name(self.target.name + ".job")
        self._buffer = bytearray()
        self._saved: dict[str, Any] | None = None
        self._removable = False  # nothing but an empty start of ours is there
        self._marked = 0, ""  # bytes that may be committed, and their digest
        self._renamed = False  # whether a run before this one gave OUT its name and could not remove OUT.job

    @property
    def names(self) -> list[Path]:
        """All that a job writes to."""
        return [self.target, self.part, self.job, temporary_file(self.job)]

    def __enter__(self) -> PartFile:
        if not self.job.exists():
            self._refuse_existing()
        with output_errors(self.path):
            self._handle = self._locked()
            self._removable = os.fstat(self._handle).st_size == 0 and not self.job.exists()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None and self._removable:
                with contextlib.suppress(OutputError):
                    self._remove()
        finally:
            os.close(self._handle)

    def begin(self, task: dict[str, Any]) -> dict[str, Any] | None:
        """Take up the task; the report of the last commit, or None where there was none.

        Args:
            task: what the records depend on, as a JSON object.

        Raises:
            ConfigError: what is there is of another task, or not as it was committed.
        """
        self._task = json.loads(json.dumps(task))
        size = os.fstat(self._handle).st_size
        self._saved = None if self.restart else self._load(size)
        if self._saved is None:
            self._refuse_existing()
            self._digest, self._bytes = hashlib.sha256(), 0
            self._marked = 0, self._digest.hexdigest()
            self._save({}, complete=False)  # before the first record, so that OUT.part is known to be ours
            self._removable = True
        else:
            self._take_up(size)
        self._marked = self._bytes, self._digest.hexdigest()
        with output_errors(self.path):
            os.ftruncate(self._handle, self._bytes)
            os.lseek(self._handle, self._bytes, os.SEEK_SET)
        return self._saved["report"] if self._saved and self._saved["report"] else None

    def damaged(self, error: Exception) -> ConfigError:
        """What to raise where OUT.job says what it cannot have been told."""
        return ConfigError(f"{self.job} is damaged ({error!r}); {_START_OVER}")

    def write(self, record: bytes) -> None:
        """Append to the records; they count from the next mark on."""
        self._buffer += record
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def mark(self) -> None:
        """What is written so far may be committed."""
        self._flush()
        self._marked = self._bytes, self._digest.hexdigest()

    def commit(self, report: dict[str, Any], complete: bool) -> None:
        """Make last what was written before the mark.

        Args:
            report: of what stands before the mark; comes back from `begin` of the next run.
            complete: these were the last records.
        """
        with output_errors(self.path):
            sync_handle(self._handle)
        self._removable = False
        self._save(report, complete)

    def finish(self) -> None:
        """Give the complete records the name of the output."""
        if self._renamed:
            self._remove()
            return
        self._refuse_existing()
        with output_errors(self.path):
            self._let_go()
            rename_file(self.part, self.target)
            remove_files(self.job)

    def _locked(self) -> int:
        while True:
            handle = os.open(self.part, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
            try:
                found = os.fstat(handle)
                if not stat.S_ISREG(found.st_mode):
                    raise ConfigError(f"{self.part} is no file; {self.path} grows there")
                self._lock(handle)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(found, os.stat(self.part)):
                        return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # another process has just finished it or thrown it away

    def _lock(self, handle: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another process is writing {self.path}: it holds {self.part}") from error
        except OSError:
            pass  # a file system without locks

    def _load(self, size: int) -> dict[str, Any] | None:
        """What OUT.job says; None where it is not there."""
        try:
            saved = json.loads(self.job.read_bytes())
            if saved["version"] != VERSION:
                raise ConfigError(f"{self.job} is of another version of bertgen; {_START_OVER}")
            for name, kind in (("task", dict), ("bytes", int), ("digest", str), ("report", dict), ("complete", bool)):
                if not isinstance(saved[name], kind):
                    raise ValueError(f"{name} is {saved[name]!r}")
            if saved["bytes"] < 0 or (saved["bytes"] and not saved["report"]):
                raise ValueError(f"bytes is {saved['bytes']}, report is {saved['report']}")
            return saved
        except FileNotFoundError:
            if size:
                raise ConfigError(
                    f"{self.part} is there without {self.job}, and may be of someone else; {_START_OVER}"
                ) from None
            return None
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise self.damaged(error) from error

    def _take_up(self, size: int) -> None:
        """Check that task and records are those of OUT.job."""
        if differences := _differences(self._saved["task"], self._task):
            raise ConfigError(f"{self.path} was begun as another job: {differences}; {_START_OVER}")
        self._bytes = self._saved["bytes"]
        with output_errors(self.path):
            self._digest = _digest(self._handle, self._bytes)
            if size == 0 and self._saved["complete"] and self.target.is_file():
                handle = os.open(self.target, os.O_RDONLY | NO_LINK)
                try:
                    whole = os.fstat(handle).st_size == self._bytes
                    self._renamed = whole and _digest(handle, self._bytes).hexdigest() == self._saved["digest"]
                finally:
                    os.close(handle)
        if self._renamed:
            self._bytes = 0
            return
        self._refuse_existing()
        if size < self._bytes or self._digest.hexdigest() != self._saved["digest"]:
            raise ConfigError(
                f"{self.part} has changed: its first {self._bytes} bytes are not those of {self.job}; {_START_OVER}"
            )

    def _flush(self) -> None:
        with output_errors(self.path):
            write_all(self._handle, self._buffer)
        self._digest.update(self._buffer)
        self._bytes += len(self._buffer)
        self._buffer = bytearray()

    def _save(self, report: dict[str, Any], complete: bool) -> None:
        content = dict(
            version=VERSION,
            task=self._task,
            bytes=self._marked[0],
            digest=self._marked[1],
            complete=complete,
            report=report,
        )
        write_file(self.job, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n", name=self.path)

    def _remove(self) -> None:
        """Leave nothing, in an order that a later run understands wherever this one is stopped."""
        with output_errors(self.path):
            self._let_go()
            remove_files(self.part, *self.names[2:])

    def _let_go(self) -> None:
        if os.name == "nt":  # where a file that is open keeps its name
            os.close(self._handle)
            self._handle = os.open(os.devnull, os.O_RDONLY)

    def _refuse_existing(self) -> None:
        if self.target.exists() and not self.overwrite:
            raise ConfigError(f"{self.path} is there already; overwrite replaces it")


def _digest(handle: int, size: int) -> Any:
    """The digest of the first `size` bytes of a file."""
    digest = hashlib.sha256()
    os.lseek(handle, 0, os.SEEK_SET)
    while size and (read := os.read(handle, min(size, _BUFFER))):
        digest.update(read)
        size -= len(read)
    return digest


def _differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two tasks, in words; nothing where they are the same."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return ", ".join(f"{name} was {_short(then.get(name))} and is {_short(now.get(name))}" for name in names)


def _short(value: Any) -> str:
    text = "not set" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
