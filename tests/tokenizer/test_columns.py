"""Columns of a call's result, and encodings that are padded."""

from __future__ import annotations

import pytest
import torch

from bertgen import InputError
from bertgen.tokenizer.columns import ReturnedColumns, build_columns, collate, listed_columns

SPECIAL_TOKENS = {False: ([101], [], [102]), True: ([101], [102], [102])}


def test_special_tokens_types_and_masks_of_rows():
    columns = build_columns([[1, 2], [3]], [None, [4, 5]], SPECIAL_TOKENS, 1, ReturnedColumns(True, True, True))
    assert columns == {
        "input_ids": [[101, 1, 2, 102], [101, 3, 102, 4, 5, 102]],
        "token_type_ids": [[0, 0, 0, 0], [0, 0, 0, 1, 1, 1]],
        "attention_mask": [[1] * 4, [1] * 6],
        "special_tokens_mask": [[1, 0, 0, 1], [1, 0, 1, 0, 0, 1]],
    }
    assert list(build_columns([[1]], [None], SPECIAL_TOKENS, 1, ReturnedColumns(False, False, False))) == ["input_ids"]


def test_encodings_are_collated():
    assert collate([{"input_ids": [1]}, {"input_ids": [2, 3]}]) == {"input_ids": [[1], [2, 3]]}
    columns, single = listed_columns({"input_ids": torch.tensor([[1, 2]]), "labels": ((3, 4),)})
    assert columns == {"input_ids": [[1, 2]], "labels": [[3, 4]]} and not single
    assert listed_columns({"input_ids": [1, 2]}) == ({"input_ids": [[1, 2]]}, True)
    with pytest.raises(InputError, match="encoding 1 must have the keys input_ids"):
        collate([{"input_ids": [1]}, {}])
    with pytest.raises(InputError, match="encoded_inputs must be an encoding"):
        collate({"labels": [1]})
    with pytest.raises(InputError, match="labels has 1 rows, input_ids 2"):
        listed_columns({"input_ids": [[1], [2]], "labels": [[1]]})
