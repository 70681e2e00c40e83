"""Texts for the tiny model, and the batches in which they are encoded."""

import pytest

from tests.support.checkpoints import sentences


@pytest.fixture(scope="module")
def texts():
    return sentences(5, 40)


@pytest.fixture
def batches(generator, monkeypatch):
    """Shapes of the batches that are encoded, longest source counted."""
    shapes, encoded = [], generator.model.encoded

    def record(ids, mask):
        shapes.append(tuple(ids.shape))
        return encoded(ids, mask)

    monkeypatch.setattr(generator.model, "encoded", record)
    return shapes
