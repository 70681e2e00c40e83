"""BatchEncoding: a dict with attributes, and its tensors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from bertgen import InputError
from tests.support.tokenizer_pairs import EXTRA_COLUMNS, TEXTS


def test_the_encoding_is_a_dict_with_attributes(ours):
    batch = ours(["the station", "the"], padding=True, return_tensors="pt")
    assert batch.input_ids is batch["input_ids"] and set(batch) == {"input_ids", "attention_mask"}
    assert dict(**batch).keys() == batch.keys()
    assert batch.to("meta") is batch and batch.attention_mask.device.type == "meta"
    assert not hasattr(batch, "token_type_ids")
    assert pickle.loads(pickle.dumps(ours("the"))) == copy.deepcopy(ours("the")) == ours("the")


def test_tensors_of_everything_equal_transformers(fast_pair):
    ours, theirs = fast_pair
    one, other = (kind(TEXTS, padding=True, return_tensors="pt", **EXTRA_COLUMNS) for kind in fast_pair)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert ours(TEXTS[0], return_length=True) == theirs(TEXTS[0], return_length=True)
    one, other = (kind(TEXTS[0]).convert_to_tensors("pt", prepend_batch_axis=True) for kind in fast_pair)
    assert all(torch.equal(one[key], other[key]) for key in other)
    assert ours(TEXTS)[1].tokens == theirs(TEXTS)[1].tokens and ours(TEXTS).data == theirs(TEXTS).data


def test_ids_stay_integers(demo_pair):
    encoding = demo_pair[0]("hello", return_tensors="pt")
    with pytest.raises(InputError, match="got the dtype torch.float16: ids are integers"):
        encoding.to(torch.float16)
    assert encoding.to("cpu").input_ids.dtype is torch.int64
