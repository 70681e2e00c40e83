"""The texts of a tokenizer call: one text, a list, pairs, or lists of words."""

from __future__ import annotations

from typing import Any

from ..errors import InputError, quoted


def texts_and_pairs(text: Any, text_pair: Any, name: str = "text") -> tuple[list[Any], list[Any]]:
    """Texts and their second texts (None for those without), from the arguments of a call.

    Args:
        text: a str, or a list of str and of pairs of str.
        text_pair: a str or a list of str, the second texts.
        name: of the argument `text`, for errors.

    Raises:
        InputError: an argument of another type or length.
    """
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


def words_and_pairs(text: Any, text_pair: Any) -> tuple[list[Any], list[Any], bool]:
    """Texts and second texts of a call with `is_split_into_words`, where a text is a list of words.

    Returns:
        The texts, their second texts (None for those without), and whether the call has one text only.

    Raises:
        InputError: an argument of another type or length.
    """
    if not isinstance(text, (list, tuple)) or not text:
        raise InputError("is_split_into_words=True: text must be a list of words, or a list of such lists")
    single = isinstance(text[0], str)
    texts = [text] if single else list(text)
    seconds = [None] * len(texts) if text_pair is None else [text_pair] if single else list(text_pair)
    if len(seconds) != len(texts):
        raise InputError(f"text is a list of {len(texts)}, so text_pair must be one of that length")
    firsts = []
    for index, one in enumerate(texts):
        if isinstance(one, tuple) and len(one) == 2 and not isinstance(one[0], str) and seconds[index] is None:
            one, seconds[index] = one
        firsts.append(one)
    for name, column in (("text", firsts), ("text_pair", seconds)):
        for index, words in enumerate(column):
            if words is not None and (
                not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words)
            ):
                raise InputError(f"{name} {index} must be a list of words, got {words!r}")
    return [list(one) for one in firsts], [None if one is None else list(one) for one in seconds], single
