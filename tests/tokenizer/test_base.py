"""Tokenizer: methods that all classes share, against transformers'."""

from __future__ import annotations

import pickle

import pytest

from bertgen import AutoTokenizer, ConfigError, InputError, UnsupportedError
from tests.support.tokenizer_checks import assert_same
from tests.support.tokenizer_pairs import bert_pair


def test_helpers_for_ids_equal_transformers(demo_pair, fast_pair):
    ours, theirs = demo_pair
    for one, two in (([5, 6, 7], None), ([5, 6, 7], [8, 9])):
        for name in (
            "build_inputs_with_special_tokens", "create_token_type_ids_from_sequences", "get_special_tokens_mask",
        ):  # fmt: skip
            assert getattr(ours, name)(one, two) == getattr(theirs, name)(one, two), name
        for strategy in ("longest_first", "only_first", "only_second"):
            if strategy == "only_second" and two is None:
                continue
            for side in ("right", "left"):
                ours.truncation_side = theirs.truncation_side = side
                for removed, stride in ((0, 0), (1, 0), (2, 1)):
                    options = dict(num_tokens_to_remove=removed, truncation_strategy=strategy, stride=stride)
                    assert ours.truncate_sequences(one, two, **options) == theirs.truncate_sequences(
                        one, two, **options
                    )
        ours.truncation_side = theirs.truncation_side = "right"
        for options in (dict(), dict(padding="max_length", max_length=9, return_special_tokens_mask=True)):
            assert dict(ours.prepare_for_model(one, two, **options)) == dict(
                theirs.prepare_for_model(one, two, **options)
            )
    ours, theirs = fast_pair
    row = ours("x", "a")["input_ids"]
    assert ours.get_special_tokens_mask(row, already_has_special_tokens=True) == theirs.get_special_tokens_mask(
        row, already_has_special_tokens=True
    )
    first, second = ours.encode("x", add_special_tokens=False), ours.encode("a", add_special_tokens=False)
    assert ours.build_inputs_with_special_tokens(first, second) == row
    assert (
        ours.get_special_tokens_mask(first, second)
        == ours("x", "a", return_special_tokens_mask=True).special_tokens_mask
    )
    assert ours.prepare_for_model(first, second) == ours("x", "a")
    with pytest.raises(InputError, match="no second text"):
        ours.get_special_tokens_mask(row, second, already_has_special_tokens=True)


def test_unsupported_options_are_named(demo_pair):
    ours = demo_pair[0]
    for option in (dict(return_overflowing_tokens=True), dict(stride=2)):
        with pytest.raises(UnsupportedError, match=next(iter(option))):
            ours("a", max_length=4, **option)
    assert ours("a", return_overflowing_tokens=False, stride=0, verbose=False) == ours("a")
    with pytest.raises(ConfigError, match="return_tensor"):
        ours("a", return_tensor="pt")
    for call in (
        lambda: ours.pad({"input_ids": [1]}).word_ids(),
        lambda: pickle.loads(pickle.dumps(ours("a"))).tokens(),
    ):
        with pytest.raises(UnsupportedError, match="only an encoding that a tokenizer call returned"):
            call()
    with pytest.raises(InputError, match="must be a list of words"):
        ours("a b", is_split_into_words=True)
    with pytest.raises(InputError, match="text 1 must be a list of words"):
        ours([["a"], "b"], is_split_into_words=True)


def test_names_of_older_versions(demo_pair):
    ours = AutoTokenizer.from_pretrained("demo")
    assert ours.encode_plus("a", "b", padding=True) == ours("a", "b", padding=True)
    assert ours.batch_encode_plus([("a", "b"), ("c", "d")]) == ours(["a", "c"], ["b", "d"])
    labels = demo_pair[1]("a", text_target="c", text_pair_target="d")["labels"]
    assert ours("a", text_target="c", text_pair_target="d")["labels"] == labels


def test_tokens_of_a_pair_with_special_tokens(tmp_path):
    ours, theirs = bert_pair(tmp_path)
    for options in ({}, {"pair": "a . b"}, {"add_special_tokens": True}, {"pair": "a", "add_special_tokens": True}):
        assert ours.tokenize("hello worlds", **options) == theirs.tokenize("hello worlds", **options)


def test_an_empty_text_with_a_second_one_is_padded(demo_pair):
    ours, theirs = demo_pair
    for options in ({"padding": "max_length", "max_length": 9}, {"padding": True, "pad_to_multiple_of": 8}):
        assert dict(ours("", "hello", **options)) == dict(theirs("", "hello", **options))
        assert dict(ours("", **options)) == dict(theirs("", **options))


@pytest.mark.parametrize("texts", [("",), (" ",), ("", " "), (" ", " "), (" \t", "\n")])
@pytest.mark.parametrize("tensors", [None, "pt", "np"])
def test_a_text_or_pair_without_tokens_is_not_padded(demo_pair, texts, tensors):
    for options in ({"padding": "max_length", "max_length": 9}, {"padding": True, "pad_to_multiple_of": 8}):
        ours, theirs = (tokenizer(*texts, **options, return_tensors=tensors) for tokenizer in demo_pair)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert_same(ours[name], theirs[name])


@pytest.mark.parametrize("ids", [([],), ([], []), ([], [5])])
def test_no_ids_are_padded_as_in_transformers(demo_pair, ids):
    for options in ({"padding": "max_length", "max_length": 9}, {"padding": True, "pad_to_multiple_of": 8}):
        ours, theirs = (tokenizer.prepare_for_model(*ids, **options) for tokenizer in demo_pair)
        assert dict(ours) == dict(theirs)


def test_sides_and_lengths_are_checked_when_they_are_set(demo_pair):
    tokenizer = demo_pair[0]
    for name, value in (("truncation_side", "up"), ("padding_side", None), ("model_max_length", "512")):
        before = getattr(tokenizer, name)
        with pytest.raises(ConfigError, match=name):
            setattr(tokenizer, name, value)
        assert getattr(tokenizer, name) == before
