"""The input of a job: a file that is digested and counted before its first line is processed."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import InputError
from ..files.text_input import read_lines

_CHUNK = 1 << 20  # bytes that are read at a time


class InputFile:
    """Digest, size and lines of a file; `file` is read once to find them.

    Args:
        file: opened in binary mode; a regular file.
        name: for messages.
    """

    def __init__(self, file: BinaryIO, name: str):
        self._file, self._name = file, name
        self._state = self._stat()
        digest, ends, chunk = hashlib.sha256(), 0, b"\n"
        self._ends_before: list[int] = []  # line ends before each chunk
        while read := file.read(_CHUNK):
            chunk = read
            digest.update(chunk)
            self._ends_before.append(ends)
            ends += chunk.count(b"\n")
        self.bytes = file.tell()
        self.lines = ends + (not chunk.endswith(b"\n"))
        self.digest = digest.hexdigest()

    def shard(self, count: int, index: int) -> tuple[int, int]:
        """Numbers of the first line of shard `index` of `count`, and of the first one after it; from 0."""
        return self.lines * index // count, self.lines * (index + 1) // count

    def offset(self, line: int) -> int:
        """Bytes before a line, numbered from 0; the file's size after the last."""
        if line == 0 or line >= self.lines:
            return 0 if line == 0 else self.bytes
        # The chunk that holds the end of the line before.
        chunk = bisect_right(self._ends_before, line - 1) - 1
        self._file.seek(chunk * _CHUNK)
        content, place = self._file.read(_CHUNK), 0
        for _ in range(line - self._ends_before[chunk]):
            place = content.index(b"\n", place) + 1
        return chunk * _CHUNK + place

    def read(self, offset: int, count: int) -> Iterator[bytes]:
        """The `count` lines that begin at a byte offset, with their ends."""
        self._file.seek(offset)
        return read_lines(self._file, self._name, count)

    def check(self) -> None:
        """Raise InputError if the file has changed since it was opened."""
        if self._stat() != self._state:
            raise InputError(f"{self._name} has changed while it was read")

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns
