"""Options for truncation and padding, and what they do to rows."""

from __future__ import annotations

import pytest

from bertgen import ConfigError
from bertgen.tokenizer.lengths import (
    LONGEST_PADDED,
    NO_LIMIT,
    LengthOptions,
    pad_columns,
    resolve_lengths,
    truncate_pair,
    truncate_rows,
)


def resolve(padding=False, truncation=None, max_length=None, multiple=None, *, limit=NO_LIMIT, pads=True):
    return resolve_lengths(padding, truncation, max_length, multiple, model_max_length=limit, has_pad_token=pads)


def test_defaults_of_the_options():
    assert resolve() == LengthOptions("do_not_pad", "do_not_truncate", None, None)
    assert resolve(max_length=5) == LengthOptions("do_not_pad", "longest_first", 5, None)
    assert resolve(padding=True, max_length=5) == LengthOptions("longest", "do_not_truncate", 5, None)
    assert resolve(truncation=True, limit=9) == LengthOptions("do_not_pad", "longest_first", 9, None)
    assert resolve(truncation=True).lacks_limit and not resolve(truncation=True, limit=9).lacks_limit


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(padding="some"), "padding must be one of longest, max_length, do_not_pad"),
        (dict(truncation="all"), "truncation must be one of longest_first"),
        (dict(max_length=0), "max_length must be an integer .*1"),
        (dict(multiple=LONGEST_PADDED + 1), "pad_to_multiple_of must be an integer from 1 to"),
        (dict(padding=True, pads=False), "padding needs a pad_token"),
        (dict(padding=True, truncation=True, max_length=5, multiple=4), "max_length 5 is not a multiple of .* 4"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        resolve(**options)


def test_a_pair_is_truncated_by_strategy_and_side():
    row, second = [1, 2, 3, 4, 5], [6, 7, 8]
    assert truncate_pair(row, second, 5, "only_first", "right") == ([1, 2], second)
    assert truncate_pair(row, second, 6, "only_second", "left") == (row, [8])
    assert truncate_pair(row, second, 5, "longest_first", "right") == ([1, 2, 3], [6, 7])
    assert truncate_pair(row[:3], second, 5, "longest_first", "right", odd_to_longer=True) == ([1, 2], second)
    assert truncate_pair(row, None, 2, "longest_first", "left") == ([4, 5], None)


def test_special_tokens_count_in_the_limit():
    special_tokens = {False: ([9], [], [9]), True: ([9], [9], [9])}

    def truncate(index, row, second, limit, strategy):
        return truncate_pair(row, second, limit, strategy, "right")

    rows, seconds = [[1, 2, 3, 4], [1, 2]], [None, [3, 4]]
    truncate_rows(rows, seconds, LengthOptions("do_not_pad", "longest_first", 5, None), special_tokens, truncate)
    assert rows == [[1, 2, 3], [1]] and seconds == [None, [3]]
    with pytest.raises(ConfigError, match="max_length 1 is less than the 2 special tokens"):
        truncate_rows([[1]], [None], LengthOptions("do_not_pad", "longest_first", 1, None), special_tokens, truncate)


@pytest.mark.parametrize("side, padded", [("right", [1, 0, 0, 0]), ("left", [0, 0, 0, 1])])
def test_rows_are_padded_to_a_multiple(side, padded):
    columns = {"input_ids": [[1], [2, 3, 4]], "other": [[1], [2]]}
    pad_columns(columns, LengthOptions("longest", "do_not_truncate", None, 4), side, 0)
    assert columns["input_ids"][0] == padded and columns["other"] == [[1], [2]]
    with pytest.raises(ConfigError, match="is more than"):
        pad_columns(columns, LengthOptions("max_length", "do_not_truncate", LONGEST_PADDED + 1, None), side, 0)
