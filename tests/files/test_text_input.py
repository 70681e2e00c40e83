"""Files that are no text, and lines that do not end."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import threading

import pytest

from bertgen import InputError
from bertgen.files import text_input
from bertgen.jobs import follow_lines
from tests.support.jobs import names, run


def test_a_line_that_does_not_end_is_not_held(generator, folder, monkeypatch):
    """It is a failed line like others, from a file or a pipe; the lines after it are read."""
    monkeypatch.setattr(text_input, "LINE_BYTES", 100)
    monkeypatch.setattr(text_input, "_CHUNK", 64)
    content = b"one\n" + b"x" * 100_000 + b"\n" + b"y" * 99 + b"\ntwo\n" + b"z" * 101
    report, written = run(generator, folder, content, n_best=1, max_new_tokens=3)
    told = [message.split(", ", 1)[1] for message in report.messages if "limit of a line" in message]
    assert report.bytes == len(content) and told == [
        "line 2: 100001 bytes, the limit of a line is 100",
        "line 5: 101 bytes, the limit of a line is 100",
    ]
    assert written.split(b"\n")[0] == b"eins" and written.split(b"\n")[3] == b"zwei" and written.count(b"\n") == 4
    for suffix, record in ((".tsv", b"\t\n"), (".jsonl", b'{"error": "100001 bytes, the limit of a line is 100"}\n')):
        good = {".tsv": b"one\n", ".jsonl": b'{"text": "one"}\n'}[suffix]
        written = run(generator, folder, good + b"x" * 100_000 + b"\n" + good, f"in{suffix}")[1]
        assert written.splitlines(keepends=True)[1] == record
    reader, writer = os.pipe()
    thread = threading.Thread(target=lambda: (os.write(writer, content), os.close(writer)))
    with open(reader, "rb") as pipe:
        thread.start()
        lines, held = [], []
        incoming = text_input.lines_of(pipe, "pipe")
        for line in incoming:
            lines.append(line)
            held.append(len(incoming._held))
        thread.join()
    assert list(map(text_input.size_of, lines)) == [4, 100_001, 100, 4, 101] and max(held) <= 100
    assert [type(line) for line in lines] == [bytes, text_input.LongLine, bytes, bytes, text_input.LongLine]


BEGINNINGS = {
    "UTF-16": "one\ntwo\n".encode("utf-16"),
    "UTF-16 ": b"\xfe\xff" + "one\n".encode("utf-16-be"),
    "UTF-32": "one\n".encode("utf-32"),
    "UTF-16 without its mark": "one\ntwo\n".encode("utf-16-le"),
    "compressed by gzip": gzip.compress(b"one\n"),
    "compressed by bzip2": bz2.compress(b"one\n"),
    "compressed by xz": lzma.compress(b"one\n"),
    "compressed by zstd": b"\x28\xb5\x2f\xfd\x20",
    "a zip archive": b"PK\x03\x04\x14\x00",
    "Parquet": b"PAR1\x15\x04",
    "Arrow": b"ARROW1\x00\x00",
    "a pickle of Python": pickle.dumps(["one"]),
    "a PDF": b"%PDF-1.7\n",
    "an HTML page": b"<!DOCTYPE html>\n<html>",
    "a pointer of git-LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_a_file_that_is_no_text_is_named_and_refused(generator, folder, kind):
    message = f"in.txt is .*{kind.strip()}.*; what is read is text in UTF-8"
    with pytest.raises(InputError, match=message):
        run(generator, folder, BEGINNINGS[kind])
    assert names(folder) == ["in.txt"]
    with pytest.raises(InputError, match=kind.strip()):
        list(follow_lines(generator, text_input.lines_of(io.BytesIO(BEGINNINGS[kind]), "x"), print, name="x"))
    reader, writer = os.pipe()
    os.write(writer, BEGINNINGS[kind])
    os.close(writer)
    with open(reader, "rb") as pipe, pytest.raises(InputError, match=kind.strip()):
        list(text_input.lines_of(pipe, "x"))
    with open(folder / "in.txt", "rb") as file, pytest.raises(InputError, match=kind.strip()):
        list(text_input.lines_of(file, "stdin"))


def test_a_file_of_lone_carriage_returns_is_refused(generator, folder):
    """It would be one line, and its answer one line, without a word."""
    content, reason = b"one\rtwo\r", "ends its lines with CR alone"
    with pytest.raises(InputError, match=f"in.txt {reason}"):
        run(generator, folder, content)
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    with open(reader, "rb") as pipe, pytest.raises(InputError, match=reason):
        list(text_input.lines_of(pipe, "x"))
    text_input.check_beginning(b"one\r", "x")  # of a pipe: its LF may come
    text_input.check_beginning(b"one\rtwo\n", "x")
