"""Columns of a call's result: rows of ids with their special tokens, token types and masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import InputError, quoted
from .encoding import to_lists
from .lengths import SpecialTokens


class ReturnedColumns(NamedTuple):
    """Which columns a call returns besides `input_ids`."""

    token_type_ids: bool
    attention_mask: bool
    special_tokens_mask: bool


def build_columns(
    rows: list[list[int]],
    second_rows: list[list[int] | None],
    special_tokens: dict[bool, SpecialTokens],
    second_type: int,
    returned: ReturnedColumns,
) -> dict[str, list[Any]]:
    """Put the special tokens around rows and their second rows.

    Args:
        rows, second_rows: ids of texts, truncated; None for texts without a second one.
        special_tokens: special tokens of a single row (False) and of a pair (True).
        second_type: token type of second texts.

    Returns:
        Name -> rows, without padding.
    """
    heads, tails = [], []  # the tokens of type 0, and those of the second text
    for row, second in zip(rows, second_rows, strict=True):
        before, between, after = special_tokens[second is not None]
        heads.append([*before, *row, *between])
        tails.append(after if second is None else [*second, *after])
    columns: dict[str, list[Any]] = {"input_ids": [head + tail for head, tail in zip(heads, tails, strict=True)]}
    if returned.token_type_ids:
        types = [0 if second is None else second_type for second in second_rows]
        columns["token_type_ids"] = [
            [0] * len(head) + [kind] * len(tail) for head, tail, kind in zip(heads, tails, types, strict=True)
        ]
    if returned.attention_mask:
        columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
    if returned.special_tokens_mask:
        masks = columns["special_tokens_mask"] = []
        for row, second in zip(rows, second_rows, strict=True):
            before, between, after = ([1] * len(part) for part in special_tokens[second is not None])
            masks.append([*before, *([0] * len(row)), *between, *([0] * len(second or ())), *after])
    return columns


def collate(encoded_inputs: Any) -> dict[str, Any]:
    """One encoding of rows, from an encoding or a list of encodings of one row each.

    Raises:
        InputError: there are no `input_ids`, or keys differ between the encodings.
    """
    if isinstance(encoded_inputs, (list, tuple)):
        keys = list(encoded_inputs[0]) if encoded_inputs and isinstance(encoded_inputs[0], Mapping) else []
        for index, one in enumerate(encoded_inputs):
            if not isinstance(one, Mapping) or not one.keys() >= set(keys):
                raise InputError(f"encoding {index} must have the keys {', '.join(keys)}")
        encoded_inputs = {key: [one[key] for one in encoded_inputs] for key in keys}
    if not isinstance(encoded_inputs, Mapping) or "input_ids" not in encoded_inputs:
        raise InputError(
            f"encoded_inputs must be an encoding, or a list of them, with input_ids, got {quoted(encoded_inputs)}"
        )
    return dict(encoded_inputs)


def listed_columns(encoding: Mapping[str, Any]) -> tuple[dict[str, list[Any]], bool]:
    """The values of an encoding as lists of rows, and whether it has one row only.

    Raises:
        InputError: columns with different numbers of rows.
    """
    columns = {key: to_lists(value) for key, value in encoding.items()}
    single = not isinstance(columns["input_ids"][0], (list, tuple))
    if single:
        columns = {key: [value] for key, value in columns.items()}
    count = len(columns["input_ids"])
    for key, rows in columns.items():
        if len(rows) != count:
            raise InputError(f"{key} has {len(rows)} rows, input_ids {count}")
        columns[key] = [list(row) if isinstance(row, tuple) else row for row in rows]
    return columns, single
