"""Texts as they come in: any iterable, read piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import InputError, quoted
from ..files.windows import windows

LOOKAHEAD = 4096  # texts that `stream` reads before it answers the first
LOOKAHEAD_CHARACTERS = 1 << 24  # and no more than this much of them


def checked_texts(texts: Any, name: str = "texts") -> Any:
    """The texts, an iterable of them; InputError for one text, or what is none."""
    try:
        iter(texts)
        many = not isinstance(texts, (str, bytes, Mapping))
    except TypeError:
        many = False
    if not many:
        raise InputError(f"{name} must be a list of texts, or another iterable of them, got {quoted(texts)}")
    return texts


def in_windows(texts: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Cut an iterable of texts, or of tuples of them, into lists of `size`, or of fewer where they are very long."""
    return windows(texts, size, size_of=_characters, limit=LOOKAHEAD_CHARACTERS)


def _characters(text: Any) -> int:
    return sum(len(t) for t in (text if isinstance(text, tuple) else (text,)) if isinstance(t, str))
