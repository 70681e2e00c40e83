"""Encode texts with the special tokens that a model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..config import BertConfig, EncoderDecoderConfig, GenerationConfig
from ..errors import ConfigError
from .base import Tokenizer

MAX_TEXT_CHARACTERS = 1 << 24  # the longest text that is encoded: its tokens take about a hundred times the memory


class Encoded(NamedTuple):
    """The ids of one text.

    Attributes:
        ids: with special tokens.
        truncated: whether the end of the text was cut off.
        problem: why the text cannot be used; None where it can.
    """

    ids: list[int]
    truncated: bool = False
    problem: str | None = None


def source_special_tokens(config: EncoderDecoderConfig, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids before and after a source.

    A BERT or RoBERTa encoder reads [CLS] text [SEP], as in its pre-training. A bert-generation encoder reads the bare
    text, with any tokenizer, as the published models were trained (Rothe et al. 2020).
    """
    if not isinstance(config.encoder, BertConfig):
        return [], []
    before, _, after = tokenizer.frame(pair=False)
    return before, after


def target_end_token(
    config: EncoderDecoderConfig | None, tokenizer: Tokenizer, options: GenerationConfig | None = None
) -> int:
    """Id that ends a target: the first end token of the model, else the tokenizer's eos or sep token.

    Args:
        config: of the model.
        options: how the model generates; takes precedence over `config`.

    Raises:
        ConfigError: neither the model nor the tokenizer has such a token.
    """
    levels = (options, config, None if config is None else config.decoder)
    of_model = (None if level is None else level.eos_token_id for level in levels)
    for end in (*of_model, tokenizer.eos_token_id, tokenizer.sep_token_id):
        if end is not None:
            return end[0] if isinstance(end, list) else end
    raise ConfigError("neither the model nor its tokenizer has a token that ends a text (eos_token or sep_token)")


def encode_sources(
    texts: Sequence[Any],
    tokenizer: Tokenizer,
    special_tokens: tuple[list[int], list[int]],
    *,
    limit: int,
    vocabulary: int,
    truncation: bool,
) -> list[Encoded]:
    """Encode the inputs of the encoder. A text without tokens gets no special tokens either.

    Args:
        texts: an entry that is not a usable text gets a reason.
        special_tokens: ids before and after each text.
        limit: maximum number of tokens of a source, special tokens included.
        vocabulary: number of ids of the encoder.
        truncation: cut longer texts instead of giving a reason.
    """
    before, after = special_tokens
    room = limit - len(before) - len(after)
    encoded = []
    for ids, reason in _encode_texts(texts, tokenizer, vocabulary):
        too_long = len(ids) > room
        if reason is None and too_long and not truncation:
            reason = f"{len(ids)} tokens, the limit is {room} (truncation cuts longer texts)"
        encoded.append(Encoded([*before, *ids[:room], *after] if ids else [], too_long, reason))
    return encoded


def encode_targets(
    texts: Sequence[Any], tokenizer: Tokenizer, end: int, *, limit: int, vocabulary: int
) -> list[Encoded]:
    """Encode the outputs of the decoder: a text is followed by the end token, a list of ids is used as it is.

    Args:
        texts: texts, or lists of ids; anything else gets a reason, and so does an empty list.
        end: the end token.
        limit: maximum number of tokens of a target, the end token included.
        vocabulary: number of ids of the decoder.
    """
    of_texts = iter(_encode_texts([text for text in texts if not _is_ids(text)], tokenizer, vocabulary))
    encoded = []
    for text in texts:
        if _is_ids(text):
            ids, reason = list(text), why_not_ids(text, vocabulary)
        else:
            ids, reason = next(of_texts)
            ids = [*ids, end]
        if reason is None and len(ids) > limit:
            reason = f"{len(ids)} tokens, the limit is {limit}"
        encoded.append(Encoded(ids, False, reason))
    return encoded


def _encode_texts(texts: Sequence[Any], tokenizer: Tokenizer, vocabulary: int) -> list[tuple[list[int], str | None]]:
    """The ids of each text, without special tokens, and the reason why it cannot be used."""
    reasons = [why_not_text(text) for text in texts]
    usable = [text if reason is None else "" for text, reason in zip(texts, reasons, strict=True)]
    rows = tokenizer.encode_batch(usable, add_special_tokens=False)
    if len(tokenizer) > vocabulary:  # added tokens without a row in the embedding
        for i, row in enumerate(rows):
            if row and max(row) >= vocabulary:
                reasons[i] = f"the tokenizer gives id {max(row)}, the model has a vocabulary of {vocabulary}"
    return list(zip(rows, reasons, strict=True))


def why_not_text(text: Any) -> str | None:
    """Why a text cannot be encoded; None where it can."""
    if not isinstance(text, str):
        return f"must be a str, got {type(text).__name__}"
    if len(text) > MAX_TEXT_CHARACTERS:
        return f"{len(text)} characters, the limit of a text is {MAX_TEXT_CHARACTERS}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"no valid Unicode: lone surrogate U+{ord(text[error.start]):04X} at position {error.start}"
    return None


def _is_ids(text: Any) -> bool:
    return isinstance(text, Sequence) and not isinstance(text, (str, bytes))


def why_not_ids(ids: Sequence[Any], vocabulary: int) -> str | None:
    """Why a list of ids cannot be a target; None where it can."""
    if not ids:
        return "no tokens: a target has at least one"
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
            return f"token {token!r} is no id from 0 to {vocabulary - 1}"
    return None
