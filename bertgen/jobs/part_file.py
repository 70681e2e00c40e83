"""The unfinished output of a job: a file with the records of finished windows, and a file with its metadata.

For an output OUT there are OUT.part, the records, and OUT.job, a JSON object: the metadata (under "task"), the number
of committed bytes of OUT.part, their digest, and the report. A commit syncs the records, then replaces OUT.job in one
step. So OUT.job never counts bytes that are not on the disk, and the next run cuts OUT.part off after the committed
bytes. A commit includes the records of ended windows alone. At the end OUT.part is renamed to OUT, then OUT.job is
removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
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
_BACKENDS = re.compile(r"\b(?:cuBLAS|onednn|reference|triton)\b")
_START_OVER = "restart throws away what is done and starts over"


class PartFile:
    """The unfinished output of a job, which one process at a time can hold; a context manager.

    When the `with` block is left by an error, or by a crash, what was committed stays.

    Args:
        path: of the output, OUT.
        overwrite: replace a file OUT that is there already.
        restart: discard what an earlier run has committed.

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
        self._removable = False  # the files are there and have no records
        self._window_end = 0, ""  # bytes of ended windows, and their digest
        self._renamed = False  # whether a run before this one gave OUT its name and could not remove OUT.job

    @property
    def names(self) -> list[Path]:
        """All files that a job writes."""
        return [self.target, self.part, self.job, temporary_file(self.job)]

    def __enter__(self) -> PartFile:
        if not self.job.exists():
            self._check_absent()
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

    def begin(self, metadata: dict[str, Any]) -> dict[str, Any] | None:
        """Start the job or resume it; returns the report of the last commit, None where there was none.

        Args:
            metadata: what the records depend on, as a JSON object.

        Raises:
            ConfigError: the part file is of other metadata, or is not as it was committed.
        """
        self._metadata = json.loads(json.dumps(metadata))
        size = os.fstat(self._handle).st_size
        self._saved = None if self.restart else self._read_job_file(size)
        if self._saved is None:
            self._check_absent()
            self._digest, self._bytes = hashlib.sha256(), 0
            self._window_end = 0, self._digest.hexdigest()
            self._write_job_file({}, complete=False)  # before the first record, so that OUT.part is known to be ours
            self._removable = True
        else:
            self._check_saved(size)
        self._window_end = self._bytes, self._digest.hexdigest()
        with output_errors(self.path):
            os.ftruncate(self._handle, self._bytes)
            os.lseek(self._handle, self._bytes, os.SEEK_SET)
        return self._saved["report"] if self._saved and self._saved["report"] else None

    def damage_error(self, error: Exception) -> ConfigError:
        """The error to raise about an OUT.job with impossible content."""
        return ConfigError(f"{self.job} is damaged ({error!r}); {_START_OVER}")

    def write(self, record: bytes) -> None:
        """Append to the records; a commit includes them after the next `end_window`."""
        self._buffer += record
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def end_window(self) -> None:
        """End a window: the next commit includes all records written so far."""
        self._flush()
        self._window_end = self._bytes, self._digest.hexdigest()

    def commit(self, report: dict[str, Any], complete: bool) -> None:
        """Put the records of all ended windows on the disk, then OUT.job.

        Args:
            report: of these records; `begin` of the next run returns it.
            complete: these were the last records.
        """
        with output_errors(self.path):
            sync_handle(self._handle)
        self._removable = False
        self._write_job_file(report, complete)

    def finish(self) -> None:
        """Give the complete records the name of the output."""
        if self._renamed:
            self._remove()
            return
        self._check_absent()
        with output_errors(self.path):
            self._close_for_windows()
            rename_file(self.part, self.target)
            remove_files(self.job)

    def _locked(self) -> int:
        while True:
            handle = os.open(self.part, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
            try:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigError(f"{self.part} is no file; {self.path} grows there")
                self._lock(handle)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(status, os.stat(self.part)):
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

    def _read_job_file(self, size: int) -> dict[str, Any] | None:
        """The content of OUT.job; None where there is none."""
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
                    f"{self.part} is there without {self.job}, and may belong to another program; {_START_OVER}"
                ) from None
            return None
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise self.damage_error(error) from error

    def _check_saved(self, size: int) -> None:
        """Check that metadata and records are those of OUT.job."""
        if differences := _differences(self._saved["task"], self._metadata):
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
        self._check_absent()
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

    def _write_job_file(self, report: dict[str, Any], complete: bool) -> None:
        content = dict(
            version=VERSION,
            task=self._metadata,
            bytes=self._window_end[0],
            digest=self._window_end[1],
            complete=complete,
            report=report,
        )
        write_file(self.job, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n", name=self.path)

    def _remove(self) -> None:
        """Remove all files of the job, in an order that a later run can read wherever this one is stopped."""
        with output_errors(self.path):
            self._close_for_windows()
            remove_files(self.part, *self.names[2:])

    def _close_for_windows(self) -> None:
        if os.name == "nt":  # where a file that is open keeps its name
            os.close(self._handle)
            self._handle = os.open(os.devnull, os.O_RDONLY)

    def _check_absent(self) -> None:
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
    """The differences of two jobs' metadata in words; empty where they are the same."""
    names = [name for name in {**then, **now} if not _is_same(name, then.get(name), now.get(name))]
    return ", ".join(
        f"{name} was {_abbreviated(then.get(name))} and is {_abbreviated(now.get(name))}" for name in names
    )


def _is_same(name: str, then: Any, now: Any) -> bool:
    """Whether a value of two jobs' metadata is the same.

    Operators are described in words, which differ between versions of bertgen: the backends that the words name count,
    except the C++ extension, which has its own entry. A version without an entry for an operator has it in others.
    """
    if not name.startswith("operator "):
        return then == now
    return then is None or now is None or set(_BACKENDS.findall(str(then))) == set(_BACKENDS.findall(str(now)))


def _abbreviated(value: Any) -> str:
    text = "not set" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
