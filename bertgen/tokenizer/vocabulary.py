"""The tokens of a tokenizer: ids and strings, special tokens by name, added tokens."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from ..config.validators import check_flag
from ..errors import ConfigError, InputError, UnsupportedError, quoted
from .encoding import to_lists
from .tokens import AddedToken

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _SpecialTokenAttribute:
    """Attribute `<name>_token` or `<name>_token_id` of a tokenizer; None where it has no such token.

    Args:
        get: function (tokenizer, "<name>_token") -> value.
        set: function (tokenizer, "<name>_token", value).
    """

    def __init__(self, get: Callable[[Any, str], Any], set: Callable[[Any, str, Any], None]):
        self.get, self.set = get, set

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    def __get__(self, tokenizer: Any, owner: type) -> Any:
        return self if tokenizer is None else self.get(tokenizer, self.name)

    def __set__(self, tokenizer: Any, value: Any) -> None:
        self.set(tokenizer, self.name, value)


class Vocabulary:
    """Base of the tokenizers: their tokens.

    Args:
        special: name -> token of `SPECIAL_NAMES`; None or a missing name for no such token.
        extra_special_tokens: special tokens without a name.

    Raises:
        ConfigError: a token of another type.
    """

    def _get_named_token(self, name: str) -> str | None:
        return self._special[name]

    def _set_named_token(self, name: str, value: Any) -> None:
        if value is not None and self._id_of(AddedToken.of(value).content) is None:
            # Unlike transformers, where such a token silently gets the id of the unknown token.
            raise InputError(f"{name} {value!r} is not in the vocabulary; add_special_tokens adds it")
        self._set_special(name, value)

    def _get_named_id(self, name: str) -> int | None:
        token = self._special[name]
        return None if token is None else self.convert_tokens_to_ids(token)

    def _set_named_id(self, name: str, index: Any) -> None:
        self._set_named_token(name, None if index is None else self.convert_ids_to_tokens(index))

    bos_token = _SpecialTokenAttribute(_get_named_token, _set_named_token)
    bos_token_id = _SpecialTokenAttribute(_get_named_id, _set_named_id)
    eos_token = _SpecialTokenAttribute(_get_named_token, _set_named_token)
    eos_token_id = _SpecialTokenAttribute(_get_named_id, _set_named_id)
    unk_token = _SpecialTokenAttribute(_get_named_token, _set_named_token)
    unk_token_id = _SpecialTokenAttribute(_get_named_id, _set_named_id)
    sep_token = _SpecialTokenAttribute(_get_named_token, _set_named_token)
    sep_token_id = _SpecialTokenAttribute(_get_named_id, _set_named_id)
    pad_token = _SpecialTokenAttribute(_get_named_token, _set_named_token)
    pad_token_id = _SpecialTokenAttribute(_get_named_id, _set_named_id)
    cls_token = _SpecialTokenAttribute(_get_named_token, _set_named_token)
    cls_token_id = _SpecialTokenAttribute(_get_named_id, _set_named_id)
    mask_token = _SpecialTokenAttribute(_get_named_token, _set_named_token)
    mask_token_id = _SpecialTokenAttribute(_get_named_id, _set_named_id)

    def __init__(
        self,
        special: Mapping[str, str | AddedToken | None],
        extra_special_tokens: Sequence[str | AddedToken] | None,
    ):
        tokens = {name: special.get(name) for name in SPECIAL_NAMES}
        self._special: dict[str, str | None] = {
            name: None if token is None else AddedToken.of(token).content for name, token in tokens.items()
        }
        if extra_special_tokens is not None and not isinstance(extra_special_tokens, (list, tuple)):
            if not isinstance(extra_special_tokens, Mapping) or extra_special_tokens:  # transformers writes {} for none
                raise UnsupportedError(
                    f"extra_special_tokens must be a list of tokens, got {quoted(extra_special_tokens)}"
                )
        self._extra = [AddedToken.of(token).content for token in extra_special_tokens or ()]

    # -- for subclasses -----------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary without added tokens."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id -> token of the added and the special tokens, by id."""
        raise NotImplementedError

    @cached_property
    def _token_of(self) -> dict[int, str]:
        """Id -> token, with added tokens. Cached properties are computed again after tokens were added."""
        raise NotImplementedError

    def _id_of(self, token: str) -> int | None:
        raise NotImplementedError

    @property
    def _unknown_id(self) -> int | None:
        return None if self.unk_token is None else self._id_of(self.unk_token)

    def _add(self, tokens: Sequence[str | AddedToken], special: bool) -> None:
        """Add tokens: a string that has an id keeps it, others get the next free ids."""
        raise NotImplementedError

    # -- the same in all classes --------------------------------------------------------------------------------------

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, with added tokens."""
        added = {token.content: index for index, token in self.added_tokens_decoder.items()}
        return {token: index for index, token in self._token_of.items()} | added

    @property
    def vocab(self) -> dict[str, int]:
        """`get_vocab()`."""
        return self.get_vocab()

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Name -> token of the special tokens that are set."""
        return {name: token for name, token in self._special.items() if token is not None}

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Token -> id of the added and the special tokens, by id."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """`added_tokens_encoder`."""
        return self.added_tokens_encoder

    @property
    def extra_special_tokens(self) -> list[str]:
        """Special tokens without a name. Setting them adds those that are not in the vocabulary."""
        return list(self._extra)

    @extra_special_tokens.setter
    def extra_special_tokens(self, tokens: Sequence[str | AddedToken]) -> None:
        if not isinstance(tokens, (list, tuple)):
            raise ConfigError(f"extra_special_tokens must be a list of tokens, got {tokens!r}")
        self._extra = []
        self.add_special_tokens({"extra_special_tokens": tokens})

    @property
    def extra_special_tokens_ids(self) -> list[int]:
        """Ids of `extra_special_tokens`."""
        return self.convert_tokens_to_ids(self._extra)

    @extra_special_tokens_ids.setter
    def extra_special_tokens_ids(self, ids: Sequence[int]) -> None:
        self.extra_special_tokens = self.convert_ids_to_tokens(list(ids))

    # The names in transformers 4.
    additional_special_tokens = extra_special_tokens
    additional_special_tokens_ids = extra_special_tokens_ids

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens without duplicates, extra ones last."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Add tokens; returns the number of new ids, for which the model's embedding needs rows.

        New ids start at `len(self)`. A string that is in the vocabulary keeps its id and is not counted.
        """
        if isinstance(new_tokens, (str, AddedToken)) or not isinstance(new_tokens, Sequence):
            new_tokens = [new_tokens]
        special_tokens = check_flag(special_tokens, "special_tokens")
        for token in new_tokens:
            AddedToken.of(token)  # raises ConfigError before a token is added
        before = len(self)
        self._add(new_tokens, special_tokens)
        self._clear_tables()
        return len(self) - before

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, str | AddedToken | Sequence[str | AddedToken]],
        replace_extra_special_tokens: bool = True,
    ) -> int:
        """Set special tokens by name ("pad_token", "extra_special_tokens", ...); returns the number of new ids."""
        if not isinstance(special_tokens_dict, Mapping):
            raise ConfigError(f"special_tokens_dict must be a dict of name -> token, got {quoted(special_tokens_dict)}")
        before = len(self)
        for name, value in special_tokens_dict.items():
            name = "extra_special_tokens" if name == "additional_special_tokens" else name
            if name == "extra_special_tokens" and isinstance(value, (list, tuple)):
                tokens = [AddedToken.of(token, special=True) for token in value]
                kept = [] if replace_extra_special_tokens and tokens else self._extra
                self._extra = list(dict.fromkeys([*kept, *(token.content for token in tokens)]))
                self.add_tokens(tokens, special_tokens=True)
            elif name in SPECIAL_NAMES:
                self._set_special(name, value)
            else:
                known = ", ".join((*SPECIAL_NAMES, "extra_special_tokens (a list)"))
                raise ConfigError(f"special_tokens_dict: {name}={quoted(value)} is no special token; there are {known}")
        return len(self) - before

    def _set_special(self, name: str, value: Any) -> None:
        token = None if value is None else AddedToken.of(value, special=True)
        self._special[name] = None if token is None else token.content
        self.add_tokens([] if token is None else [token], special_tokens=True)

    def _cached_tables(self) -> list[str]:
        """Names of the computed cached properties, which are not pickled."""
        return [name for name in self.__dict__ if isinstance(getattr(type(self), name, None), cached_property)]

    def _clear_tables(self) -> None:
        for name in self._cached_tables():
            del self.__dict__[name]

    def __getstate__(self) -> dict[str, Any]:
        tables = self._cached_tables()
        return {name: value for name, value in self.__dict__.items() if name not in tables}

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Id of a token, or ids of a list; a token that is not in the vocabulary gets the id of the unknown token."""
        if isinstance(tokens, str):
            index = self._id_of(tokens)
            return self._unknown_id if index is None else index
        if not isinstance(tokens, Iterable) or hasattr(tokens, "dtype"):
            raise InputError(f"tokens must be a token or a list of tokens, got {type(tokens).__name__}")
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def _checked_ids(self, ids: Any) -> list[int]:
        """Ids as ints; InputError for one that is no integer or not in the vocabulary."""
        checked = []
        for position, value in enumerate(ids if isinstance(ids, Iterable) else [ids]):
            try:
                index = operator.index(value)
            except TypeError:
                raise InputError(f"id {quoted(value)} at position {position} is no integer") from None
            if index not in self._token_of:
                raise InputError(
                    f"id {quoted(index)} at position {position} is outside the vocabulary of {len(self)} tokens"
                )
            checked.append(index)
        return checked

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Token of an id, or tokens of a list."""
        ids = to_lists(ids)
        if not isinstance(ids, (list, tuple)):
            return self._token_of[self._checked_ids([ids])[0]]
        skipped = set(self.all_special_ids) if check_flag(skip_special_tokens, "skip_special_tokens") else ()
        return [self._token_of[index] for index in self._checked_ids(ids) if index not in skipped]
