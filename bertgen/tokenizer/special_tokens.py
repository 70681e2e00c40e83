"""Texts as ids, with the special tokens that stand around those of a model, which depend on how it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..config import BertConfig, EncoderDecoderConfig, GenerationConfig
from ..errors import ConfigError
from .base import Tokenizer

TEXT_CHARACTERS = 1 << 24  # of the longest text that is encoded: its tokens take a hundred times the memory


class Encoded(NamedTuple):
    """A text as ids, and whether its end was cut off; or what is wrong with it."""

    ids: list[int]
    truncated: bool = False
    problem: str | None = None


def source_frame(config: EncoderDecoderConfig, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids before and behind a source.

    A BERT or RoBERTa encoder reads [CLS] text [SEP], as in its pre-training; a bert-generation encoder reads the bare
    text, whichever tokenizer cut it (Rothe et al. 2020; the published models of that kind were trained so).
    """
    if not isinstance(config.encoder, BertConfig):
        return [], []
    before, _, behind = tokenizer.frame(pair=False)
    return before, behind


def end_of_target(
    config: EncoderDecoderConfig | None, tokenizer: Tokenizer, options: GenerationConfig | None = None
) -> int:
    """Id that ends a target: what the model stops at, else the tokenizer's end token; ConfigError without one.

    Args:
        options: how the model generates; they come before its configuration.
    """
    halves = (options, config, None if config is None else config.decoder)
    own = (None if half is None else half.eos_token_id for half in halves)
    for end in (*own, tokenizer.eos_token_id, tokenizer.sep_token_id):
        if end is not None:
            return end[0] if isinstance(end, list) else end
    raise ConfigError("neither the model nor its tokenizer has a token that ends a text (eos_token or sep_token)")


def encode_sources(
    texts: Sequence[Any],
    tokenizer: Tokenizer,
    frame: tuple[list[int], list[int]],
    *,
    limit: int,
    vocabulary: int,
    truncation: bool,
) -> list[Encoded]:
    """Encode what is to be read; a text without tokens has no ids, not even those of the frame.

    Args:
        texts: anything that is no text is a problem.
        frame: ids before and behind each.
        limit: longest one in tokens, its frame included; truncation: cut longer ones.
        vocabulary: of the encoder.
    """
    before, behind = frame
    room = limit - len(before) - len(behind)
    found = []
    for row, problem in _rows(texts, tokenizer, vocabulary):
        cut = len(row) > room
        if problem is None and cut and not truncation:
            problem = f"{len(row)} tokens, the limit is {room} (truncation cuts longer texts)"
        found.append(Encoded([*before, *row[:room], *behind] if row else [], cut, problem))
    return found


def encode_targets(
    texts: Sequence[Any], tokenizer: Tokenizer, end: int, *, limit: int, vocabulary: int
) -> list[Encoded]:
    """Encode what is to be written: a text with the end token behind it, ids as they are.

    Args:
        texts: texts, or the ids of one; anything else is a problem, as are no ids at all.
        end: the end token.
        limit: longest one in tokens, the end token included.
        vocabulary: of the decoder.
    """
    given = [text for text in texts if not _is_ids(text)]
    rows = iter(_rows(given, tokenizer, vocabulary))
    found = []
    for text in texts:
        ids, problem = (list(text), _wrong_ids(text, vocabulary)) if _is_ids(text) else next(rows)
        if not _is_ids(text):
            ids = [*ids, end]
        if problem is None and len(ids) > limit:
            problem = f"{len(ids)} tokens, the limit is {limit}"
        found.append(Encoded(ids, False, problem))
    return found


def _rows(texts: Sequence[Any], tokenizer: Tokenizer, vocabulary: int) -> list[tuple[list[int], str | None]]:
    """The ids of each text, without special tokens, and what is wrong with it."""
    problems = [_problem(text) for text in texts]
    known = [text if problem is None else "" for text, problem in zip(texts, problems, strict=True)]
    rows = tokenizer.encode_batch(known, add_special_tokens=False)
    if len(tokenizer) > vocabulary:  # added tokens without a row in the embedding
        for i, row in enumerate(rows):
            if row and max(row) >= vocabulary:
                problems[i] = f"the tokenizer gives id {max(row)}, the model has a vocabulary of {vocabulary}"
    return list(zip(rows, problems, strict=True))


def _problem(text: Any) -> str | None:
    """What is wrong with a text as such; None where it can be encoded."""
    if not isinstance(text, str):
        return f"must be a str, got {type(text).__name__}"
    if len(text) > TEXT_CHARACTERS:
        return f"{len(text)} characters, the limit of a text is {TEXT_CHARACTERS}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"no valid Unicode: lone surrogate U+{ord(text[error.start]):04X} at position {error.start}"
    return None


def _is_ids(text: Any) -> bool:
    return isinstance(text, Sequence) and not isinstance(text, (str, bytes))


def _wrong_ids(ids: Sequence[Any], vocabulary: int) -> str | None:
    if not ids:
        return "no tokens: a target has at least one"
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
            return f"token {token!r} is no id from 0 to {vocabulary - 1}"
    return None
