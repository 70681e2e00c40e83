"""A Generator of a tiny trained model, texts, and the outputs that they get alone."""

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
    r = random.Random(8)
    return [sentence(r) for _ in range(20)]


@pytest.fixture(scope="module")
def expected(generator, texts):
    return {(text, beams): generator.generate([text], num_beams=beams)[0].text for text in texts for beams in (1, 3)}
