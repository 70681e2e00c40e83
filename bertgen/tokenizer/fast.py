"""FastTokenizer: base of BertTokenizer and RobertaTokenizer, on the tokenizers library."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import tokenizers

from ..config import read_json
from ..errors import CheckpointError, ConfigError, InputError
from ..files.atomic import write_file
from ..hub import check_file, resolve_file
from .alignment import TokenizedText
from .base import Tokenizer
from .files import target_file
from .lengths import truncate_pair
from .tokens import AddedToken, read_added_tokens

TOKENIZER_FILE = "tokenizer.json"


class FastTokenizer(Tokenizer):
    """A tokenizer on the tokenizers library, with the results of transformers 5.

    `Tokenizer` adds special tokens, truncates and pads, not the library: calls do not change the library's object, so
    threads may share a tokenizer.

    Args:
        special, options: as of `Tokenizer`; the tokens may have flags.
        vocabulary: the arguments of `_read_vocabulary`, each None with a `tokenizer_file`.
        tokenizer_file: a `tokenizer.json`, or None. Its vocabulary and added tokens are read. The class and its options
            normalize and split text, as in transformers.
        added_tokens_decoder: id -> token, as in saved files; None takes the added tokens of `tokenizer_file`.

    Raises:
        CheckpointError: a file is missing or corrupt.
        ConfigError: there are none or several vocabularies, or an option is unknown or has a bad value.
    """

    is_fast: ClassVar[bool] = True
    MODEL: ClassVar[str]  # the type of the model in a tokenizer.json
    NEEDS: ClassVar[str]  # the options for a vocabulary

    def __init__(
        self,
        special: Mapping[str, str | AddedToken | None],
        vocabulary: tuple[Any, ...],
        tokenizer_file: str | os.PathLike | None,
        added_tokens_decoder: Mapping[Any, Any] | None,
        **options: Any,
    ):
        saved = {} if tokenizer_file is None else _read(tokenizer_file)
        if isinstance(padding := saved.get("padding"), dict):  # of the last call before transformers saved the file
            options.setdefault("padding_side", str(padding.get("direction")).lower())
        super().__init__(special, **options)
        sources = [source for source in (tokenizer_file, *vocabulary) if source is not None]
        for source in sources:
            if isinstance(source, (str, os.PathLike)) and os.path.exists(source):
                check_file(Path(source))
        if sources != [tokenizer_file] and sources != list(vocabulary):
            raise ConfigError(
                f"{type(self).__name__} needs {self.NEEDS}, or a tokenizer_file instead; got {len(sources)}"
            )
        try:
            model = self._read_vocabulary(*vocabulary) if tokenizer_file is None else saved["model"]
            if model.setdefault("type", self.MODEL) != self.MODEL:
                raise ValueError(f"a {model['type']} model is not {self.MODEL}")
            self._library = self._make(model)
            added = _added_in(saved)
        except Exception as error:  # the library's own type, and any other that wrong JSON leads to
            kind = CheckpointError if any(isinstance(one, (str, os.PathLike)) for one in sources) else ConfigError
            names = " and ".join(f"{source!s:.200}" for source in sources)
            raise kind(f"{names} cannot be a vocabulary of {type(self).__name__}: {error!r}") from error
        if added_tokens_decoder is not None:
            added = read_added_tokens(added_tokens_decoder)
        tokens = {token.content: token for _, token in sorted(added.items())}
        for value in (*special.values(), *(options.get("extra_special_tokens") or ())):
            if value is not None:
                token = AddedToken.of(value, special=True)
                tokens[token.content] = replace(tokens.get(token.content, token), special=True)
        self._add(list(tokens.values()), special=False)
        for index, token in added.items():
            if (actual := self._library.token_to_id(token.content)) != index:
                # Unlike transformers, which uses the other id.
                raise ConfigError(
                    f"added_tokens_decoder gives {token.content!r} the id {index}, but it must be {actual}"
                )

    @classmethod
    def options_in(cls, parts: dict[str, Any]) -> dict[str, Any]:
        """Options of the class that correspond to `parts` of a tokenizer.json."""
        raise NotImplementedError

    def _read_vocabulary(self, *vocabulary: Any) -> dict[str, Any]:
        """The `model` of a tokenizer.json, from files or tables."""
        raise NotImplementedError

    def _make(self, model: dict[str, Any]) -> tokenizers.Tokenizer:
        """The library's tokenizer, which normalizes, splits and decodes."""
        raise NotImplementedError

    def _post_processor(self) -> Any:
        """The library's post-processor, which adds special tokens, for other programs that read a tokenizer.json."""
        raise NotImplementedError

    # -- vocabulary ---------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary without added tokens."""
        return self._library.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._library.get_vocab_size()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id -> token of the added and the special tokens, by id."""
        added = self._library.get_added_tokens_decoder()
        return {index: AddedToken.of(added[index]) for index in sorted(added)}

    @cached_property
    def _token_of(self) -> dict[int, str]:
        return {index: token for token, index in self._ids.items()}

    @cached_property
    def _ids(self) -> dict[str, int]:
        return self._library.get_vocab()

    def _id_of(self, token: str) -> int | None:
        return self._ids.get(token)

    def _add(self, tokens: Sequence[str | AddedToken], special: bool) -> None:
        added = [AddedToken.of(token, special=special) for token in tokens]
        added = [replace(token, special=token.special or special) for token in added]
        self._library.add_tokens([tokenizers.AddedToken(**token.as_dict()) for token in added])

    # -- text to ids --------------------------------------------------------------------------------------------------

    def _encode_rows(self, texts: list[str]) -> list[list[int]]:
        self._set_splitting()
        return [row.ids for row in self._library.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_words(self, texts: list[list[str]]) -> list[list[int]]:
        self._set_splitting()
        batch = self._library.encode_batch_fast(texts, is_pretokenized=True, add_special_tokens=False)
        return [row.ids for row in batch]

    def _align_texts(self, texts: list[Any], split: bool) -> list[TokenizedText]:
        self._set_splitting()
        batch = self._library.encode_batch(texts, is_pretokenized=split, add_special_tokens=False)
        return [
            TokenizedText(row.ids, row.tokens, self._offsets(row.tokens, row.offsets), row.word_ids) for row in batch
        ]

    def _offsets(self, tokens: list[str], offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The offsets that transformers returns, from those of the library."""
        return offsets

    def _tokenize(self, text: str) -> list[str]:
        self._set_splitting()
        return self._library.encode(text, add_special_tokens=False).tokens

    def _set_splitting(self) -> None:
        if self._library.encode_special_tokens != self.split_special_tokens:
            self._library.encode_special_tokens = self.split_special_tokens

    def _truncate_pair(
        self, index: int, row: list[int], second: list[int] | None, limit: int, strategy: str
    ) -> tuple[list[int], list[int] | None]:
        if limit == 0:
            return [], second and []
        excess = len(row) + len(second or ()) - limit
        if strategy != "longest_first":
            length = len((row if strategy == "only_first" else second) or ())
            if length <= excess:
                reason = f"text {index} has {excess} tokens too many, and the one to be cut has {length}"
                raise InputError(f"{reason}; use truncation='longest_first' instead of {strategy!r}")
        return truncate_pair(row, second, limit, strategy, self.truncation_side, odd_to_longer=True)

    # -- ids to text --------------------------------------------------------------------------------------------------

    def _decode_rows(self, rows: Sequence[Any], skip_special_tokens: bool) -> list[str]:
        try:
            if self._token_of.keys() >= set(chain.from_iterable(rows)):
                return self._library.decode_batch(rows, skip_special_tokens)
        except TypeError:  # ids that are no integers, or no integers to the library
            pass
        # Unlike transformers, which omits ids without a token.
        return self._library.decode_batch([self._checked_ids(row) for row in rows], skip_special_tokens)

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """Join tokens to a text."""
        return self._library.decoder.decode(list(tokens))

    # -- files --------------------------------------------------------------------------------------------------------

    @classmethod
    def _option_for_file(cls, path: Path) -> str:
        return "tokenizer_file" if path.suffix == ".json" else "vocab_file"

    @classmethod
    def _added_tokens_in(cls, vocabulary: dict[str, Any]) -> dict[int, AddedToken]:
        return _added_in(_read(vocabulary["tokenizer_file"])) if "tokenizer_file" in vocabulary else {}

    @classmethod
    def has_vocabulary(cls, path_or_id: str | os.PathLike, hub: dict[str, Any]) -> bool:
        """Whether a directory or repository has a vocabulary of this class, or a tokenizer.json with its model."""
        path = resolve_file(path_or_id, TOKENIZER_FILE, hub, required=False)
        return super().has_vocabulary(path_or_id, hub) if path is None else model_in(path) == cls.MODEL

    def parts(self) -> dict[str, Any]:
        """The result of `parts_of` for the tokenizer.json of this tokenizer."""
        self._library.post_processor = self._post_processor()
        return _parts(self._library)

    def save_vocabulary(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary, without added tokens, into a directory and return the paths."""
        directory = target_file(save_directory, filename_prefix, "the vocabulary").parent
        with tempfile.TemporaryDirectory() as temporary:
            names = [Path(path).name for path in self._library.model.save(temporary, filename_prefix)]
            for name in names:
                write_file(directory / name, (Path(temporary) / name).read_bytes())
        return tuple(str(directory / name) for name in names)

    def _save_files(self, save_directory: str | os.PathLike, filename_prefix: str | None) -> list[str]:
        self._library.post_processor = self._post_processor()
        content = self._library.to_str(pretty=True).encode()
        path = target_file(save_directory, filename_prefix, TOKENIZER_FILE)
        write_file(path, content)
        return [str(path)]


def _read(path: str | os.PathLike) -> dict[str, Any]:
    try:
        return read_json(Path(path))
    except FileNotFoundError:
        raise CheckpointError(f"no {TOKENIZER_FILE} at {path}") from None


def _added_in(saved: dict[str, Any]) -> dict[int, AddedToken]:
    """Id -> token of the added tokens in the content of a tokenizer.json."""
    return read_added_tokens({token["id"]: token for token in saved.get("added_tokens", ())})


def model_in(path: Path) -> str | None:
    """Type of the model in a tokenizer.json; None where the file has none."""
    model = _read(path).get("model")
    return model.get("type") if isinstance(model, dict) else None


def parts_of(path: Path) -> dict[str, Any]:
    """The normalizer, pre-tokenizer, post-processor, decoder and model options of a tokenizer.json."""
    try:
        return _parts(tokenizers.Tokenizer.from_file(str(path)))
    except Exception as error:
        raise CheckpointError(f"{path} is no usable tokenizer: {error}") from error


def _parts(library: tokenizers.Tokenizer) -> dict[str, Any]:
    saved = json.loads(library.to_str())
    parts = {name: saved[name] for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    return parts | {"model": {key: value for key, value in saved["model"].items() if key not in ("vocab", "merges")}}
