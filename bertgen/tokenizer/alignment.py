"""Alignment of the tokens of a row with the text, word and characters that they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import UnsupportedError


class CharSpan(NamedTuple):
    """Characters `start` to `end - 1` of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` to `end - 1` of a row."""

    start: int
    end: int


class TokenizedText(NamedTuple):
    """The tokens of one text.

    Attributes:
        ids, tokens: of each token.
        offsets: characters (start, end) of each token, within its word where the text is a list of words.
        words: index of the word of each token; None where the tokenizer does not split into words.
    """

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    words: list[int | None] | None


@dataclass(frozen=True)
class Alignment:
    """The alignment of one row, with one entry per token.

    Attributes:
        ids, tokens: with special tokens and padding.
        offsets: characters (start, end) of the text; (0, 0) for special tokens and padding.
        sequence_ids: text of a pair, 0 or 1; None for special tokens and padding.
        words: as `word_ids`; None where the tokenizer does not split into words.
        special_tokens_mask: 1 for special tokens and padding.
        n_sequences: 1 for a text, 2 for a pair.
    """

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    sequence_ids: list[int | None]
    words: list[int | None] | None
    special_tokens_mask: list[int]
    n_sequences: int

    @property
    def word_ids(self) -> list[int | None]:
        """Index of each token's word in its text; None for special tokens and padding.

        Raises:
            UnsupportedError: the tokenizer does not split into words, and the call had no `is_split_into_words`.
        """
        if self.words is None:
            raise UnsupportedError("sentencepiece does not split into words: word_ids needs is_split_into_words=True")
        return self.words

    def word_to_tokens(self, word: int, sequence: int = 0) -> TokenSpan | None:
        """Tokens of a word; None where there are none."""
        indices = [
            i
            for i, (w, s) in enumerate(zip(self.word_ids, self.sequence_ids, strict=True))
            if (w, s) == (word, sequence)
        ]
        return TokenSpan(indices[0], indices[-1] + 1) if indices else None

    def char_to_token(self, char: int, sequence: int = 0) -> int | None:
        """Index of the token of a character; None where no token has it."""
        for i, (start, end) in enumerate(self.offsets):
            if self.sequence_ids[i] == sequence and start <= char < end:
                return i
        return None


def align_rows(
    texts: Sequence[TokenizedText],
    second_texts: Sequence[TokenizedText | None],
    kept: Sequence[Sequence[int]],
    second_kept: Sequence[Sequence[int] | None],
    special: Mapping[bool, Sequence[TokenizedText]],
    widths: Sequence[int],
    side: str,
    padding: tuple[int, str],
) -> list[Alignment]:
    """The alignments of rows; arguments as `align_row`, for each row.

    Args:
        special: special tokens of a single row (False) and of a pair (True).
    """
    rows = []
    for text, second, first_kept, pair_kept, width in zip(texts, second_texts, kept, second_kept, widths, strict=True):
        if second is None or pair_kept is None:
            rows.append(align_row([text], [first_kept], special[False], width, side, padding))
        else:
            rows.append(align_row([text, second], [first_kept, pair_kept], special[True], width, side, padding))
    return rows


def align_row(
    texts: Sequence[TokenizedText],
    kept: Sequence[Sequence[int]],
    special: Sequence[TokenizedText],
    width: int,
    side: str,
    padding: tuple[int, str],
) -> Alignment:
    """The alignment of a row.

    Args:
        texts: one or two.
        kept: indices of the tokens of each text that truncation kept.
        special: special tokens before, between and after the texts.
        width: tokens of the row with padding.
        side: of the padding.
        padding: its id and token.
    """
    before, between, after = special
    rows: list[Any] = []  # id, token, characters, text, word, whether special

    def add_special(tokens: TokenizedText) -> None:
        rows.extend((i, token, (0, 0), None, None, 1) for i, token in zip(tokens.ids, tokens.tokens, strict=True))

    add_special(before)
    for number, (text, indices) in enumerate(zip(texts, kept, strict=True)):
        if number:
            add_special(between)
        for i in indices:
            word = None if text.words is None else text.words[i]
            rows.append((text.ids[i], text.tokens[i], text.offsets[i], number, word, 0))
    add_special(after)
    padded = [(*padding, (0, 0), None, None, 1)] * (width - len(rows))
    rows = rows + padded if side == "right" else padded + rows
    columns = [list(column) for column in zip(*rows)] if rows else [[] for _ in range(6)]
    ids, tokens, offsets, sequences, words, special_mask = columns
    has_words = all(text.words is not None for text in texts)
    return Alignment(ids, tokens, offsets, sequences, words if has_words else None, special_mask, len(texts))
