"""What a tokenizer returns, and how rows of ids become it: pairs, truncation, padding, tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

from ..config.validators import check_choice
from ..errors import InputError, UnsupportedError, quoted
from .alignment import Alignment, CharSpan, TokenSpan

TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")


PADDINGS = ("longest", "max_length", "do_not_pad")


SIDES = ("right", "left")


TENSORS = ("pt", "np")


class BatchEncoding(dict):
    """What a tokenizer returns: `input_ids`, `attention_mask` and so on, as keys and as attributes.

    What a call of a tokenizer returned also knows where its tokens come from; the methods for that take the row first,
    which may be left out for the first one.
    """

    _align: Callable[[], list[Alignment]] | None = None  # makes the alignments, on first use
    is_fast: bool = False  # as the tokenizer's

    @property
    def data(self) -> dict[str, Any]:
        """The keys and values."""
        return dict(self)

    @cached_property
    def encodings(self) -> list[Alignment]:
        """Where the tokens come from, one `Alignment` a row.

        Raises:
            UnsupportedError: this is no encoding that a call of a tokenizer returned.
        """
        if self._align is None:
            raise UnsupportedError(
                "only what a call of a tokenizer returned, unchanged, knows where its tokens come from"
            )
        return self._align()

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row."""
        return self.encodings[batch_index].tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Which text of a pair each token of a row is of, 0 or 1; None for special tokens and padding."""
        return self.encodings[batch_index].sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """As `Alignment.word_ids`."""
        return self.encodings[batch_index].word_ids

    @property
    def n_sequences(self) -> int:
        """Texts in the first row: 1, or 2 for a pair."""
        return self.encodings[0].n_sequences

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Which text a token is of."""
        row, token = self._place(batch_or_token_index, token_index)
        return row.sequence_ids[token]

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Which word a token is of."""
        row, token = self._place(batch_or_token_index, token_index)
        return row.word_ids[token]

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """Which characters a token is of."""
        row, token = self._place(batch_or_token_index, token_index)
        return None if row.sequence_ids[token] is None else CharSpan(*row.offsets[token])

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word."""
        row, word = self._place(batch_or_word_index, word_index)
        return row.word_to_tokens(word, sequence_index)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan:
        """The characters of a word; InputError where there is no such word."""
        row, word = self._place(batch_or_word_index, word_index)
        span = row.word_to_tokens(word, sequence_index)
        if span is None:
            raise InputError(f"text {sequence_index} of the row has no word {word}")
        return CharSpan(row.offsets[span.start][0], row.offsets[span.end - 1][1])

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that a character is in; None where it is in none."""
        row, char = self._place(batch_or_char_index, char_index)
        return row.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word that a character is in."""
        row, char = self._place(batch_or_char_index, char_index)
        token = row.char_to_token(char, sequence_index)
        return None if token is None else row.word_ids[token]

    def _place(self, first: int, second: int | None) -> tuple[Alignment, int]:
        return (self.encodings[0], first) if second is None else (self.encodings[first], second)

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Make tensors ("pt") or arrays ("np") of the values, in place, and return the encoding."""
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
        """Move the tensors to `device`, in place, and return the encoding; a dtype is refused, as ids are integers."""
        if hasattr(device, "is_floating_point"):
            raise InputError(f"an encoding moves to a device, got the dtype {device}: ids are integers and stay such")
        self.update((k, v.to(device, non_blocking=non_blocking)) for k, v in self.items() if hasattr(v, "to"))
        return self


class Plan(NamedTuple):
    """How long rows may be and become: checked options of one call."""

    padding: str
    truncation: str
    limit: int | None
    multiple: int | None


def pairs_of(text: Any, text_pair: Any, name: str = "text") -> tuple[list[Any], list[Any]]:
    """Texts and their second texts (None where there is none) of a call's arguments; `name` is that of the first."""
    if isinstance(text, str):
        if text_pair is not None and not isinstance(text_pair, str):
            raise InputError(f"text is one str, so text_pair must be one too, got {type(text_pair).__name__}")
        return [text], [text_pair or None]  # as transformers: an empty second text is none
    if not isinstance(text, (list, tuple)):
        raise InputError(f"{name} must be a str or a list of str, got {type(text).__name__}")
    if not text:
        raise InputError("the batch holds no text")
    if text_pair is not None:
        if not isinstance(text_pair, (list, tuple)) or len(text_pair) != len(text):
            raise InputError(f"text is a list of {len(text)}, so text_pair must be one of that length")
        for index, second in enumerate(text_pair):
            if not isinstance(second, str):
                raise InputError(f"text_pair {index} must be a str, got {type(second).__name__}")
        return list(text), list(text_pair)
    firsts, seconds = [], []
    for index, item in enumerate(text):
        if isinstance(item, (list, tuple)):
            if len(item) not in (1, 2) or not all(isinstance(one, str) for one in item):
                raise InputError(f"{name} {index} must be a str or a pair of str, got {quoted(item)}")
            firsts.append(item[0])
            seconds.append(item[1] if len(item) == 2 else None)
        else:
            firsts.append(item)
            seconds.append(None)
    return firsts, seconds


