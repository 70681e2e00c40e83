"""A generator in the place of the tiny model."""

import pytest

from bertgen.jobs import generate, job
from tests.support.crashes import Echo, fake_metadata


@pytest.fixture
def echo(monkeypatch):
    monkeypatch.setattr(job, "job_metadata", fake_metadata)
    monkeypatch.setattr(generate, "default_window", lambda *_: 1024)
    return Echo()
