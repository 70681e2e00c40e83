"""Texts, and the output of each when it is generated alone."""

import pytest

from tests.support.checkpoints import sentences


@pytest.fixture(scope="module")
def texts():
    return sentences(8, 20)


@pytest.fixture(scope="module")
def expected(generator, texts):
    return {(text, beams): generator.generate([text], num_beams=beams)[0].text for text in texts for beams in (1, 3)}
