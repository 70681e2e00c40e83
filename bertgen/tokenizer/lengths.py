"""Lengths of rows: truncation and padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..config.validators import check_choice, check_size
from ..errors import ConfigError

TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
PADDINGS = ("longest", "max_length", "do_not_pad")
SIDES = ("right", "left")

NO_LIMIT = int(1e30)  # what transformers writes as model_max_length for a model without a limit
LONGEST_PADDED = 1 << 24  # tokens of a row; a larger length is a mistake, and would exhaust the memory

_LARGEST_LIMIT = int(1e20)  # a larger model_max_length is no limit, as in transformers

SpecialTokens = tuple[
    list[int], list[int], list[int]
]  # ids of special tokens before, between and after the texts of a row


class LengthOptions(NamedTuple):
    """Checked options of a call: how long its rows may be and become.

    Attributes:
        padding: one of `PADDINGS`.
        truncation: one of `TRUNCATIONS`.
        limit: maximum length of a row in tokens; None without a limit.
        multiple: padded lengths are multiples of it.
    """

    padding: str
    truncation: str
    limit: int | None
    multiple: int | None

    @property
    def lacks_limit(self) -> bool:
        """Whether truncation is on without a limit."""
        return self.limit is None and self.truncation != "do_not_truncate"


def resolve_lengths(
    padding: Any, truncation: Any, max_length: Any, multiple: Any, *, model_max_length: int, has_pad_token: bool
) -> LengthOptions:
    """The options of a call, with defaults filled in; ConfigError for a bad value."""
    if truncation is None:
        truncation = max_length is not None and padding is False
    if isinstance(truncation, bool):
        truncation = "longest_first" if truncation else "do_not_truncate"
    if isinstance(padding, bool):
        padding = "longest" if padding else "do_not_pad"
    truncation = check_choice(TRUNCATIONS, truncation, "truncation")
    padding = check_choice(PADDINGS, padding, "padding")
    limit = None if max_length is None else check_size(max_length, "max_length")
    if limit is None and model_max_length < _LARGEST_LIMIT:
        limit = model_max_length
    if multiple is not None:
        multiple = check_size(multiple, "pad_to_multiple_of", LONGEST_PADDED)
    if padding != "do_not_pad" and not has_pad_token:
        raise ConfigError("padding needs a pad_token; this tokenizer has none")
    if limit and multiple and limit % multiple and truncation != "do_not_truncate" and padding != "do_not_pad":
        raise ConfigError(f"max_length {limit} is not a multiple of pad_to_multiple_of {multiple}")
    return LengthOptions(padding, truncation, limit, multiple)


def truncate_pair(
    row: list[int], second: list[int] | None, limit: int, strategy: str, side: str, odd_to_longer: bool = False
) -> tuple[list[int], list[int] | None]:
    """Shorten a row and its second row (if any) to `limit` tokens together.

    Args:
        strategy: one of `TRUNCATIONS`.
        side: where tokens are removed, "right" or "left".
        odd_to_longer: if both rows are cut and the limit is odd, the longer row (the second, if they are equal) keeps
            one token more; otherwise the first row does.
    """

    def keep(ids: list[int], drop: int) -> list[int]:
        return ids[: max(len(ids) - drop, 0)] if side == "right" else ids[drop:]

    excess = len(row) + len(second or ()) - limit
    if strategy == "only_first" or (strategy == "longest_first" and second is None):
        return keep(row, excess), second
    if second is None or strategy == "only_second":
        return row, second and keep(second, excess)
    # Cut the longer row to the length of the other, then both in turn.
    difference = min(abs(len(row) - len(second)), excess)
    half = (excess - difference + (odd_to_longer and len(row) <= len(second))) // 2
    drop = difference + half if len(row) > len(second) else half
    return keep(row, drop), keep(second, excess - drop)


def truncate_rows(
    rows: list[list[int]],
    second_rows: list[list[int] | None],
    lengths: LengthOptions,
    special_tokens: dict[bool, SpecialTokens],
    truncate: Callable[[int, list[int], list[int] | None, int, str], tuple[list[int], list[int] | None]],
) -> None:
    """Truncate rows to the limit, in place.

    Args:
        special_tokens: special tokens of a single row (False) and of a pair (True), which count towards the limit.
        truncate: function (index, row, second row or None, limit, strategy) -> row, second row.

    Raises:
        ConfigError: the limit is less than the number of special tokens.
    """
    if lengths.limit is None or lengths.truncation == "do_not_truncate":
        return
    rooms = {pair: lengths.limit - sum(map(len, parts)) for pair, parts in special_tokens.items()}
    for index, row in enumerate(rows):
        second = second_rows[index]
        room = rooms[second is not None]
        if len(row) + len(second or ()) <= room:
            continue
        if room < 0:
            # Unlike the tokenizers library, which does not truncate such a row.
            raise ConfigError(f"max_length {lengths.limit} is less than the {lengths.limit - room} special tokens")
        rows[index], second_rows[index] = truncate(index, row, second, room, lengths.truncation)


def pad_columns(columns: dict[str, list[Any]], lengths: LengthOptions, side: Any, pad_id: int | None) -> None:
    """Pad ids, masks and token types, in place; other columns stay as they are.

    Args:
        columns: name -> rows; `input_ids` is required.
        side: "right" or "left".
        pad_id: fills `input_ids`.

    Raises:
        ConfigError: another side, or more than `LONGEST_PADDED` tokens.
    """
    side = check_choice(SIDES, side, "padding_side")
    rows = columns["input_ids"]
    length = max(map(len, rows)) if lengths.padding == "longest" else lengths.limit
    if lengths.padding == "do_not_pad" or length is None:
        return
    length += -length % (lengths.multiple or 1)
    if length > LONGEST_PADDED:
        raise ConfigError(f"max_length {length} to pad to is more than {LONGEST_PADDED} tokens")
    values = {"input_ids": pad_id, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
    missing = [length - len(row) for row in rows]
    for key in columns.keys() & values.keys():
        value, rows_and_counts = values[key], zip(columns[key], missing, strict=True)
        columns[key] = [row + [value] * n if side == "right" else [value] * n + row for row, n in rows_and_counts]
