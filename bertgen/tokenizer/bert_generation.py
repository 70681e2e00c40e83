"""Text to ids and back: sentencepiece through its batch calls, with the names and results of transformers.

`BertGenerationTokenizer.encode_batch` and `batch_decode` are the fast paths; everything else is built on them.
Four results of transformers 5 are mended and not copied; each has a comment: "Unlike transformers".
"""

from __future__ import annotations

import inspect
import operator
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import sentencepiece

from ..config import read_json, write_json
from ..errors import CheckpointError, ConfigError, InputError, UnsupportedError
from ..hub import resolve_file
from .encoding import (
    PADDINGS,
    SIDES,
    TRUNCATIONS,
    BatchEncoding,
    Plan,
    as_encoding,
    checked_choice,
    checked_positive,
    cleaned_up,
    pairs_of,
    tensor_kind,
    to_lists,
    truncated,
)
from .tokens import AddedToken, read_added_tokens

VOCAB_FILE = "spiece.model"


CONFIG_FILE = "tokenizer_config.json"


ADDED_TOKENS_FILE = "added_tokens.json"


SPECIAL_TOKENS_FILE = "special_tokens_map.json"  # written by transformers 4, not by 5


SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


NO_LIMIT = int(1e30)  # what transformers writes as model_max_length where there is none


_LIMITED = int(1e20)


_SP_OPTIONS = frozenset("enable_sampling nbest_size alpha add_bos add_eos reverse emit_unk_piece num_threads".split())


# Keys of tokenizer_config.json that change nothing here. A path in the file is never opened.
_INERT_KEYS = frozenset(
    "add_bos_token add_eos_token auto_map backend chat_template files_loaded init_inputs is_local local_files_only "
    "name_or_path processor_class special_tokens_map_file tokenizer_class tokenizer_file transformers_version use_fast "
    "verbose vocab_file".split()
)


_OLD_KEYS = {"additional_special_tokens": "extra_special_tokens", "max_len": "model_max_length"}


# Made on first use and again after tokens were added.
_TABLES = ("_pattern", "_token_of", "_byte_ids", "_text_of", "_text_of_ordinary", "_spaced_ids")


# Under this many texts sentencepiece's batch call costs more than it saves, and so does another thread for less text:
# it starts its threads anew in every call.
_SMALL_BATCH = 64


_CHARACTERS_PER_THREAD = 16384


