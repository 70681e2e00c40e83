"""AddedToken: a string that is one token at any place of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from ..errors import ConfigError, quoted


@dataclass(frozen=True)
class AddedToken:
    """A string that is one token at any place of a text.

    Args:
        content: the string.
        single_word: only between spaces or ends of the text.
        lstrip, rstrip: the token includes the white space on that side.
        normalized: matched after the text was normalized, for example to lower case; None is `not special`. No effect
            with sentencepiece.
        special: `skip_special_tokens` drops it.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool | None = None
    special: bool = False

    def __post_init__(self) -> None:
        try:
            str(self.content).encode()
        except UnicodeEncodeError:
            raise ConfigError(f"a token must be valid Unicode, got {self.content!r}") from None

    @classmethod
    def of(cls, value: Any, special: bool = False) -> AddedToken:
        """From a string, a dict of a JSON file or a token of transformers; ConfigError for anything else."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value, special=special, normalized=not special)
        get = value.get if isinstance(value, Mapping) else partial(getattr, value)
        values = {f.name: get(f.name, f.default) for f in fields(cls)}
        flags = [value for name, value in values.items() if name != "content" and (name, value) != ("normalized", None)]
        if not isinstance(values["content"], str) or not all(isinstance(flag, bool) for flag in flags):
            raise ConfigError(f"a token must be a string or have content and flags, got {quoted(value)}")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """The fields, as in the files of transformers."""
        return asdict(self) | {"normalized": not self.special if self.normalized is None else self.normalized}


def read_added_tokens(saved: Mapping[Any, Any]) -> dict[int, AddedToken]:
    """Id -> token of a saved `added_tokens_decoder`; ConfigError for anything else."""
    try:
        added = {int(index): AddedToken.of(token) for index, token in saved.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"added_tokens_decoder must be a table of id -> token: {error}") from error
    for index, token in added.items():
        if index < 0 or not token.content:
            raise ConfigError(f"added_tokens_decoder gives the token {token.content!r} the id {index}")
    return added
