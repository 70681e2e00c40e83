"""Texts as an argument, and windows of them."""

import itertools

import pytest

from bertgen import (
    InputError,
)
from bertgen.generator.texts import in_windows


@pytest.mark.parametrize("texts", ["one", b"one", 5, None])
def test_texts_must_be_a_list(generator, texts):
    for method in (generator.generate, generator.stream):
        with pytest.raises(InputError, match="texts must be a list of texts, .* got"):
            method(texts)


def test_stream_reads_a_bounded_number_of_texts(generator):
    """The iterable may be infinite, and nothing is read before the first `next`."""
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield "one two"

    answers = generator.stream(endless(), lookahead=10)
    assert read == []
    assert [index for index, _ in itertools.islice(answers, 10)] == list(range(10)) and len(read) == 10
    assert next(answers)[0] == 10 and len(read) == 20


def test_stream_bounds_characters_too(generator, monkeypatch):
    monkeypatch.setattr("bertgen.generator.texts.LOOKAHEAD_CHARACTERS", 30)
    windows = in_windows(iter(["x" * 20, "x" * 20, "", "x" * 70, "y"]), 3)
    assert [[len(text) for text in window] for window in windows] == [[20, 20], [0, 70], [1]]
    pairs = [("x" * 9, "y" * 9), ("x" * 9, "y" * 9), ("x" * 9, [1] * 99), ("x", "y")]
    assert [len(window) for window in in_windows(iter(pairs), 3)] == [2, 2]
