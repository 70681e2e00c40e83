"""The command with the tiny model, and its standard input."""

import io
import sys

import pytest

from bertgen import cli


@pytest.fixture
def stdin(monkeypatch):
    def give(content, terminal=False):
        stream = io.TextIOWrapper(io.BytesIO(content))
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdin", stream)

    return give


@pytest.fixture
def bertgen_run(tiny_checkpoint, capsys):
    """Calls `bertgen run` with the tiny model; exit code, stdout and stderr."""

    def call(*arguments):
        code = cli.main(["run", "--model", str(tiny_checkpoint), *map(str, arguments)])
        return (code, *capsys.readouterr())

    return call
