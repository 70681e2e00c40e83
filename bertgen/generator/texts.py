"""Texts of a call: any iterable, read in windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import InputError, quoted
from ..files.line_windows import windows

LOOKAHEAD = 4096  # texts that `stream` reads before its first output
LOOKAHEAD_CHARACTERS = 1 << 24  # and the most characters of them


def checked_texts(texts: Any, name: str = "texts") -> Any:
    """The argument, if it is an iterable of texts.

    Raises:
        InputError: a single text, a mapping, or not iterable.
    """
    try:
        iter(texts)
        is_list = not isinstance(texts, (str, bytes, Mapping))
    except TypeError:
        is_list = False
    if not is_list:
        raise InputError(f"{name} must be a list of texts, or another iterable of them, got {quoted(texts)}")
    return texts


def in_windows(texts: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Cut an iterable of texts, or of tuples of them, into lists of `size`, or of fewer where they are very long."""
    return windows(texts, size, size_of=_characters, limit=LOOKAHEAD_CHARACTERS)


def _characters(text: Any) -> int:
    return sum(len(t) for t in (text if isinstance(text, tuple) else (text,)) if isinstance(t, str))
