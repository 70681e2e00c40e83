"""The tiny model, a generator in its place, and a folder for files."""

import pytest

from bertgen import Generator
from bertgen.jobs import generate, job
from tests.support.crashes import Echo, fake_metadata


@pytest.fixture(scope="module")
def generator(tiny_checkpoint):
    return Generator(tiny_checkpoint)


@pytest.fixture
def folder(tmp_path):
    """A folder that holds no temporary file when the test is over."""
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.fixture
def echo(monkeypatch):
    monkeypatch.setattr(job, "job_metadata", fake_metadata)
    monkeypatch.setattr(generate, "default_window", lambda *_: 1024)  # which asks the model
    return Echo()
