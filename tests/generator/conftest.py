"""A Generator of a tiny trained model, and texts for it."""

import random

import pytest

from bertgen import (
    Generator,
)
from tests.support.checkpoints import sentence


@pytest.fixture(scope="module")
def generator(tiny_checkpoint):
    return Generator(tiny_checkpoint)


@pytest.fixture(scope="module")
def texts():
    r = random.Random(5)
    return [sentence(r) for _ in range(40)]


@pytest.fixture
def batches(generator, monkeypatch):
    """Shapes of the batches that are encoded, longest source counted."""
    shapes, encoded = [], generator.model.encoded

    def record(ids, mask):
        shapes.append(tuple(ids.shape))
        return encoded(ids, mask)

    monkeypatch.setattr(generator.model, "encoded", record)
    return shapes
