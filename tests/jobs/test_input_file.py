"""The input of a job: its lines, and a change while it is read."""

import json
import random

import pytest

from bertgen import InputError
from bertgen.jobs import follow_file, input_file


def test_input_that_changes_while_it_is_read(echo, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"one\n" * 9)
    reports = follow_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=3)
    assert [next(reports).lines for _ in range(6)][-1] == 5
    with open(tmp_path / "in.txt", "ab") as file:
        file.write(b"more\n")
    with pytest.raises(InputError, match="in.txt has changed while it was read"):
        list(reports)
    assert json.loads((tmp_path / "out.txt.job").read_bytes())["report"]["lines"] == 3


def test_source_finds_every_line(tmp_path, monkeypatch):
    monkeypatch.setattr(input_file, "_CHUNK", 7)
    r = random.Random(4)
    for trial in range(200):
        content = bytes(r.choices(b"ab\n\r", (3, 3, r.choice((0, 1, 9)), 1), k=trial))
        (tmp_path / "in.txt").write_bytes(content)
        with open(tmp_path / "in.txt", "rb") as file:
            found = input_file.InputFile(file, "in.txt")
            lines = [line + b"\n" for line in content.split(b"\n")[:-1]] + [content.split(b"\n")[-1]] * (
                content[-1:] not in (b"", b"\n")
            )
            assert (found.lines, found.bytes) == (len(lines), len(content))
            for first in range(len(lines) + 1):
                assert found.offset(first) == sum(map(len, lines[:first]))
                end = r.randint(first, len(lines))
                assert list(found.read(found.offset(first), end - first)) == lines[first:end]