class _SpecialToken:
    """Attribute `<name>_token` or `<name>_token_id`; None where the tokenizer has no such token."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.token = name.removesuffix("_id")
        self.is_id = name.endswith("_id")

    def __get__(self, tokenizer: BertGenerationTokenizer | None, owner: type) -> Any:
        if tokenizer is None:
            return self
        token = tokenizer._special[self.token]
        return tokenizer.convert_tokens_to_ids(token) if self.is_id and token is not None else token

    def __set__(self, tokenizer: BertGenerationTokenizer, value: Any) -> None:
        if value is not None and self.is_id:
            value = tokenizer.convert_ids_to_tokens(value)
        if value is not None and tokenizer._id_of(AddedToken.of(value).content) is None:
            # Unlike transformers, where such a token silently gets the id of the unknown token.
            raise InputError(f"{self.token} {value!r} is not in the vocabulary; add_special_tokens adds it")
        tokenizer._set_special(self.token, value)


class BertGenerationTokenizer:
    """Sentencepiece tokenizer of the BertGeneration models. Adds no special tokens to a text, ever.

    A special or added token that stands in a text becomes its id; the text between such tokens is encoded piecewise.

    Args:
        vocab_file: a sentencepiece model (`spiece.model`).
        bos_token, eos_token, unk_token, pad_token, sep_token, cls_token, mask_token: special tokens. Those that are no
            sentencepiece pieces get ids behind the last piece. None means there is none.
        sp_model_kwargs: `enable_sampling`, `nbest_size`, `alpha` (subword regularisation, Kudo 2018), `num_threads`
            and other encoding options of sentencepiece's processor.
        extra_special_tokens: more tokens that `skip_special_tokens` drops.
        added_tokens_decoder: id -> token, as saved files hold it.
        model_max_length: tokens that truncation and padding to "max_length" go to where no `max_length` is given.
        padding_side, truncation_side: "right" or "left".
        clean_up_tokenization_spaces: take spaces before punctuation out of decoded English text.
        split_special_tokens: treat special tokens inside a text as any other text.
        model_input_names: what a call returns by default.

    Raises:
        CheckpointError: `vocab_file` is missing or no sentencepiece model.
        ConfigError: an option is unknown or has a bad value.
    """

    bos_token, bos_token_id = _SpecialToken(), _SpecialToken()
    eos_token, eos_token_id = _SpecialToken(), _SpecialToken()
    unk_token, unk_token_id = _SpecialToken(), _SpecialToken()
    sep_token, sep_token_id = _SpecialToken(), _SpecialToken()
    pad_token, pad_token_id = _SpecialToken(), _SpecialToken()
    cls_token, cls_token_id = _SpecialToken(), _SpecialToken()
    mask_token, mask_token_id = _SpecialToken(), _SpecialToken()

    def __init__(
        self,
        vocab_file: str | os.PathLike,
        bos_token: str | AddedToken | None = "<s>",
        eos_token: str | AddedToken | None = "</s>",
        unk_token: str | AddedToken | None = "<unk>",
        pad_token: str | AddedToken | None = "<pad>",
        sep_token: str | AddedToken | None = "<::::>",
        sp_model_kwargs: dict[str, Any] | None = None,
        *,
        cls_token: str | AddedToken | None = None,
        mask_token: str | AddedToken | None = None,
        extra_special_tokens: Sequence[str | AddedToken] | None = None,
        added_tokens_decoder: Mapping[Any, Any] | None = None,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        clean_up_tokenization_spaces: bool = False,
        split_special_tokens: bool = False,
        model_input_names: Sequence[str] = ("input_ids", "attention_mask"),
        legacy: bool = True,
        **unknown: Any,
    ):
        if unknown:
            raise ConfigError(f"BertGenerationTokenizer has no option {', '.join(map(repr, sorted(unknown)))}")
        if not legacy:
            raise UnsupportedError("legacy=False (no space before the first word) is not supported")
        self.model_max_length = (
            NO_LIMIT if model_max_length is None else checked_positive("model_max_length", model_max_length)
        )
        self.padding_side = checked_choice("padding_side", padding_side, SIDES)
        self.truncation_side = checked_choice("truncation_side", truncation_side, SIDES)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.split_special_tokens = split_special_tokens
        self.model_input_names = list(model_input_names)

        self.sp_model_kwargs = dict(sp_model_kwargs or {})
        if not self.sp_model_kwargs.keys() <= _SP_OPTIONS:
            names = ", ".join(sorted(map(repr, self.sp_model_kwargs.keys() - _SP_OPTIONS)))
            raise ConfigError(f"sp_model_kwargs has no option {names}; it has {', '.join(sorted(_SP_OPTIONS))}")
        self.vocab_file = str(vocab_file)
        self._model_proto = _read_model(vocab_file)
        self._load_sentencepiece()

        self._added = read_added_tokens(added_tokens_decoder or {})
        self._ids = {token.content: index for index, token in self._added.items()}
        given = (bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token)
        tokens = [None if token is None else AddedToken.of(token).content for token in given]
        self._special: dict[str, str | None] = dict(zip(SPECIAL_NAMES, tokens, strict=True))
        if extra_special_tokens and isinstance(extra_special_tokens, (Mapping, str)):
            raise UnsupportedError(f"extra_special_tokens must be a list of tokens, got {extra_special_tokens!r}")
        self._extra = [AddedToken.of(token).content for token in extra_special_tokens or ()]
        self.add_tokens(self.all_special_tokens, special_tokens=True)

    def _load_sentencepiece(self) -> None:
        try:
            self._sp = sentencepiece.SentencePieceProcessor(**self.sp_model_kwargs)
            self._sp.LoadFromSerializedProto(self._model_proto)
            # All of them now: a corrupt model may hold pieces that are no Unicode.
            self._pieces = [self._sp.id_to_piece(index) for index in range(self._sp.get_piece_size())]
        except Exception as error:  # sentencepiece raises RuntimeError, or what its binding makes of bad bytes
            raise CheckpointError(f"{self.vocab_file} is no usable sentencepiece model: {error}") from error
        try:
            self._sp.encode(["a"])
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"sentencepiece rejects sp_model_kwargs {self.sp_model_kwargs}: {error}") from error

    # -- vocabulary ---------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of sentencepiece pieces, without added tokens."""
        return len(self._pieces)

    def __len__(self) -> int:
        return self.vocab_size + sum(index >= self.vocab_size for index in self._added)

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return {token: index for index, token in self._token_of.items()} | self._ids

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id -> token of the added and the special tokens, by id."""
        return dict(sorted(self._added.items()))

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Name -> token of the special tokens that there are."""
        return {name: token for name, token in self._special.items() if token is not None}

    @property
    def extra_special_tokens(self) -> list[str]:
        """Special tokens without a name; `add_special_tokens` sets them."""
        return list(self._extra)

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, extra ones last, each once."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Make strings single tokens; return how many got a new id (the model's embedding must have rows for them).

        Ids are given from `len(self)` on; a string that is a sentencepiece piece keeps the piece's id.
        """
        if isinstance(new_tokens, (str, AddedToken)) or not isinstance(new_tokens, Sequence):
            new_tokens = [new_tokens]
        size = before = len(self)
        known_special = set(self.all_special_tokens)
        for given in new_tokens:
            if isinstance(given, str) and (given == "" or given in self._ids):
                continue
            token = AddedToken.of(given, special=special_tokens or given in known_special)
            if special_tokens:
                token = replace(token, special=True)
            # Unlike transformers 5, which gives an added token that becomes special a second id.
            index = self._id_of(token.content)
            if index is None:
                while size in self._added:  # the ids of a saved file may have holes
                    size += 1
                index, size = size, size + 1
            self._added[index] = token
            self._ids[token.content] = index
            if token.special and token.content not in known_special:
                known_special.add(token.content)
                self._extra.append(token.content)
        self._forget_tables()
        return len(self) - before

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, str | AddedToken | Sequence[str | AddedToken]],
        replace_extra_special_tokens: bool = True,
    ) -> int:
        """Set special tokens by name ("pad_token", "extra_special_tokens", ...); return how many got a new id."""
        before = len(self)
        for name, value in special_tokens_dict.items():
            name = _OLD_KEYS.get(name, name)
            if name == "extra_special_tokens" and isinstance(value, (list, tuple)):
                tokens = [AddedToken.of(token, special=True) for token in value]
                kept = [] if replace_extra_special_tokens and tokens else self._extra
                self._extra = list(dict.fromkeys([*kept, *(token.content for token in tokens)]))
                self.add_tokens(tokens, special_tokens=True)
            elif name in SPECIAL_NAMES:
                self._set_special(name, value)
            else:
                known = ", ".join((*SPECIAL_NAMES, "extra_special_tokens (a list)"))
                raise ConfigError(f"{name}={value!r} is no special token; there are {known}")
        return len(self) - before

    def _set_special(self, name: str, value: Any) -> None:
        token = None if value is None else AddedToken.of(value, special=True)
        self._special[name] = None if token is None else token.content
        self.add_tokens([] if token is None else [token], special_tokens=True)

    def _id_of(self, token: str) -> int | None:
        index = self._ids.get(token)
        if index is None and self._pieces[piece := self._sp.piece_to_id(token)] == token:
            index = piece
        return index

    def _forget_tables(self) -> None:
        for name in _TABLES:
            self.__dict__.pop(name, None)

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        """Finds the leftmost longest special or added token; None where there is none."""
        if not self._ids:
            return None
        # Unlike transformers' trie, which leaves a text unsplit where one added token begins inside a near miss of
        # another (tokens "abx" and "b", text "abcx").
        return re.compile(f"({'|'.join(map(re.escape, sorted(self._ids, key=len, reverse=True)))})")

    # -- text to ids --------------------------------------------------------------------------------------------------

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each text: the fast path, without padding, truncation or masks.

        Raises:
            InputError: a text is no string or no Unicode (its index and what is wrong).
        """
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
            raise InputError(f"expected a list of texts, got {type(texts).__name__}")
        texts = list(texts)
        try:
            # One search over all texts: hardly any corpus holds a special token.
            everything = "\n".join(texts)
            if self.split_special_tokens or self._pattern is None or self._pattern.search(everything) is None:
                return self._encode_segments(texts)
            parts = [self._split(text) for text in texts]
            segments = iter(self._encode_segments([p for row in parts for p in row if p not in self._ids]))
            rows: list[list[int]] = []
            for row in parts:
                rows.append([])
                for part in row:
                    rows[-1] += (self._ids[part],) if part in self._ids else next(segments)
            return rows
        except (RuntimeError, TypeError, UnicodeError) as error:
            self._blame(texts, error)

    def _encode_segments(self, texts: list[str]) -> list[list[int]]:
        """Encode texts as they are, special tokens in them included."""
        if self.sp_model_kwargs.get("enable_sampling"):
            return [self.convert_tokens_to_ids(pieces) for pieces in self._encode(texts, str)]
        rows = self._encode(texts, int)
        # Characters that the model does not know come as one piece with its normalised text, which transformers looks
        # up again: it may name an added token (full-width forms become ASCII).
        unknown = self._sp.unk_id()
        holes = [index for index, row in enumerate(rows) if unknown in row]
        for index, pieces in zip(holes, self._encode([texts[index] for index in holes], str), strict=True):
            rows[index] = self.convert_tokens_to_ids(pieces)
        return rows

    def _encode(self, texts: list[str], kind: type) -> list[list[Any]]:
        if len(texts) < _SMALL_BATCH:
            return [self._sp.encode(text, out_type=kind) for text in texts]
        threads = min(os.cpu_count() or 1, 1 + sum(map(len, texts)) // _CHARACTERS_PER_THREAD)
        return self._sp.encode(texts, out_type=kind, num_threads=self.sp_model_kwargs.get("num_threads", threads))

    def _split(self, text: str) -> list[str]:
        """Cut a text at its special and added tokens; no part is empty."""
        if self.split_special_tokens or self._pattern is None:
            return [text]
        parts = [part for part in self._pattern.split(text) if part]
        for i, part in enumerate(parts):
            token = self._added[self._ids[part]] if part in self._ids else None
            if token is None or not (token.lstrip or token.rstrip or token.single_word):
                continue
            left, right = parts[i - 1] if i else "", parts[i + 1] if i + 1 < len(parts) else ""
            if token.rstrip and right:
                parts[i + 1] = right.lstrip()
            if token.lstrip and left:
                parts[i - 1] = left.rstrip()
            if token.single_word and left and left[-1] != " ":
                parts[i - 1 : i + 1] = [parts[i - 1] + part, ""]
            elif token.single_word and right and right[0] != " ":
                parts[i : i + 2] = ["", part + parts[i + 1]]
        return [part for part in parts if part]

    def _blame(self, texts: list[Any], error: Exception) -> NoReturn:
        """Raise the error that names the text sentencepiece could not take."""
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {index} must be a str, got {type(text).__name__}") from None
            try:
                text.encode()
            except UnicodeEncodeError as bad:
                what = f"lone surrogate U+{ord(text[bad.start]):04X} at position {bad.start}"
                raise InputError(f"text {index} is no valid Unicode: {what}") from None
        raise CheckpointError(f"{self.vocab_file} cannot encode: {error}") from error

    def tokenize(self, text: str) -> list[str]:
        """Cut a text into tokens; what the vocabulary lacks comes as it is."""
        if not isinstance(text, str):
            self._blame([text], TypeError())
        tokens: list[str] = []
        try:
            for part in self._split(text):
                tokens += [part] if part in self._ids else self._sp.encode(part, out_type=str)
        except (RuntimeError, UnicodeError) as error:
            self._blame([text], error)
        return tokens

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Id of a token, or a list of ids; a token that is not in the vocabulary has sentencepiece's unknown id."""
        if isinstance(tokens, str):
            index = self._ids.get(tokens)
            return self._sp.piece_to_id(tokens) if index is None else index
        if not isinstance(tokens, Iterable):
            raise InputError(f"expected a token or a list of tokens, got {type(tokens).__name__}")
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """`input_ids` of a call with the same arguments: a list of ids for one text."""
        return self(text, text_pair, **options)["input_ids"]

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
    ) -> BatchEncoding:
        """Encode one text or a list of texts.

        Args:
            text: a str, or a list of str or of pairs of str.
            text_pair: second text or texts, appended to the first.
            text_target: text or texts whose ids become `labels`.
            add_special_tokens: there are none to add; as in transformers, False makes all `token_type_ids` 0.
            padding: True or "longest", "max_length", or False.
            truncation: True or "longest_first", "only_first", "only_second", or False; None truncates where only
                `max_length` is given.
            max_length: limit in tokens; `model_max_length` where it is None.
            pad_to_multiple_of: padded lengths become multiples of it.
            padding_side: "right" or "left"; the tokenizer's where it is None.
            return_tensors: "pt" or "np" (int64, [texts, length]); lists where it is None.
            return_token_type_ids, return_attention_mask: more keys; by default `model_input_names`.

        Raises:
            InputError: a text is of another type (its index), the batch is empty, or rows of different lengths cannot
                form a tensor.
            ConfigError: an option has a bad value.
        """
        if text is None:
            text, text_target = text_target, None
        plan = self._plan(padding, truncation, max_length, pad_to_multiple_of)
        single = isinstance(text, str)
        firsts, seconds = pairs_of(text, text_pair)
        rows = self.encode_batch(firsts)
        pairs = iter(self.encode_batch([second for second in seconds if second is not None]))
        second_rows = [None if second is None else next(pairs) for second in seconds]
        if plan.limit is not None and plan.truncation != "do_not_truncate":
            for index, row in enumerate(rows):
                if len(row) + len(second_rows[index] or ()) > plan.limit:
                    cut = truncated(row, second_rows[index], plan.limit, plan.truncation, self.truncation_side)
                    rows[index], second_rows[index] = cut
        columns = {"input_ids": rows}
        if any(second is not None for second in seconds):
            columns["input_ids"] = [row + (second or []) for row, second in zip(rows, second_rows, strict=True)]
        if self._returns("token_type_ids", return_token_type_ids):
            both = zip(rows, second_rows, strict=True)
            kind = int(add_special_tokens)
            columns["token_type_ids"] = [[0] * len(row) + [kind] * len(second or ()) for row, second in both]
        if self._returns("attention_mask", return_attention_mask):
            columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
        # As transformers: one empty text stays empty, whatever the padding.
        if not (single and columns["input_ids"] == [[]]):
            self._pad_columns(columns, plan, padding_side)
        encoding = as_encoding(columns, return_tensors, single and return_tensors is None)
        if text_target is not None:
            encoding["labels"] = self.encode(
                text_target,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_tensors=return_tensors,
            )
        return encoding

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Pad ids that were encoded before: one encoding, a batch of them, or a list of encodings (a collator's input).

        Arguments as for a call. Tensors and arrays come back as such. Keys other than `input_ids`, `attention_mask`,
        `token_type_ids` and `special_tokens_mask` stay as they are.

        Raises:
            InputError: there are no `input_ids`, or keys differ between the encodings.
            ConfigError: an option has a bad value.
        """
        if isinstance(encoded_inputs, (list, tuple)):
            keys = list(encoded_inputs[0]) if encoded_inputs and isinstance(encoded_inputs[0], Mapping) else []
            for index, one in enumerate(encoded_inputs):
                if not isinstance(one, Mapping) or not one.keys() >= set(keys):
                    raise InputError(f"encoding {index} must have the keys {', '.join(keys)}")
            encoded_inputs = {key: [one[key] for one in encoded_inputs] for key in keys}
        if not isinstance(encoded_inputs, Mapping) or "input_ids" not in encoded_inputs:
            raise InputError("expected an encoding, or a list of them, with input_ids")
        plan = self._plan(padding, False, max_length, pad_to_multiple_of)
        return_tensors = return_tensors or tensor_kind(encoded_inputs["input_ids"])
        columns = {key: to_lists(value) for key, value in encoded_inputs.items()}
        if not columns["input_ids"]:
            return BatchEncoding(encoded_inputs, **({"attention_mask": []} if return_attention_mask else {}))
        single = not isinstance(columns["input_ids"][0], (list, tuple))
        if single:
            columns = {key: [value] for key, value in columns.items()}
        count = len(columns["input_ids"])
        for key, rows in columns.items():
            if len(rows) != count:
                raise InputError(f"{key} has {len(rows)} rows, input_ids {count}")
            columns[key] = [list(row) if isinstance(row, tuple) else row for row in rows]
        if self._returns("attention_mask", return_attention_mask) and "attention_mask" not in columns:
            columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
        self._pad_columns(columns, plan, padding_side)
        if single:
            columns = {key: rows[0] for key, rows in columns.items()}
        return as_encoding(columns, return_tensors, False)

    def _returns(self, name: str, asked: bool | None) -> bool:
        return name in self.model_input_names if asked is None else asked

    def _plan(self, padding: Any, truncation: Any, max_length: Any, multiple: Any) -> Plan:
        """Check the options that decide on lengths and resolve their defaults."""
        if truncation is None:
            truncation = max_length is not None and padding is False
        if isinstance(truncation, bool):
            truncation = "longest_first" if truncation else "do_not_truncate"
        if isinstance(padding, bool):
            padding = "longest" if padding else "do_not_pad"
        truncation = checked_choice("truncation", truncation, TRUNCATIONS)
        padding = checked_choice("padding", padding, PADDINGS)
        limit = None if max_length is None else checked_positive("max_length", max_length)
        if limit is None and self.model_max_length < _LIMITED:
            limit = self.model_max_length
        if multiple is not None:
            checked_positive("pad_to_multiple_of", multiple)
        if padding != "do_not_pad" and self.pad_token is None:
            raise ConfigError("padding needs a pad_token; this tokenizer has none")
        if limit is None and truncation != "do_not_truncate":
            warnings.warn("truncation without max_length: this tokenizer has no model_max_length", stacklevel=3)
        if limit and multiple and limit % multiple and truncation != "do_not_truncate" and padding != "do_not_pad":
            raise ConfigError(f"max_length {limit} is not a multiple of pad_to_multiple_of {multiple}")
        return Plan(padding, truncation, limit, multiple)

    def _pad_columns(self, columns: dict[str, list[list[int]]], plan: Plan, side: str | None) -> None:
        side = checked_choice("padding_side", self.padding_side if side is None else side, SIDES)
        rows = columns["input_ids"]
        length = max(map(len, rows)) if plan.padding == "longest" else plan.limit
        if plan.padding == "do_not_pad" or length is None:
            return
        length += -length % (plan.multiple or 1)
        values = {"input_ids": self.pad_token_id, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
        missing = [length - len(row) for row in rows]
        for key in columns.keys() & values.keys():
            value, both = values[key], zip(columns[key], missing, strict=True)
            columns[key] = [row + [value] * n if side == "right" else [value] * n + row for row, n in both]

    # -- ids to text --------------------------------------------------------------------------------------------------

    @cached_property
    def _token_of(self) -> dict[int, str]:
        return dict(enumerate(self._pieces)) | {index: token.content for index, token in self._added.items()}

    @cached_property
    def _byte_ids(self) -> list[int]:
        return [index for index in range(self.vocab_size) if self._sp.is_byte(index)]

    @cached_property
    def _text_of(self) -> dict[int, str]:
        """Text of each id; joined and stripped these are the decoded text."""
        texts = {index: token.replace("▁", " ") for index, token in self._token_of.items()}
        # Unlike transformers, which writes "<0xE4>": a byte piece stands for its byte until all bytes are there.
        for index in self._byte_ids:
            texts[index] = bytes.fromhex(self._pieces[index][3:5]).decode("utf-8", "surrogateescape")
        return texts

    @cached_property
    def _text_of_ordinary(self) -> dict[int, str]:
        return self._text_of | dict.fromkeys(self.all_special_ids, "")

    @cached_property
    def _spaced_ids(self) -> frozenset[int]:
        special = self.all_special_ids
        return frozenset(
            index
            for index, token in self._added.items()
            if index >= self.vocab_size and index not in special and not token.special
        )

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """Text of each row of ids.

        Args:
            sequences: lists of ids, or a tensor or array [rows, length].
            skip_special_tokens: leave the special tokens out.
            clean_up_tokenization_spaces: take spaces before punctuation out; the tokenizer's setting where it is None.

        Raises:
            InputError: an id is no integer or outside the vocabulary (the id and the limit).
        """
        rows = to_lists(sequences)
        if not isinstance(rows, (list, tuple)):
            raise InputError(f"expected rows of ids, got {type(sequences).__name__}")
        if rows and not isinstance(rows[0], (list, tuple)):
            rows = [rows]
        texts = self._text_of_ordinary if skip_special_tokens else self._text_of
        decoded = [self._decode(row, texts) for row in rows]
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return [cleaned_up(text) for text in decoded] if clean else decoded

    decode_batch = batch_decode

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """Text of one row of ids (or of one id), or a list of texts for rows of ids; arguments as `batch_decode`."""
        ids = to_lists(token_ids)
        is_batch = isinstance(ids, (list, tuple)) and len(ids) > 0 and isinstance(ids[0], (list, tuple))
        rows = ids if is_batch else [ids if isinstance(ids, (list, tuple)) else [ids]]
        decoded = self.batch_decode(rows, skip_special_tokens, clean_up_tokenization_spaces)
        return decoded if is_batch else decoded[0]

    def _decode(self, ids: Sequence[int], texts: dict[int, str]) -> str:
        try:
            text = "".join(map(texts.__getitem__, ids))
        except (KeyError, TypeError):
            ids = self._checked_ids(ids)
            text = "".join(map(texts.__getitem__, ids))
        if self._spaced_ids and not self._spaced_ids.isdisjoint(ids):
            # Unlike transformers 5, which glues an ordinary added token to the word before it. Encoding drops the space
            # between them, and a piece brings its own.
            text = ""
            for index in ids:
                glued = index in self._spaced_ids and not texts[index].startswith(" ") and not text.endswith(" ")
                text += " " + texts[index] if glued else texts[index]
        if self._byte_ids and not text.isascii():
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return text.strip()

    def _checked_ids(self, ids: Any) -> list[int]:
        checked = []
        for position, given in enumerate(ids if isinstance(ids, Iterable) else [ids]):
            try:
                index = operator.index(given)
            except TypeError:
                raise InputError(f"id {given!r} at position {position} is no integer") from None
            if index not in self._token_of:
                raise InputError(f"id {index} at position {position} is outside the vocabulary of {len(self)} tokens")
            checked.append(index)
        return checked

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Token of an id, or a list of tokens."""
        ids = to_lists(ids)
        if not isinstance(ids, (list, tuple)):
            return self._token_of[self._checked_ids([ids])[0]]
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._token_of[index] for index in self._checked_ids(ids) if index not in skipped]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """Join tokens to a text."""
        return "".join(tokens).replace("▁", " ").strip()

    # -- files --------------------------------------------------------------------------------------------------------

    def save_vocabulary(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str]:
        """Write the sentencepiece model into a directory and return its path (in a tuple, as transformers)."""
        path = _target(save_directory, filename_prefix, VOCAB_FILE)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(self._model_proto)
        os.replace(temporary, path)
        return (str(path),)

    def save_pretrained(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write everything `from_pretrained` needs, here and in transformers; return the paths.

        Raises:
            CheckpointError: `save_directory` is a file.
        """
        if Path(save_directory).exists() and not Path(save_directory).is_dir():
            raise CheckpointError(f"{save_directory} is a file; a tokenizer is saved into a directory")
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        saved = list(self.save_vocabulary(save_directory, filename_prefix))
        behind = {token.content: i for i, token in self.added_tokens_decoder.items() if i >= self.vocab_size}
        if behind:
            path = _target(save_directory, filename_prefix, ADDED_TOKENS_FILE)
            write_json(path, behind)
            saved.append(str(path))
        config: dict[str, Any] = {
            **self._special,
            "added_tokens_decoder": {str(i): asdict(token) for i, token in self.added_tokens_decoder.items()},
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "model_input_names": self.model_input_names,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "sp_model_kwargs": self.sp_model_kwargs,
            "split_special_tokens": self.split_special_tokens,
            "tokenizer_class": type(self).__name__,
            "truncation_side": self.truncation_side,
        }
        if self._extra:
            config["extra_special_tokens"] = self._extra
        path = _target(save_directory, filename_prefix, CONFIG_FILE)
        write_json(path, config)
        return (str(path), *saved)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> BertGenerationTokenizer:
        """Load a tokenizer that transformers 4 or 5 or `save_pretrained` wrote, or a bare `spiece.model`.

        Args:
            path_or_id: a directory, a hub id, or the path of a sentencepiece model.
            revision, cache_dir, token, local_files_only: as in `huggingface_hub.hf_hub_download`.
            overrides: options of the constructor; they win over the saved ones.

        Raises:
            CheckpointError: a file is missing or corrupt (which one, and what was looked for).
            ConfigError: one of `overrides` is unknown or has a bad value.
        """
        if Path(path_or_id).is_file():
            return cls(path_or_id, **overrides)
        hub: dict[str, Any] = dict(
            revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
        )
        vocab_file = str(resolve_file(path_or_id, VOCAB_FILE, **hub))
        saved = read_optional(path_or_id, CONFIG_FILE, hub)
        if "added_tokens_decoder" not in saved:
            saved |= read_optional(path_or_id, SPECIAL_TOKENS_FILE, hub)
        for old, new in _OLD_KEYS.items():
            if (value := saved.pop(old, None)) and not saved.get(new):
                saved[new] = value
        known = inspect.signature(cls).parameters.keys() | _INERT_KEYS
        # A further "..._token" would get an id in transformers, so the constructor refuses it.
        unknown = sorted(key for key in saved.keys() - known if not key.endswith("_token"))
        if unknown:
            warnings.warn(f"{path_or_id}: {CONFIG_FILE} has unknown keys {', '.join(unknown)}", stacklevel=2)
        ignored = _INERT_KEYS.union(unknown)
        options = {key: value for key, value in saved.items() if key not in ignored} | overrides
        try:
            if "added_tokens_decoder" not in saved:
                special = {AddedToken.of(options[name]).content for name in SPECIAL_NAMES if options.get(name)}
                special.update(AddedToken.of(token).content for token in options.get("extra_special_tokens") or ())
                options["added_tokens_decoder"] = {
                    index: AddedToken.of(content, special=content in special)
                    for content, index in read_optional(path_or_id, ADDED_TOKENS_FILE, hub).items()
                }
            return cls(vocab_file, **options)
        except (ConfigError, TypeError) as error:
            kind = ConfigError if overrides else CheckpointError
            raise kind(f"{path_or_id}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_sp", "_pieces", *_TABLES)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load_sentencepiece()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_file!r}, {len(self)} tokens, special: {self.special_tokens_map})"


def _read_model(vocab_file: Any) -> bytes:
    if not isinstance(vocab_file, (str, os.PathLike)):
        raise ConfigError(f"vocab_file must be the path of a sentencepiece model, got {vocab_file!r}")
    try:
        return Path(vocab_file).read_bytes()
    except OSError as error:
        raise CheckpointError(f"no sentencepiece model ({VOCAB_FILE}) at {vocab_file}: {error.strerror}") from error


def read_optional(path_or_id: str | os.PathLike, filename: str, hub: dict[str, Any]) -> dict[str, Any]:
    """A JSON file of a tokenizer; empty where there is none."""
    path = resolve_file(path_or_id, filename, required=False, **hub)
    return {} if path is None else read_json(path)


def _target(directory: str | os.PathLike, prefix: str | None, filename: str) -> Path:
    if not Path(directory).is_dir():
        raise CheckpointError(f"{directory} is no directory; {filename} is written into one")
    return Path(directory) / (f"{prefix}-{filename}" if prefix else filename)
