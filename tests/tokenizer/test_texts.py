"""The texts of a call in every form."""

from __future__ import annotations

import pytest

from bertgen import InputError
from bertgen.tokenizer.texts import texts_and_pairs, words_and_pairs


def test_forms_of_texts_and_pairs():
    assert texts_and_pairs("a", None) == (["a"], [None])
    assert texts_and_pairs("a", "") == (["a"], [None])  # as transformers
    assert texts_and_pairs(["a", "b"], ["c", "d"]) == (["a", "b"], ["c", "d"])
    assert texts_and_pairs(["a", ("b", "c"), ["d"]], None) == (["a", "b", "d"], [None, "c", None])


def test_forms_of_texts_as_words():
    assert words_and_pairs(["a", "b"], None) == ([["a", "b"]], [None], True)
    assert words_and_pairs([["a"], ["b"]], [["c"], ["d"]]) == ([["a"], ["b"]], [["c"], ["d"]], False)
    assert words_and_pairs([(["a"], ["b", "c"])], None) == ([["a"]], [["b", "c"]], False)


@pytest.mark.parametrize(
    "function, text, pair, message",
    [
        (texts_and_pairs, "a", ["b"], "text_pair must be one too, got list"),
        (texts_and_pairs, 5, None, "text must be a str or a list of str, got int"),
        (texts_and_pairs, [], None, "the batch holds no text"),
        (texts_and_pairs, ["a"], ["b", "c"], "text is a list of 1"),
        (texts_and_pairs, ["a"], [5], "text_pair 0 must be a str, got int"),
        (texts_and_pairs, [("a", "b", "c")], None, "text 0 must be a str or a pair of str"),
        (words_and_pairs, "a", None, "text must be a list of words"),
        (words_and_pairs, [["a"], ["b"]], [["c"]], "text is a list of 2"),
        (words_and_pairs, [["a", 5]], None, "text 0 must be a list of words"),
    ],
)
def test_bad_texts_are_named(function, text, pair, message):
    with pytest.raises(InputError, match=message):
        function(text, pair)
