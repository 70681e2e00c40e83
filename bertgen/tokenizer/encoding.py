"""BatchEncoding: the return value of a tokenizer call, as lists, arrays or tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from ..config.validators import check_choice
from ..errors import InputError, UnsupportedError, quoted
from .alignment import Alignment, CharSpan, TokenSpan

TENSORS = ("pt", "np")


class BatchEncoding(dict):
    """Return value of a tokenizer call: `input_ids`, `attention_mask` and so on, as keys and as attributes.

    The methods for the alignment of tokens and text take the index of the row first, which may be omitted for the first
    row. They need an encoding that a call of a tokenizer returned.
    """

    _align: Callable[[], list[Alignment]] | None = None  # computes the alignments, on first use
    is_fast: bool = False  # of the tokenizer

    @property
    def data(self) -> dict[str, Any]:
        """The keys and values."""
        return dict(self)

    @cached_property
    def encodings(self) -> list[Alignment]:
        """The `Alignment` of each row.

        Raises:
            UnsupportedError: no tokenizer call returned this encoding.
        """
        if self._align is None:
            raise UnsupportedError("only an encoding that a tokenizer call returned has alignments")
        return self._align()

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row."""
        return self.encodings[batch_index].tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Text of a pair, 0 or 1, of each token of a row; None for special tokens and padding."""
        return self.encodings[batch_index].sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """As `Alignment.word_ids`."""
        return self.encodings[batch_index].word_ids

    @property
    def n_sequences(self) -> int:
        """Texts in the first row: 1, or 2 for a pair."""
        return self.encodings[0].n_sequences

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Text of a pair, 0 or 1, of a token; None for special tokens and padding."""
        row, token = self._place(batch_or_token_index, token_index)
        return row.sequence_ids[token]

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Index of the word of a token; None for special tokens and padding."""
        row, token = self._place(batch_or_token_index, token_index)
        return row.word_ids[token]

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """Characters of a token; None for special tokens and padding."""
        row, token = self._place(batch_or_token_index, token_index)
        return None if row.sequence_ids[token] is None else CharSpan(*row.offsets[token])

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Tokens of a word; None where there are none."""
        row, word = self._place(batch_or_word_index, word_index)
        return row.word_to_tokens(word, sequence_index)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan:
        """Characters of a word; InputError where there is no such word."""
        row, word = self._place(batch_or_word_index, word_index)
        span = row.word_to_tokens(word, sequence_index)
        if span is None:
            raise InputError(f"text {sequence_index} of the row has no word {word}")
        return CharSpan(row.offsets[span.start][0], row.offsets[span.end - 1][1])

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Index of the token of a character; None where no token has it."""
        row, char = self._place(batch_or_char_index, char_index)
        return row.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Index of the word of a character; None where no token has it."""
        row, char = self._place(batch_or_char_index, char_index)
        token = row.char_to_token(char, sequence_index)
        return None if token is None else row.word_ids[token]

    def _place(self, first: int, second: int | None) -> tuple[Alignment, int]:
        return (self.encodings[0], first) if second is None else (self.encodings[first], second)

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Turn the values into tensors ("pt") or arrays ("np"), in place; returns the encoding."""
        if tensor_type is not None:
            columns = {key: [to_lists(v)] if prepend_batch_axis else to_lists(v) for key, v in self.items()}
            self.update(as_encoding(columns, tensor_type, False))
        return self

    def __missing__(self, key: Any) -> Any:
        if isinstance(key, int):
            return self.encodings[key]
        raise KeyError(key)

    def __reduce__(self) -> Any:
        return BatchEncoding, (dict(self),)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this encoding has no {name!r}; it has {', '.join(self)}") from None

    def to(self, device: Any, non_blocking: bool = False) -> BatchEncoding:
        """Move the tensors to `device`, in place; returns the encoding. InputError for a dtype: ids are integers."""
        if hasattr(device, "is_floating_point"):
            raise InputError(f"device must be a device, got the dtype {device}: ids are integers")
        self.update((k, v.to(device, non_blocking=non_blocking)) for k, v in self.items() if hasattr(v, "to"))
        return self


def tensor_kind(value: Any) -> str | None:
    """The `return_tensors` for tensors ("pt") and arrays ("np"), or lists of them; None for anything else."""
    one = value[0] if isinstance(value, (list, tuple)) and value else value
    return {"torch": "pt", "numpy": "np"}.get(type(one).__module__.split(".")[0])


def to_lists(value: Any) -> Any:
    """Tensors and arrays, or a list of them, as lists of numbers; other values as they are."""
    if hasattr(value, "tolist") and not isinstance(value, type):
        try:
            return value.tolist()
        except (RuntimeError, NotImplementedError):  # a tensor on the meta device, or a sparse one
            raise InputError(f"ids must be a dense tensor with values, got {quoted(value)}") from None
    if isinstance(value, (list, tuple)) and value and hasattr(value[0], "tolist"):
        return [to_lists(one) for one in value]
    return value


def as_encoding(columns: dict[str, Any], return_tensors: str | None, unwrap: bool) -> BatchEncoding:
    """The result of a call.

    Args:
        columns: name -> rows.
        return_tensors: "pt", "np" or None for lists.
        unwrap: return the first row only.

    Raises:
        InputError: rows of different lengths in a tensor.
    """
    if unwrap:
        return BatchEncoding({key: rows[0] for key, rows in columns.items()})
    if return_tensors is None:
        return BatchEncoding(columns)
    check_choice(TENSORS, return_tensors, "return_tensors")
    import numpy

    tensors: dict[str, Any] = {}
    for key, rows in columns.items():
        lengths = {len(row) for row in rows if isinstance(row, list)} if isinstance(rows, list) else set()
        if len(lengths) > 1:
            raise InputError(
                f"rows of {key} have {min(lengths)} to {max(lengths)} tokens, so they form no tensor; use padding=True "
                "(and truncation=True with max_length)"
            )
        array = numpy.array(rows)
        tensors[key] = array if array.dtype.kind == "f" and array.size else array.astype(numpy.int64, copy=False)
    if return_tensors == "pt":
        import torch

        tensors = {key: torch.from_numpy(array) for key, array in tensors.items()}
    return BatchEncoding(tensors)
