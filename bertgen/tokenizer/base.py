"""Tokenizer: base of the tokenizers.

A class of tokenizer adds its vocabulary, how text becomes ids and ids text, and the special tokens around a text.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from ..arguments import path_aliases
from ..config import write_json
from ..config.validators import check_choice, check_flag, check_size
from ..errors import CheckpointError, ConfigError, InputError, UnsupportedError, quoted
from ..hub import as_path, split_hub_options
from .alignment import Alignment, TokenizedText, align_rows
from .columns import ReturnedColumns, build_columns, collate, listed_columns
from .encoding import TENSORS, BatchEncoding, as_encoding, tensor_kind, to_lists
from .files import (
    ADDED_TOKENS_FILE,
    CONFIG_FILE,
    find_vocabulary,
    has_one_of,
    read_optional,
    saved_options,
    target_file,
)
from .lengths import (
    NO_LIMIT,
    SIDES,
    TRUNCATIONS,
    LengthOptions,
    SpecialTokens,
    pad_columns,
    resolve_lengths,
    truncate_pair,
    truncate_rows,
)
from .spaces import clean_up_spaces
from .texts import texts_and_pairs, words_and_pairs
from .tokens import AddedToken
from .vocabulary import SPECIAL_NAMES, Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Self

# Arguments of transformers' `from_pretrained` for tokenizers that have no effect: each class has one implementation.
IGNORED_ARGUMENTS = frozenset("use_fast from_slow backend tokenizer_type verbose name_or_path".split())


class Tokenizer(Vocabulary):
    """Base of the tokenizers, with the options that all of them have.

    Args:
        special: name -> token of `SPECIAL_NAMES`; None or a missing name for no such token.
        extra_special_tokens: more tokens that `skip_special_tokens` drops.
        model_max_length: length in tokens for truncation and padding to "max_length" without `max_length`.
        padding_side, truncation_side: "right" or "left".
        clean_up_tokenization_spaces: remove spaces before punctuation from decoded English text.
        split_special_tokens: treat special tokens inside a text like any other text.
        model_input_names: columns that a call returns by default.

    Raises:
        ConfigError: an option is unknown or has a bad value.
    """

    # Files of the vocabulary, in order of preference: option of the constructor -> name of the file.
    VOCABULARY_FILES: ClassVar[tuple[dict[str, str], ...]]
    MODEL_INPUT_NAMES: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    PADS_ONE_EMPTY_TEXT: ClassVar[bool] = (
        True  # whether a call with one text without tokens pads; lists are always padded
    )
    SPECIAL_TOKENS_ATTRIBUTES: ClassVar[list[str]] = list(SPECIAL_NAMES)
    name_or_path: str = ""  # source of the tokenizer
    is_fast: ClassVar[bool] = False  # whether the class of transformers uses the tokenizers library
    CLEANS_UP: ClassVar[bool] = True  # whether clean_up_tokenization_spaces has an effect

    def __init__(
        self,
        special: Mapping[str, str | AddedToken | None],
        *,
        extra_special_tokens: Sequence[str | AddedToken] | None = None,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        clean_up_tokenization_spaces: bool = False,
        split_special_tokens: bool = False,
        model_input_names: Sequence[str] | None = None,
        **unknown: Any,
    ):
        if unknown:
            raise ConfigError(f"{type(self).__name__} has no option {', '.join(map(repr, sorted(unknown)))}")
        super().__init__(special, extra_special_tokens)
        self.model_max_length = NO_LIMIT if model_max_length is None else model_max_length
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.clean_up_tokenization_spaces = check_flag(clean_up_tokenization_spaces, "clean_up_tokenization_spaces")
        self.split_special_tokens = check_flag(split_special_tokens, "split_special_tokens")
        names = self.MODEL_INPUT_NAMES if model_input_names is None else model_input_names
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"model_input_names must be a list of names, got {quoted(names)}")
        self.model_input_names = list(names)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("padding_side", "truncation_side"):
            value = check_choice(SIDES, value, name)
        elif name == "model_max_length":
            value = check_size(value, name)
        super().__setattr__(name, value)

    # -- for subclasses -----------------------------------------------------------------------------------------------

    @property
    def vocab_files_names(self) -> dict[str, str]:
        """Option of the constructor -> name of the file, for each file of a vocabulary."""
        return {option: name for names in self.VOCABULARY_FILES for option, name in names.items()}

    @staticmethod
    def clean_up_tokenization(text: str) -> str:
        """Remove the spaces before English punctuation and contractions."""
        return clean_up_spaces(text)

    @property
    def max_len_single_sentence(self) -> int:
        """`model_max_length` minus the special tokens of a text."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """`model_max_length` minus the special tokens of a pair."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    @property
    def pad_token_type_id(self) -> int:
        """Token type of padding."""
        return 0

    def frame(self, pair: bool) -> tuple[list[int], list[int], list[int]]:
        """Ids of the special tokens before a text, between the two of a pair (else empty), and after."""
        raise NotImplementedError

    def _second_type_id(self, add_special_tokens: bool) -> int:
        """`token_type_ids` of the second text of a pair."""
        raise NotImplementedError

    def _truncate_pair(
        self, index: int, row: list[int], second: list[int] | None, limit: int, strategy: str
    ) -> tuple[list[int], list[int] | None]:
        """Shorten the text of this index, and its second one, to `limit` tokens together."""
        raise NotImplementedError

    def _encode_rows(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts, without the special tokens around them."""
        raise NotImplementedError

    def _encode_words(self, texts: list[list[str]]) -> list[list[int]]:
        """As `_encode_rows`, for texts that are lists of words."""
        raise NotImplementedError

    def _align_texts(self, texts: list[Any], split: bool) -> list[TokenizedText]:
        """Ids of texts with their tokens, characters and words; with `split` texts are lists of words."""
        raise NotImplementedError

    def _decode_rows(self, rows: Sequence[Any], skip_special_tokens: bool) -> list[str]:
        """Text of rows of ids. InputError: an id is not in the vocabulary."""
        raise NotImplementedError

    def _tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """Join tokens to a text."""
        raise NotImplementedError

    def save_vocabulary(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary only into a directory; returns the paths."""
        raise NotImplementedError

    def _save_files(self, save_directory: str | os.PathLike, filename_prefix: str | None) -> list[str]:
        """Write the files that `from_pretrained` needs besides the options; returns the paths."""
        raise NotImplementedError

    def _class_options(self) -> dict[str, Any]:
        """Options of the constructor that only this class has, as in tokenizer_config.json."""
        raise NotImplementedError

    # -- text to ids --------------------------------------------------------------------------------------------------

    def encode_batch(self, texts: Iterable[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Ids of each text, without padding, truncation or masks. The fastest method.

        Args:
            texts: any number of str.
            add_special_tokens: add the special tokens of the class to each text.

        Raises:
            InputError: a text is no str or no valid Unicode (its index and the reason).
        """
        try:
            listed = None if isinstance(texts, (str, bytes, Mapping)) else list(texts)
        except TypeError:
            listed = None
        if listed is None:
            raise InputError(f"texts must be a list of texts, got {type(texts).__name__}")
        add_special_tokens = check_flag(add_special_tokens, "add_special_tokens")
        for index, text in enumerate(listed):
            if not isinstance(text, str):
                raise InputError(f"text {index} must be a str, got {type(text).__name__}")
        try:
            rows = self._encode_rows(listed)
        except Exception as error:  # the tokenizers library raises no subclass
            self._raise_encoding_error(listed, error)
        before, _, after = self.frame(False) if add_special_tokens else ([], [], [])
        return [[*before, *row, *after] for row in rows] if before or after else rows

    def _raise_encoding_error(self, texts: list[str], error: Exception, name: str | None = None) -> NoReturn:
        """Raise the error for texts that could not be encoded; it names the text that is no valid Unicode."""
        for index, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as invalid:
                reason = f"lone surrogate U+{ord(text[invalid.start]):04X} at position {invalid.start}"
                raise InputError(f"{name or f'text {index}'} is no valid Unicode: {reason}") from None
        raise CheckpointError(f"{self} cannot encode: {error}") from error

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """Split a text into tokens; text that is not in the vocabulary stays as it is, or becomes the unknown token.

        Args:
            pair: a second text; its tokens follow those of the first.
            add_special_tokens: add the special tokens of the class.
        """
        tokens = [self._tokens_of(text, "text"), [] if pair is None else self._tokens_of(pair, "pair")]
        if not check_flag(add_special_tokens, "add_special_tokens"):
            return [token for part in tokens for token in part]
        before, between, after = map(self.convert_ids_to_tokens, self.frame(pair is not None))
        return [*before, *tokens[0], *between, *tokens[1], *after]

    def _tokens_of(self, text: str, name: str) -> list[str]:
        if not isinstance(text, str):
            raise InputError(f"{name} must be a str, got {type(text).__name__}")
        try:
            return self._tokenize(text)
        except Exception as error:
            self._raise_encoding_error([text], error, name)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Number of special tokens of a text, or of a pair."""
        return sum(map(len, self.frame(pair)))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Ids of a text or a pair with the special tokens."""
        start, middle, end = self.frame(token_ids_1 is not None)
        return [*start, *token_ids_0, *middle, *(token_ids_1 or ()), *end]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`token_type_ids` of the ids that `build_inputs_with_special_tokens` returns."""
        start, middle, end = self.frame(token_ids_1 is not None)
        if token_ids_1 is None:
            return [0] * (len(start) + len(token_ids_0) + len(end))
        kind = self._second_type_id(True)
        return [0] * (len(start) + len(token_ids_0) + len(middle)) + [kind] * (len(token_ids_1) + len(end))

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for each special token, 0 for the others.

        Args:
            token_ids_0, token_ids_1: a text or a pair without special tokens.
            already_has_special_tokens: `token_ids_0` is a row with special tokens.

        Raises:
            InputError: a row with special tokens and a second text.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise InputError("already_has_special_tokens=True: token_ids_1 must be None, there is no second text")
            special = set(self.all_special_ids)
            return [int(index in special) for index in to_lists(token_ids_0)]
        start, middle, end = self.frame(token_ids_1 is not None)
        first, second = [0] * len(token_ids_0), [0] * len(token_ids_1 or ())
        return [*([1] * len(start)), *first, *([1] * len(middle)), *second, *([1] * len(end))]

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Ids and second ids without `num_tokens_to_remove` of their tokens, and the removed ones.

        `stride` kept tokens are returned with the removed ones. No removed ids are returned where both texts are cut
        ("longest_first").
        """
        strategy = check_choice(TRUNCATIONS, truncation_strategy, "truncation_strategy")
        if num_tokens_to_remove <= 0 or strategy == "do_not_truncate":
            return ids, pair_ids, []
        limit = len(ids) + len(pair_ids or ()) - num_tokens_to_remove
        row, second = truncate_pair(ids, pair_ids, limit, strategy, self.truncation_side)
        cut = ids if strategy == "only_first" or pair_ids is None else pair_ids
        if pair_ids is not None and strategy == "longest_first":
            return row, second, []
        window = min(len(cut), num_tokens_to_remove + stride)
        return row, second, cut[:window] if self.truncation_side == "left" else cut[len(cut) - window :]

    def prepare_for_model(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
    ) -> BatchEncoding:
        """As a call with one text (and a second one), from their ids."""
        lengths = self._resolve_lengths(padding, truncation, max_length, pad_to_multiple_of)
        columns = self._build_columns(
            [list(ids)], [None if pair_ids is None else list(pair_ids)], lengths, add_special_tokens, padding_side,
            return_token_type_ids, return_attention_mask, return_special_tokens_mask, return_length, True,
        )  # fmt: skip
        return as_encoding(columns, return_tensors, return_tensors is None)

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """A call, by the name it had in older versions of transformers."""
        return self(text, text_pair, **options)

    def batch_encode_plus(self, batch_text_or_text_pairs: Any, **options: Any) -> BatchEncoding:
        """A call with a list of texts or pairs, by the name it had in older versions of transformers."""
        return self(list(batch_text_or_text_pairs), **options)

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """`input_ids` of a call with the same arguments: a list of ids for one text."""
        return self(text, text_pair, **options)["input_ids"]

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        **unsupported: Any,
    ) -> BatchEncoding:
        """Encode one text or a list of texts.

        Args:
            text: a str, or a list of str or of pairs of str.
            text_pair: second text or texts.
            text_target, text_pair_target: text or texts; their ids become `labels`.
            is_split_into_words: a text is a list of words, a pair a tuple of two lists; words are encoded one by one.
            add_special_tokens: add the special tokens of the class to each text or pair.
            padding: True or "longest", "max_length", or False.
            truncation: True or "longest_first", "only_first", "only_second", or False; None truncates if the call has
                `max_length` and no `padding`.
            max_length: limit in tokens; None is `model_max_length`.
            pad_to_multiple_of: padded lengths are multiples of it.
            padding_side: "right" or "left"; None is the tokenizer's.
            return_tensors: "pt" or "np" (int64, [texts, length]); None returns lists.
            return_token_type_ids, return_attention_mask: more keys; by default those of `model_input_names`.
            return_special_tokens_mask: 1 for special tokens.
            return_offsets_mapping: `offset_mapping`, the characters of each token as (start, end), (0, 0) for special
                tokens. With bert-generation the space before a word belongs to the word.
            return_length: `length`, tokens of each row.
            verbose: no effect.

        Raises:
            InputError: a text is of another type (its index), the batch is empty, or rows of different lengths cannot
                form a tensor.
            ConfigError: an option has a bad value.
        """
        for name, value in unsupported.items():
            if name not in ("return_overflowing_tokens", "stride"):
                raise ConfigError(f"{type(self).__name__} has no option {name!r}")
            if value:
                raise UnsupportedError(f"{name}={value!r}: truncated tokens are not returned")
        if text is None:
            text, text_target, text_pair, text_pair_target = text_target, None, text_pair_target, None
        add_special_tokens = check_flag(add_special_tokens, "add_special_tokens")
        is_split_into_words = check_flag(is_split_into_words, "is_split_into_words")
        return_special_tokens_mask = check_flag(return_special_tokens_mask, "return_special_tokens_mask")
        return_offsets_mapping = check_flag(return_offsets_mapping, "return_offsets_mapping")
        return_length = check_flag(return_length, "return_length")
        check_choice((*TENSORS, None), return_tensors, "return_tensors")
        lengths = self._resolve_lengths(padding, truncation, max_length, pad_to_multiple_of)
        if is_split_into_words:
            firsts, seconds, single = words_and_pairs(text, text_pair)
            encode = self._encode_words
        else:
            single = isinstance(text, str)
            firsts, seconds = texts_and_pairs(text, text_pair)
            encode = partial(self.encode_batch, add_special_tokens=False)
        rows = encode(firsts)
        encoded_seconds = iter(encode([second for second in seconds if second is not None]))
        second_rows = [None if second is None else next(encoded_seconds) for second in seconds]
        columns = self._build_columns(
            rows, second_rows, lengths, add_special_tokens, padding_side, return_token_type_ids, return_attention_mask,
            return_special_tokens_mask, return_length, single,
        )  # fmt: skip
        widths = list(map(len, columns["input_ids"]))
        align = partial(
            self._alignments, firsts, seconds, lengths, add_special_tokens, is_split_into_words, widths, padding_side
        )
        if return_offsets_mapping:
            columns["offset_mapping"] = [row.offsets for row in align()]
        if return_length and self.is_fast and single and return_tensors is None:
            columns["length"] = [columns["length"]]  # as transformers, which returns a list here
        encoding = as_encoding(columns, return_tensors, single and return_tensors is None)
        encoding._align, encoding.is_fast = align, self.is_fast
        if text_target is not None:
            if not is_split_into_words:
                texts_and_pairs(text_target, text_pair_target, "text_target")
            encoding["labels"] = self.encode(
                text_target,
                text_pair_target,
                add_special_tokens=add_special_tokens,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                is_split_into_words=is_split_into_words,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_tensors=return_tensors,
            )
        return encoding

    def _build_columns(
        self,
        rows: list[list[int]],
        second_rows: list[list[int] | None],
        lengths: LengthOptions,
        add_special_tokens: bool,
        padding_side: str | None,
        return_token_type_ids: bool | None,
        return_attention_mask: bool | None,
        return_special_tokens_mask: bool,
        return_length: bool,
        single: bool,
    ) -> dict[str, list[Any]]:
        """Columns of a result: rows truncated, with special tokens, and padded; `single`: one text or one pair."""
        special_tokens = self._special_tokens(add_special_tokens)
        truncate_rows(rows, second_rows, lengths, special_tokens, self._truncate_pair)
        returned = ReturnedColumns(
            self._returns("token_type_ids", return_token_type_ids),
            self._returns("attention_mask", return_attention_mask),
            return_special_tokens_mask,
        )
        columns = build_columns(rows, second_rows, special_tokens, self._second_type_id(add_special_tokens), returned)
        unpadded = list(map(len, columns["input_ids"]))
        if self.PADS_ONE_EMPTY_TEXT or not single or columns["input_ids"][0]:
            self._pad_columns(columns, lengths, padding_side)
        if return_length:  # as transformers: with padding by the tokenizers library, and for one text
            without_padding = not self.is_fast and len(unpadded) > 1
            columns["length"] = unpadded if without_padding else list(map(len, columns["input_ids"]))
        return columns

    def _special_tokens(self, add_special_tokens: bool) -> dict[bool, SpecialTokens]:
        """Special tokens of a single row (False) and of a pair (True)."""
        return {pair: self.frame(pair) if add_special_tokens else ([], [], []) for pair in (False, True)}

    def _alignments(
        self,
        firsts: list[Any],
        seconds: list[Any],
        lengths: LengthOptions,
        add_special_tokens: bool,
        split: bool,
        widths: list[int],
        padding_side: str | None,
    ) -> list[Alignment]:
        """Alignment of each row of a call with its text; `widths`: of the rows, with padding."""
        texts = self._align_texts(firsts, split)
        pairs = iter(self._align_texts([second for second in seconds if second is not None], split))
        second_texts = [None if second is None else next(pairs) for second in seconds]
        kept = [list(range(len(text.ids))) for text in texts]
        second_kept = [None if text is None else list(range(len(text.ids))) for text in second_texts]
        special_tokens = self._special_tokens(add_special_tokens)
        truncate_rows(kept, second_kept, lengths, special_tokens, self._truncate_pair)
        special = {
            pair: [TokenizedText(ids, self.convert_ids_to_tokens(ids), [], None) for ids in parts]
            for pair, parts in special_tokens.items()
        }
        side = self.padding_side if padding_side is None else padding_side
        padding = (0, "") if self.pad_token is None else (self.pad_token_id, self.pad_token)
        return align_rows(texts, second_texts, kept, second_kept, special, widths, side, padding)

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
        """Pad encoded rows: one encoding, a batch, or a list of encodings (the input of a collator).

        Arguments as for a call. Tensors and arrays are returned as such. Keys other than `input_ids`, `attention_mask`,
        `token_type_ids` and `special_tokens_mask` stay as they are.

        Raises:
            InputError: there are no `input_ids`, or keys differ between the encodings.
            ConfigError: an option has a bad value.
        """
        encoding = collate(encoded_inputs)
        lengths = self._resolve_lengths(padding, False, max_length, pad_to_multiple_of)
        check_choice((*TENSORS, None), return_tensors, "return_tensors")
        return_tensors = return_tensors or tensor_kind(encoding["input_ids"])
        if not to_lists(encoding["input_ids"]):
            return BatchEncoding(encoding, **({"attention_mask": []} if return_attention_mask else {}))
        columns, single = listed_columns(encoding)
        if self._returns("attention_mask", return_attention_mask) and "attention_mask" not in columns:
            columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
        self._pad_columns(columns, lengths, padding_side)
        if single:
            columns = {key: rows[0] for key, rows in columns.items()}
        return as_encoding(columns, return_tensors, False)

    def _returns(self, name: str, argument: bool | None) -> bool:
        """Whether a call returns a column, by its argument or `model_input_names`."""
        return name in self.model_input_names if argument is None else check_flag(argument, f"return_{name}")

    def _resolve_lengths(self, padding: Any, truncation: Any, max_length: Any, multiple: Any) -> LengthOptions:
        lengths = resolve_lengths(
            padding, truncation, max_length, multiple,
            model_max_length=self.model_max_length, has_pad_token=self.pad_token is not None,
        )  # fmt: skip
        if lengths.lacks_limit:
            warnings.warn("truncation without max_length: this tokenizer has no model_max_length", stacklevel=3)
        return lengths

    def _pad_columns(self, columns: dict[str, list[Any]], lengths: LengthOptions, side: str | None) -> None:
        pad_columns(columns, lengths, self.padding_side if side is None else side, self.pad_token_id)

    # -- ids to text --------------------------------------------------------------------------------------------------

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """Text of each row of ids.

        Args:
            sequences: lists of ids, or a tensor or array [rows, length].
            skip_special_tokens: omit the special tokens.
            clean_up_tokenization_spaces: remove spaces before punctuation; None is the setting of the tokenizer.

        Raises:
            InputError: an id is no integer or outside the vocabulary (the id and the limit).
        """
        rows = to_lists(sequences)
        if not isinstance(rows, (list, tuple)):
            raise InputError(f"sequences must be rows of ids, got {type(sequences).__name__}")
        if rows and not isinstance(rows[0], (list, tuple)):
            rows = [rows]
        clean = self.clean_up_tokenization_spaces
        if clean_up_tokenization_spaces is not None:
            clean = check_flag(clean_up_tokenization_spaces, "clean_up_tokenization_spaces")
        decoded = self._decode_rows(rows, check_flag(skip_special_tokens, "skip_special_tokens"))
        return [clean_up_spaces(text) for text in decoded] if clean and self.CLEANS_UP else decoded

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

    # -- files --------------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the files that `from_pretrained` needs, here and in transformers; returns the paths.

        Raises:
            CheckpointError: `save_directory` is a file.
        """
        save_directory = as_path(save_directory, "save_directory")
        if save_directory.exists() and not save_directory.is_dir():
            raise CheckpointError(f"{save_directory} is a file; a tokenizer is saved into a directory")
        save_directory.mkdir(parents=True, exist_ok=True)
        saved = self._save_files(save_directory, filename_prefix)
        config: dict[str, Any] = {
            **self._special,
            **self._class_options(),
            "added_tokens_decoder": {str(i): token.as_dict() for i, token in self.added_tokens_decoder.items()},
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "model_input_names": self.model_input_names,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "split_special_tokens": self.split_special_tokens,
            "tokenizer_class": type(self).__name__,
            "truncation_side": self.truncation_side,
        }
        if self._extra:
            config["extra_special_tokens"] = self._extra
        path = target_file(save_directory, filename_prefix, CONFIG_FILE)
        write_json(path, config)
        return (str(path), *saved)

    @classmethod
    @path_aliases
    def from_pretrained(cls, path_or_id: str | os.PathLike, **overrides: Any) -> Self:
        """Load a tokenizer that transformers 4 or 5 or `save_pretrained` wrote, or the files of a vocabulary alone.

        Args:
            path_or_id: a directory, a hub id, or the path of a vocabulary in one file.
            overrides: options of the constructor, in place of the saved ones, and those of the download (revision,
                cache_dir, token, local_files_only, force_download, subfolder; `bertgen.hub.resolve_file`). Arguments of
                transformers without an effect here are accepted.

        Raises:
            CheckpointError: a file is missing or corrupt (its name).
            ConfigError: one of `overrides` is unknown or has a bad value.
        """
        overrides, hub = split_hub_options({k: v for k, v in overrides.items() if k not in IGNORED_ARGUMENTS})
        if as_path(path_or_id).is_file():
            path = as_path(path_or_id)
            tokenizer = cls(**{cls._option_for_file(path): path, **overrides})
            tokenizer.name_or_path = str(path_or_id)
            return tokenizer
        vocabulary: dict[str, Any] = dict(find_vocabulary(path_or_id, cls.VOCABULARY_FILES, hub))
        known = {name for kind in (cls, Tokenizer) for name in inspect.signature(kind).parameters}
        saved = saved_options(path_or_id, known, hub)
        try:
            options = saved | overrides
            ids = {} if "added_tokens_decoder" in saved else read_optional(path_or_id, ADDED_TOKENS_FILE, hub)
            if ids and "added_tokens_decoder" not in overrides:
                special = {AddedToken.of(options[name]).content for name in SPECIAL_NAMES if options.get(name)}
                special.update(AddedToken.of(token).content for token in options.get("extra_special_tokens") or ())
                added = {index: AddedToken.of(content, content in special) for content, index in ids.items()}
                options["added_tokens_decoder"] = added | cls._added_tokens_in(vocabulary)
            tokenizer = cls(**vocabulary, **options)
            tokenizer.name_or_path = str(path_or_id)
            return tokenizer
        except (ConfigError, TypeError) as error:
            kind = ConfigError if overrides else CheckpointError
            raise kind(f"{path_or_id}: {error}") from error

    @classmethod
    def _option_for_file(cls, path: Path) -> str:
        """Option of the constructor for a vocabulary in one file."""
        return "vocab_file"

    @classmethod
    def _added_tokens_in(cls, vocabulary: dict[str, Any]) -> dict[int, AddedToken]:
        """Added tokens in the file of the vocabulary."""
        return {}

    @classmethod
    def has_vocabulary(cls, path_or_id: str | os.PathLike, hub: dict[str, Any]) -> bool:
        """Whether a directory or repository has a vocabulary of this class; `hub`: options of the download."""
        return has_one_of(path_or_id, cls.VOCABULARY_FILES, hub)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens, special: {self.special_tokens_map})"
