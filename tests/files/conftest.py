"""The tiny model, and a folder for files."""

import pytest

from bertgen import Generator


@pytest.fixture(scope="module")
def generator(tiny_checkpoint):
    return Generator(tiny_checkpoint)


@pytest.fixture
def folder(tmp_path):
    """A folder that holds no temporary file when the test is over."""
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
