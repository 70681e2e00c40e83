"""Vocabulary: ids and strings of tokens, special tokens by name and extra ones, against transformers'."""

from __future__ import annotations

import pickle

import pytest
import transformers

from bertgen.errors import InputError
from bertgen.hub import DEMO_MODEL
from bertgen.tokenizer import AddedToken
from bertgen.tokenizer.vocabulary import SPECIAL_NAMES


def test_vocabulary_as_transformers(theirs, ours):
    assert ours.get_vocab() == theirs.get_vocab()
    assert (ours.vocab_size, len(ours)) == (theirs.vocab_size, len(theirs))
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.special_tokens_map == theirs.special_tokens_map
    for name in SPECIAL_NAMES:
        assert getattr(ours, name) == getattr(theirs, name)
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id")
    tokens = ["<s>", "▁the", "no such token", "<::::>"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_ids("</s>") == 1
    assert ours.convert_ids_to_tokens([0, 300]) == ["<pad>", "<::::>"]
    assert ours.convert_ids_to_tokens(300) == "<::::>"
    assert ours.convert_tokens_to_string(["▁a", "b", "<s>"]) == theirs.convert_tokens_to_string(["▁a", "b", "<s>"])


def test_special_tokens_can_be_set_to_known_tokens_only(fresh):
    fresh.pad_token = fresh.eos_token
    assert fresh.pad_token_id == 1
    fresh.pad_token_id = 0
    assert fresh.pad_token == "<pad>"
    fresh.cls_token = AddedToken("▁the")
    assert fresh.cls_token == "▁the"
    fresh.cls_token = None
    assert fresh.cls_token_id is None
    with pytest.raises(InputError, match=r"'\[PAD\]' is not in the vocabulary"):
        fresh.pad_token = "[PAD]"


def test_attributes_equal_transformers(demo_pair, fast_pair):
    for ours, theirs in (demo_pair, fast_pair):
        for name in (
            "is_fast", "max_len_single_sentence", "max_len_sentences_pair", "pad_token_type_id", "all_special_ids",
            "added_tokens_encoder", "extra_special_tokens", "extra_special_tokens_ids",
        ):  # fmt: skip
            assert getattr(ours, name) == getattr(theirs, name), name
        assert ours.get_added_vocab() == theirs.get_added_vocab()


def test_extra_special_tokens_are_set_by_their_ids(demo_pair):
    ours = pickle.loads(pickle.dumps(demo_pair[0]))
    theirs = transformers.BertGenerationTokenizer(f"{DEMO_MODEL}/spiece.model")
    ours.extra_special_tokens_ids = theirs.extra_special_tokens_ids = [20, 21]
    for name in ("extra_special_tokens", "all_special_tokens", "all_special_ids", "extra_special_tokens_ids"):
        assert getattr(ours, name) == getattr(theirs, name), name
    ids = ours.encode("Where is") + [20, 21]
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True) == "Where is"
    assert ours.additional_special_tokens_ids == [20, 21]
    ours.additional_special_tokens = ["<a>"]
    assert ours.extra_special_tokens == ["<a>"] and ours.encode("<a>") == [len(ours) - 1]
    with pytest.raises(InputError, match="outside the vocabulary"):
        ours.extra_special_tokens_ids = [10**6]


def test_tokens_of_the_vocabulary_are_not_counted(fresh_fast):
    """transformers counts "a" here: code that adds as many rows to an embedding would add one too many."""
    assert fresh_fast.add_tokens(["a", "brandnew", ""]) == 1 and len(fresh_fast) == 401
    assert fresh_fast.add_tokens("brandnew") == 0 and fresh_fast.encode("brandnew", add_special_tokens=False) == [400]
