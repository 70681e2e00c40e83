"""Tokens that were added to a vocabulary: strings that are one token wherever they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from ..errors import ConfigError


@dataclass(frozen=True)
class AddedToken:
    """A string that is one token wherever it stands in a text.

    Args:
        content: the string.
        single_word: only where a space or an end of the text is on either side.
        lstrip, rstrip: white space on that side belongs to the token.
        normalized: kept for the files of transformers; changes nothing here.
        special: `skip_special_tokens` drops it.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    @classmethod
    def of(cls, value: Any, special: bool = False) -> AddedToken:
        """Read a string, a dict of a JSON file or a token object of transformers; ConfigError for anything else."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value, special=special, normalized=not special)
        get = value.get if isinstance(value, Mapping) else partial(getattr, value)
        values = {f.name: get(f.name, f.default) for f in fields(cls)}
        if not isinstance(values["content"], str) or {type(values[name]) for name in values if name != "content"} != {
            bool
        }:
            raise ConfigError(f"a token must be a string or have content and flags, got {value!r}")
        return cls(**values)


def read_added_tokens(saved: Mapping[Any, Any]) -> dict[int, AddedToken]:
    """Id -> token of a saved `added_tokens_decoder`; ConfigError where it is none."""
    try:
        added = {int(index): AddedToken.of(token) for index, token in saved.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"added_tokens_decoder must be a table of id -> token: {error}") from error
    for index, token in added.items():
        if index < 0 or not token.content:
            raise ConfigError(f"added_tokens_decoder gives the token {token.content!r} the id {index}")
    return added
