"""Where the tokens of a row come from: which text of a pair, which word, which characters."""

from __future__ import annotations

from collections.abc import Sequence
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


class Part(NamedTuple):
    """The tokens of one text.

    Attributes:
        ids, tokens: of each token.
        offsets: its characters, (first, behind the last), in its word where the text came in words.
        words: index of its word; None where the tokenizer knows no words.
    """

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    words: list[int | None] | None


@dataclass(frozen=True)
class Alignment:
    """A row, token by token.

    Attributes:
        ids, tokens: special tokens and padding included.
        offsets: characters of the text, (0, 0) for what is of none.
        sequence_ids: 0 or 1, which text of a pair; None for what is of none.
        words: as `word_ids`; None as a whole where the tokenizer knows no words.
        special_tokens_mask: 1 for what stands around and between the texts, and for padding.
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
        """Index of each token's word in its text; None for what is of none.

        Raises:
            UnsupportedError: the tokenizer knows no words, unless texts come in words (`is_split_into_words`).
        """
        if self.words is None:
            raise UnsupportedError("sentencepiece knows no words: word_ids needs is_split_into_words=True")
        return self.words

    def word_to_tokens(self, word: int, sequence: int = 0) -> TokenSpan | None:
        """The tokens of a word; None where there are none."""
        found = [
            i
            for i, (w, s) in enumerate(zip(self.word_ids, self.sequence_ids, strict=True))
            if (w, s) == (word, sequence)
        ]
        return TokenSpan(found[0], found[-1] + 1) if found else None

    def char_to_token(self, char: int, sequence: int = 0) -> int | None:
        """The token that a character is in; None where it is in none."""
        for i, (start, end) in enumerate(self.offsets):
            if self.sequence_ids[i] == sequence and start <= char < end:
                return i
        return None


def aligned(
    parts: Sequence[Part],
    kept: Sequence[Sequence[int]],
    frame: Sequence[Part],
    width: int,
    side: str,
    pad: tuple[int, str],
) -> Alignment:
    """The alignment of a row.

    Args:
        parts: one text or two.
        kept: indices of those tokens of each that truncation left.
        frame: special tokens before, between (as the second of three, also for one text) and behind.
        width: tokens of the row with padding. side: where padding is. pad: its id and token.
    """
    before, between, behind = frame
    rows: list[Any] = []  # id, token, characters, text, word, whether special

    def add_special(part: Part) -> None:
        rows.extend((i, token, (0, 0), None, None, 1) for i, token in zip(part.ids, part.tokens, strict=True))

    add_special(before)
    for number, (part, places) in enumerate(zip(parts, kept, strict=True)):
        if number:
            add_special(between)
        for place in places:
            word = None if part.words is None else part.words[place]
            rows.append((part.ids[place], part.tokens[place], part.offsets[place], number, word, 0))
    add_special(behind)
    padding = [(*pad, (0, 0), None, None, 1)] * (width - len(rows))
    rows = rows + padding if side == "right" else padding + rows
    columns = [list(column) for column in zip(*rows)] if rows else [[] for _ in range(6)]
    ids, tokens, offsets, sequences, words, special = columns
    known = all(part.words is not None for part in parts)
    return Alignment(ids, tokens, offsets, sequences, words if known else None, special, len(parts))
