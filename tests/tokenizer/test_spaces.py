"""Spaces before English punctuation."""

from __future__ import annotations

from bertgen.tokenizer.spaces import clean_up_spaces


def test_spaces_before_punctuation_and_contractions_go():
    assert clean_up_spaces("it 's a test , is n't it ? yes .") == "it's a test, isn't it? yes."
    assert clean_up_spaces("no change: a - b") == "no change: a - b"