def words_of(text: Any, text_pair: Any) -> tuple[list[Any], list[Any], bool]:
    """Texts and second texts of a call whose texts are lists of words; and whether it is one text."""
    if not isinstance(text, (list, tuple)) or not text:
        raise InputError("is_split_into_words=True: text must be a list of words, or a list of such lists")
    single = isinstance(text[0], str)
    given = [text] if single else list(text)
    seconds = [None] * len(given) if text_pair is None else [text_pair] if single else list(text_pair)
    if len(seconds) != len(given):
        raise InputError(f"text is a list of {len(given)}, so text_pair must be one of that length")
    firsts = []
    for index, one in enumerate(given):
        if isinstance(one, tuple) and len(one) == 2 and not isinstance(one[0], str) and seconds[index] is None:
            one, seconds[index] = one
        firsts.append(one)
    for what, texts in (("text", firsts), ("text_pair", seconds)):
        for index, words in enumerate(texts):
            if words is not None and (
                not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words)
            ):
                raise InputError(f"{what} {index} must be a list of words, got {words!r}")
    return [list(one) for one in firsts], [None if one is None else list(one) for one in seconds], single


def truncated(
    row: list[int], second: list[int] | None, limit: int, strategy: str, side: str, odd_to_longer: bool = False
) -> tuple[list[int], list[int] | None]:
    """Shorten a row and its second row (if any) to `limit` tokens together.

    Where both are cut to an odd limit the first keeps one token more, or with `odd_to_longer` the one that was longer,
    the second where they were equal.
    """

    def keep(ids: list[int], drop: int) -> list[int]:
        return ids[: max(len(ids) - drop, 0)] if side == "right" else ids[drop:]

    excess = len(row) + len(second or ()) - limit
    if strategy == "only_first" or (strategy == "longest_first" and second is None):
        return keep(row, excess), second
    if second is None or strategy == "only_second":
        return row, second and keep(second, excess)
    # First level the two, then take from both in turn.
    level = min(abs(len(row) - len(second)), excess)
    half = (excess - level + (odd_to_longer and len(row) <= len(second))) // 2
    drop = level + half if len(row) > len(second) else half
    return keep(row, drop), keep(second, excess - drop)


def tensor_kind(value: Any) -> str | None:
    """Return "pt" or "np" for tensors and arrays, or lists of them; None for anything else."""
    one = value[0] if isinstance(value, (list, tuple)) and value else value
    return {"torch": "pt", "numpy": "np"}.get(type(one).__module__.split(".")[0])


def to_lists(value: Any) -> Any:
    """Turn tensors and arrays, or a list of them, into lists of numbers."""
    if hasattr(value, "tolist") and not isinstance(value, type):
        try:
            return value.tolist()
        except (RuntimeError, NotImplementedError):  # a tensor on the meta device, or a sparse one
            raise InputError(f"ids must be a dense tensor with values, got {quoted(value)}") from None
    if isinstance(value, (list, tuple)) and value and hasattr(value[0], "tolist"):
        return [to_lists(one) for one in value]
    return value


def as_encoding(columns: dict[str, Any], return_tensors: str | None, unwrap: bool) -> BatchEncoding:
    """Turn padded rows into what the caller asked for."""
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


def cleaned_up(text: str) -> str:
    """Take the spaces before English punctuation and contractions out."""
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip())
    return text
