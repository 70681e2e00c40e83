"""Input files: their formats, by suffix and first bytes, and their lines.

All texts are read through this module. A file that is no text is refused before its first line, and a line that is too
long is read and not kept.
"""

from __future__ import annotations

import os
import re
import select
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import ConfigError, InputError

FORMAT_OF_SUFFIX = {".txt": "text", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
LINE_BYTES = 1 << 24  # of the longest line that is read
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEAD = 4096  # bytes by which a file's kind is recognised
_KEPT = 80  # bytes of a longer line, for messages
_CHUNK = 1 << 16  # bytes that are taken from a pipe at a time
_TOGETHER = 0.05  # seconds that a line of a pipe waits for others

# First bytes of a file, in lower case, and its kind. A longer mark stands before a mark that it begins with.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"\x04\x22\x4d\x18", "compressed by lz4"),
    (b"bzh", "compressed by bzip2"),
    (b"\xfd7zxz\x00", "compressed by xz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"pk\x03\x04", "a zip archive, or what is one inside (docx, xlsx, npz, a file of torch)"),
    (b"par1", "Parquet"),
    (b"arrow1", "Arrow"),
    (b"fea1", "Feather"),
    (b"\xff\xff\xff\xff", "a stream of Arrow"),
    (b"obj\x01", "Avro"),
    (b"\x89hdf", "HDF5"),
    (b"\x93numpy", "an array of NumPy"),
    (b"sqlite format 3", "a database of SQLite"),
    (b"%pdf-", "a PDF"),
    (b"{\\rtf", "RTF"),
    (b"\xd0\xcf\x11\xe0", "an old document of Office"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "XML"),
    (b"version https://git-lfs", "a pointer of git-LFS, without the file itself (`git lfs pull` fetches it)"),
    *((bytes((0x80, protocol)), "a pickle of Python") for protocol in (2, 3, 4, 5)),
)
_LONE_RETURN = re.compile(rb"\r[^\r\n]")
_ARRAY = re.compile(rb"\s*\[\s*(\{|$)")
# Suffixes of files that are not lines of text.
_OTHER_SUFFIXES = frozenset(
    ".csv .json .yaml .yml .xml .tmx .html .htm .pdf .doc .docx .xls .xlsx .ods .rtf .gz .tgz .bz2 .xz .zst .zip .7z "
    ".tar .lz4 .parquet .arrow .feather .avro .h5 .hdf5 .npy .npz .pkl .pickle .pt .pth .bin .safetensors .db".split()
)
_FORMATS = "text (.txt), tsv (.tsv) and jsonl (.jsonl, .ndjson)"


class LongLine(bytes):
    """The beginning of a line above LINE_BYTES, which is not read; `size` is that of the whole."""

    size: int = 0

    @classmethod
    def of(cls, beginning: bytes, size: int, ended: bool) -> LongLine:
        """The line that begins so; with a line end if it has one."""
        line = cls(beginning[:_KEPT] + b"\n" * ended)
        line.size = size
        return line


def size_of(line: bytes) -> int:
    """Bytes of a line in its file."""
    return line.size if isinstance(line, LongLine) else len(line)


def is_blank(line: bytes) -> bool:
    """Whether a line has only white space; False for one that is too long, of which only the beginning is known."""
    return not isinstance(line, LongLine) and not line.strip()


def check_length(line: bytes) -> None:
    """InputError where a line was too long to be read."""
    if isinstance(line, LongLine):
        raise InputError(f"{line.size} bytes, the limit of a line is {LINE_BYTES}")


def line_content(line: bytes, first: bool) -> bytes:
    """A line without its end, LF or CRLF, and without a byte-order mark where it is the first; empty if too long."""
    if isinstance(line, LongLine):
        return b""
    content = line.removesuffix(b"\n").removesuffix(b"\r")
    return content.removeprefix(_BYTE_ORDER_MARK) if first else content


def decoded(content: bytes) -> str:
    """UTF-8 as text; InputError where it is none, or a line that is too long."""
    check_length(content)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: {error.reason} at byte {error.start}") from error


def format_of(path: str | os.PathLike) -> str | None:
    """The format that the suffix of a file names, None where it has no suffix; ConfigError where it is of no format."""
    suffix = Path(path).suffix.lower()
    if suffix and suffix not in FORMAT_OF_SUFFIX:
        raise ConfigError(f"{path}: {suffix} is the suffix of no format; there are {_FORMATS}; say which with format")
    return FORMAT_OF_SUFFIX.get(suffix)


def check_name(path: str | os.PathLike, *formats: str) -> None:
    """ConfigError where the suffix of a file is that of another format."""
    suffix = Path(path).suffix.lower()
    if suffix in _OTHER_SUFFIXES or FORMAT_OF_SUFFIX.get(suffix, formats[0]) not in formats:
        raise ConfigError(
            f"{path}: {suffix} is not read here, but {' and '.join(formats)} {'are' if len(formats) > 1 else 'is'}"
        )


def check_beginning(head: bytes, name: str | os.PathLike) -> None:
    """InputError where a file that begins with these bytes is no UTF-8 text."""
    small = head[:_HEAD].lower()
    kind = next((kind for mark, kind in _BEGINNINGS if small.startswith(mark)), None)
    if kind is None and small[257:262] == b"ustar":
        kind = "a tar archive"
    if kind is None and 5 * small.count(b"\0") > len(small):
        kind = "UTF-16 without its mark, or no text: it is full of NUL bytes"
    if kind is not None:
        raise InputError(f"{name} is {kind}; what is read is text in UTF-8")
    if b"\n" not in small and _LONE_RETURN.search(small):  # one line here, many on an old Mac
        raise InputError(f"{name} ends its lines with CR alone, as old Macs do; lines end with LF or CRLF")


def check_json_lines(beginning: bytes, name: str | os.PathLike) -> None:
    """InputError where JSON that begins so is an array of objects, of which single lines may be objects by chance."""
    if _ARRAY.match(beginning):
        raise InputError(f"{name} is a JSON array; JSON lines hold an object in each line (`jq -c '.[]'` makes them)")


def is_regular(file: BinaryIO) -> bool:
    """Whether an open file can be read twice: no pipe, no device, nothing in memory."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):
        return False


def open_input(path: str | os.PathLike) -> BinaryIO:
    """Open a file of texts for reading bytes; InputError where that fails, or where it begins like no text."""
    try:
        file = open(path, "rb")
        try:
            if is_regular(file):  # a pipe is checked at its first line
                check_beginning(file.peek(_HEAD), path)
        except BaseException:
            file.close()
            raise
        return file
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def check_input(path: str | os.PathLike) -> None:
    """The errors of `open_input`, for a file; a pipe is not opened."""
    if os.path.isfile(path) or not os.path.exists(path) or os.path.isdir(path):
        open_input(path).close()


def read_lines(file: BinaryIO, name: str | os.PathLike, count: int | None = None) -> Iterator[bytes]:
    """Lines from where an open file stands, with their ends; a `LongLine` in the place of one above LINE_BYTES.

    Args:
        name: for messages.
        count: of lines; None reads all.

    Raises:
        InputError: it cannot be read, or what is no regular file begins like no text.
    """
    first = not is_regular(file)
    try:
        while count is None or count > 0:
            line = file.readline(LINE_BYTES + 1)
            if not line:
                return
            if first:
                check_beginning(line, name)
                first = False
            if len(line) > LINE_BYTES:
                line = _skipped(file, line)
            yield line
            count = None if count is None else count - 1
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from error


def _skipped(file: BinaryIO, beginning: bytes) -> bytes:
    """Read to the end of a long line without keeping it."""
    size, piece = len(beginning), beginning
    while not piece.endswith(b"\n") and (piece := file.readline(_CHUNK)):
        size += len(piece)
    return LongLine.of(beginning, size, piece.endswith(b"\n"))


class Incoming:
    """Lines of a pipe or terminal, with their ends, as they come: an iterator that can tell whether there are more.

    Args:
        file: open for reading bytes; nothing of it was read yet.
        name: for messages.

    Raises:
        InputError: it cannot be read, or begins like no text.
    """

    def __init__(self, file: BinaryIO, name: str | os.PathLike):
        self._handle, self._name = file.fileno(), name
        self._lines: deque[bytes] = deque()
        self._held, self._size = bytearray(), 0  # of the line that has begun
        self._begun = self._ended = False

    def __iter__(self) -> Incoming:
        return self

    def __next__(self) -> bytes:
        while not self._lines:
            if self._ended:
                raise StopIteration
            self._take()
        return self._lines.popleft()

    def more(self) -> bool:
        """Whether another line is here, or comes at once."""
        until = time.monotonic() + _TOGETHER
        while not self._lines and not self._ended:
            if not select.select([self._handle], [], [], max(0.0, until - time.monotonic()))[0]:
                return False
            self._take()
        return bool(self._lines)

    def _take(self) -> None:
        try:
            chunk = os.read(self._handle, _CHUNK)
        except OSError as error:
            raise InputError(f"{self._name} cannot be read: {error.strerror}") from error
        if not self._begun:
            check_beginning(chunk, self._name)
            self._begun = True
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            self._hold(line + b"\n")
            self._give()
        self._hold(rest)
        if not chunk:
            self._ended = True
            if self._size:
                self._give()

    def _hold(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= LINE_BYTES:
            self._held += piece
        elif not self._held:
            self._held += piece[:_KEPT]
        self._end = piece.endswith(b"\n")

    def _give(self) -> None:
        content = bytes(self._held)
        self._lines.append(content if self._size <= LINE_BYTES else LongLine.of(content, self._size, self._end))
        self._held, self._size = bytearray(), 0


def lines_of(file: BinaryIO, name: str | os.PathLike) -> Iterable[bytes]:
    """Lines of an open file: as they come, where they come through a pipe or from a terminal.

    Raises:
        InputError: here or at the first line, it cannot be read, or begins like no text.
    """
    if is_regular(file):
        if peek := getattr(file, "peek", None):
            check_beginning(peek(_HEAD), name)  # a standard stream was opened by others
        return read_lines(file, name)
    if os.name == "nt":  # Windows: `select` takes sockets alone
        return read_lines(file, name)
    try:
        file.fileno()
    except (OSError, ValueError, AttributeError):
        return read_lines(file, name)
    return Incoming(file, name)
