"""What every tokenizer does: calls with pairs, truncation and padding, decoding, loading and saving.

A class of tokenizer adds what differs: its vocabulary, how text becomes ids and ids text, and the special tokens that
stand around a text.
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
from ..config.base import check_flag
from ..errors import CheckpointError, ConfigError, InputError, UnsupportedError, quoted
from ..hub import as_path, split_hub_options
from .alignment import Alignment, Part, aligned
from .encoding import (
    PADDINGS,
    SIDES,
    TENSORS,
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
    words_of,
)
from .files import (
    ADDED_TOKENS_FILE,
    CONFIG_FILE,
    find_vocabulary,
    has_one_of,
    read_optional,
    saved_options,
    target_file,
)
from .tokens import AddedToken
from .vocabulary import SPECIAL_NAMES, Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Self

# Arguments of transformers' `from_pretrained` for tokenizers that change nothing: there is one implementation of each.
IGNORED_ARGUMENTS = frozenset("use_fast from_slow backend tokenizer_type verbose name_or_path".split())
NO_LIMIT = int(1e30)  # what transformers writes as model_max_length where there is none


LONGEST_PADDED = 1 << 24  # tokens of a row; more is a number gone wrong, and would only exhaust the memory


_LIMITED = int(1e20)


class Tokenizer(Vocabulary):
    """Base of the tokenizers, with the options that all of them have.

    Args:
        special: name -> token of `SPECIAL_NAMES`; None, or not there, means there is none.
        extra_special_tokens: more tokens that `skip_special_tokens` drops.
        model_max_length: tokens that truncation and padding to "max_length" go to where no `max_length` is given.
        padding_side, truncation_side: "right" or "left".
        clean_up_tokenization_spaces: take spaces before punctuation out of decoded English text.
        split_special_tokens: treat special tokens inside a text as any other text.
        model_input_names: what a call returns by default.

    Raises:
        ConfigError: an option is unknown or has a bad value.
    """

    # Where the vocabulary can be, in order of preference: option of the constructor -> name of the file.
    VOCABULARY_FILES: ClassVar[tuple[dict[str, str], ...]]
    MODEL_INPUT_NAMES: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    PADS_ONE_EMPTY_TEXT: ClassVar[bool] = True  # a call with one text, that is; in a list it is padded everywhere
    SPECIAL_TOKENS_ATTRIBUTES: ClassVar[list[str]] = list(SPECIAL_NAMES)
    name_or_path: str = ""  # where the tokenizer was loaded from
    is_fast: ClassVar[bool] = False  # whether transformers' one is by the tokenizers library
    CLEANS_UP: ClassVar[bool] = True  # False: clean_up_tokenization_spaces does nothing

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
            value = checked_choice(name, value, SIDES)
        elif name == "model_max_length":
            value = checked_positive(name, value)
        super().__setattr__(name, value)

    # -- what differs from class to class -----------------------------------------------------------------------------

    @property
    def vocab_files_names(self) -> dict[str, str]:
        """Option of the constructor -> name of the file, for each that can hold a vocabulary."""
        return {option: name for names in self.VOCABULARY_FILES for option, name in names.items()}

    @staticmethod
    def clean_up_tokenization(text: str) -> str:
        """Take the spaces before English punctuation and contractions out of a text."""
        return cleaned_up(text)

    @property
    def max_len_single_sentence(self) -> int:
        """`model_max_length` without the special tokens around a text."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """The same around two."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    @property
    def pad_token_type_id(self) -> int:
        """Token type of padding."""
        return 0

    def frame(self, pair: bool) -> tuple[list[int], list[int], list[int]]:
        """Ids of the special tokens before a text, between the two of a pair (empty for one), and behind."""
        raise NotImplementedError

    def _type_of_second(self, add_special_tokens: bool) -> int:
        """`token_type_ids` of the second text of a pair."""
        raise NotImplementedError

    def _truncated(
        self, index: int, row: list[int], second: list[int] | None, limit: int, strategy: str
    ) -> tuple[list[int], list[int] | None]:
        """Shorten the text of this index, and its second one, to `limit` tokens together."""
        raise NotImplementedError

    def _encode_rows(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts, without the special tokens around them."""
        raise NotImplementedError

    def _encode_words(self, texts: list[list[str]]) -> list[list[int]]:
        """The same for texts that are lists of words."""
        raise NotImplementedError

    def _parts(self, texts: list[Any], split: bool) -> list[Part]:
        """The same with tokens, characters and words; `split` says that texts are lists of words."""
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
        """Write the vocabulary alone into a directory and return the paths."""
        raise NotImplementedError

    def _save_files(self, save_directory: str | os.PathLike, filename_prefix: str | None) -> list[str]:
        """Write what `from_pretrained` needs beside the options; return the paths."""
        raise NotImplementedError

    def _own_options(self) -> dict[str, Any]:
        """Options of the constructor that only this class has, as the file of options holds them."""
        raise NotImplementedError

    # -- text to ids --------------------------------------------------------------------------------------------------

    def encode_batch(self, texts: Iterable[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Ids of each text: the fast path, without padding, truncation or masks.

        Args:
            texts: any number of str.
            add_special_tokens: put the special tokens of the class around each text, if it has any.

        Raises:
            InputError: a text is no string or no Unicode (its index and what is wrong).
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
        except Exception as error:  # tokenizers raises nothing more precise
            self._blame(listed, error)
        before, _, behind = self.frame(False) if add_special_tokens else ([], [], [])
        return [[*before, *row, *behind] for row in rows] if before or behind else rows

    def _blame(self, texts: list[str], error: Exception, name: str | None = None) -> NoReturn:
        """Raise the error that names the text which could not be encoded."""
        for index, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as bad:
                what = f"lone surrogate U+{ord(text[bad.start]):04X} at position {bad.start}"
                raise InputError(f"{name or f'text {index}'} is no valid Unicode: {what}") from None
        raise CheckpointError(f"{self} cannot encode: {error}") from error

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """Cut a text into tokens; what the vocabulary lacks comes as it is, or as the unknown token.

        Args:
            pair: a second text, whose tokens come after those of the first.
            add_special_tokens: put the special tokens of the class around them.
        """
        tokens = [self._tokens_of(text, "text"), [] if pair is None else self._tokens_of(pair, "pair")]
        if not check_flag(add_special_tokens, "add_special_tokens"):
            return [token for part in tokens for token in part]
        before, middle, behind = map(self.convert_ids_to_tokens, self.frame(pair is not None))
        return [*before, *tokens[0], *middle, *tokens[1], *behind]

    def _tokens_of(self, text: str, name: str) -> list[str]:
        if not isinstance(text, str):
            raise InputError(f"{name} must be a str, got {type(text).__name__}")
        try:
            return self._tokenize(text)
        except Exception as error:
            self._blame([text], error, name)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens stand around a text, or around two."""
        return sum(map(len, self.frame(pair)))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Ids of a text, or of two, with the special tokens around them."""
        start, middle, end = self.frame(token_ids_1 is not None)
        return [*start, *token_ids_0, *middle, *(token_ids_1 or ()), *end]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`token_type_ids` of what `build_inputs_with_special_tokens` returns."""
        start, middle, end = self.frame(token_ids_1 is not None)
        if token_ids_1 is None:
            return [0] * (len(start) + len(token_ids_0) + len(end))
        kind = self._type_of_second(True)
        return [0] * (len(start) + len(token_ids_0) + len(middle)) + [kind] * (len(token_ids_1) + len(end))

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for each special token, 0 for the others.

        Args:
            token_ids_0, token_ids_1: a text or two, around which special tokens are to come.
            already_has_special_tokens: `token_ids_0` is a whole row, in which every special token counts.

        Raises:
            InputError: a whole row and a second text.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise InputError("a row that has its special tokens already has no second text")
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
        """Ids and second ids without so many of their tokens, and those removed, with `stride` of the others before.

        Those removed are not returned where both are cut ("longest_first").
        """
        strategy = checked_choice("truncation_strategy", truncation_strategy, TRUNCATIONS)
        if num_tokens_to_remove <= 0 or strategy == "do_not_truncate":
            return ids, pair_ids, []
        limit = len(ids) + len(pair_ids or ()) - num_tokens_to_remove
        row, second = truncated(ids, pair_ids, limit, strategy, self.truncation_side)
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
        """What a call returns for one text (and its second), of their ids; arguments as for a call."""
        plan = self._plan(padding, truncation, max_length, pad_to_multiple_of)
        columns = self._assembled(
            [list(ids)], [None if pair_ids is None else list(pair_ids)], plan, add_special_tokens, padding_side,
            return_token_type_ids, return_attention_mask, return_special_tokens_mask, return_length,
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
            text_pair: second text or texts, behind the first.
            text_target, text_pair_target: text or texts whose ids become `labels`.
            is_split_into_words: a text is a list of words, and a pair of such a tuple; words are encoded one by one.
            add_special_tokens: put the special tokens of the class around each text or pair, if it has any.
            padding: True or "longest", "max_length", or False.
            truncation: True or "longest_first", "only_first", "only_second", or False; None truncates where only
                `max_length` is given.
            max_length: limit in tokens; `model_max_length` where it is None.
            pad_to_multiple_of: padded lengths become multiples of it.
            padding_side: "right" or "left"; the tokenizer's where it is None.
            return_tensors: "pt" or "np" (int64, [texts, length]); lists where it is None.
            return_token_type_ids, return_attention_mask: more keys; by default `model_input_names`.
            return_special_tokens_mask: 1 for what stands around the texts.
            return_offsets_mapping: `offset_mapping`, the characters of each token, (first, behind the last), (0, 0)
                for special tokens. In bert-generation's the space before a word belongs to it.
            return_length: `length`, tokens of each row.
            verbose: changes nothing.

        Raises:
            InputError: a text is of another type (its index), the batch is empty, or rows of different lengths cannot
                form a tensor.
            ConfigError: an option has a bad value.
        """
        for name, value in unsupported.items():
            if name not in ("return_overflowing_tokens", "stride"):
                raise ConfigError(f"{type(self).__name__} has no option {name!r}")
            if value:
                raise UnsupportedError(f"{name}={value!r}: what truncation cuts off is not returned")
        if text is None:
            text, text_target, text_pair, text_pair_target = text_target, None, text_pair_target, None
        add_special_tokens = check_flag(add_special_tokens, "add_special_tokens")
        is_split_into_words = check_flag(is_split_into_words, "is_split_into_words")
        return_special_tokens_mask = check_flag(return_special_tokens_mask, "return_special_tokens_mask")
        return_offsets_mapping = check_flag(return_offsets_mapping, "return_offsets_mapping")
        return_length = check_flag(return_length, "return_length")
        checked_choice("return_tensors", return_tensors, (*TENSORS, None))
        plan = self._plan(padding, truncation, max_length, pad_to_multiple_of)
        if is_split_into_words:
            firsts, seconds, single = words_of(text, text_pair)
            encoded = self._encode_words
        else:
            single = isinstance(text, str)
            firsts, seconds = pairs_of(text, text_pair)
            encoded = partial(self.encode_batch, add_special_tokens=False)
        rows = encoded(firsts)
        pairs = iter(encoded([one for one in seconds if one is not None]))
        second_rows = [None if second is None else next(pairs) for second in seconds]
        is_one_empty = single and rows == [[]] and second_rows == [None]
        columns = self._assembled(
            rows, second_rows, plan, add_special_tokens, padding_side, return_token_type_ids, return_attention_mask,
            return_special_tokens_mask, return_length, pads=self.PADS_ONE_EMPTY_TEXT or not is_one_empty,
        )  # fmt: skip
        widths = list(map(len, columns["input_ids"]))
        align = partial(
            self._aligned, firsts, seconds, plan, add_special_tokens, is_split_into_words, widths, padding_side
        )
        if return_offsets_mapping:
            columns["offset_mapping"] = [row.offsets for row in align()]
        if return_length and self.is_fast and single and return_tensors is None:
            columns["length"] = [columns["length"]]  # as transformers, which keeps the list there
        encoding = as_encoding(columns, return_tensors, single and return_tensors is None)
        encoding._align, encoding.is_fast = align, self.is_fast
        if text_target is not None:
            if not is_split_into_words:
                pairs_of(text_target, text_pair_target, "text_target")
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

    def _assembled(
        self,
        rows: list[list[int]],
        second_rows: list[list[int] | None],
        plan: Plan,
        add_special_tokens: bool,
        padding_side: str | None,
        return_token_type_ids: bool | None,
        return_attention_mask: bool | None,
        return_special_tokens_mask: bool,
        return_length: bool,
        pads: bool = True,
    ) -> dict[str, list[Any]]:
        """Columns of a call's result: the rows cut, with their special tokens, and padded."""
        frames = self._frames(add_special_tokens)
        self._cut(rows, second_rows, plan, frames)
        heads, tails = [], []
        for row, second in zip(rows, second_rows, strict=True):
            start, middle, end = frames[second is not None]
            heads.append([*start, *row, *middle])
            tails.append(end if second is None else [*second, *end])
        columns: dict[str, list[Any]] = {"input_ids": [head + tail for head, tail in zip(heads, tails, strict=True)]}
        if self._returns("token_type_ids", return_token_type_ids):
            kinds = [0 if second is None else self._type_of_second(add_special_tokens) for second in second_rows]
            both = zip(heads, tails, kinds, strict=True)
            columns["token_type_ids"] = [[0] * len(head) + [kind] * len(tail) for head, tail, kind in both]
        if self._returns("attention_mask", return_attention_mask):
            columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
        if return_special_tokens_mask:
            masks = columns["special_tokens_mask"] = []
            for row, second in zip(rows, second_rows, strict=True):
                start, middle, end = ([1] * len(part) for part in frames[second is not None])
                masks.append([*start, *([0] * len(row)), *middle, *([0] * len(second or ())), *end])
        lengths = list(map(len, columns["input_ids"]))
        if pads:
            self._pad_columns(columns, plan, padding_side)
        if return_length:  # as transformers: with padding where the tokenizers library has done it, or for one text
            before = not self.is_fast and len(lengths) > 1
            columns["length"] = lengths if before else list(map(len, columns["input_ids"]))
        return columns

    def _frames(self, add_special_tokens: bool) -> dict[bool, tuple[list[int], list[int], list[int]]]:
        return {pair: self.frame(pair) if add_special_tokens else ([], [], []) for pair in (False, True)}

    def _cut(
        self,
        rows: list[list[int]],
        second_rows: list[list[int] | None],
        plan: Plan,
        frames: dict[bool, tuple[list[int], list[int], list[int]]],
    ) -> None:
        """Truncate rows, in place."""
        if plan.limit is not None and plan.truncation != "do_not_truncate":
            rooms = {pair: plan.limit - sum(map(len, frame)) for pair, frame in frames.items()}
            for index, row in enumerate(rows):
                second = second_rows[index]
                room = rooms[second is not None]
                if len(row) + len(second or ()) > room:
                    if room < 0:
                        # Unlike the tokenizers library, which then leaves the row as long as it is.
                        raise ConfigError(
                            f"max_length {plan.limit} is less than the {plan.limit - room} special tokens"
                        )
                    rows[index], second_rows[index] = self._truncated(index, row, second, room, plan.truncation)

    def _aligned(
        self,
        firsts: list[Any],
        seconds: list[Any],
        plan: Plan,
        add_special_tokens: bool,
        split: bool,
        widths: list[int],
        padding_side: str | None,
    ) -> list[Alignment]:
        """Where the tokens of a call's rows come from; `widths`: of the rows, with padding."""
        parts = self._parts(firsts, split)
        pairs = iter(self._parts([one for one in seconds if one is not None], split))
        second_parts = [None if one is None else next(pairs) for one in seconds]
        kept = [list(range(len(part.ids))) for part in parts]
        second_kept = [None if part is None else list(range(len(part.ids))) for part in second_parts]
        frames = self._frames(add_special_tokens)
        self._cut(kept, second_kept, plan, frames)
        special = {
            pair: [Part(ids, self.convert_ids_to_tokens(ids), [], None) for ids in frame]
            for pair, frame in frames.items()
        }
        side = self.padding_side if padding_side is None else padding_side
        padding = (0, "") if self.pad_token is None else (self.pad_token_id, self.pad_token)
        found = []
        for part, second, one, two, width in zip(parts, second_parts, kept, second_kept, widths, strict=True):
            if second is None or two is None:
                found.append(aligned([part], [one], special[False], width, side, padding))
            else:
                found.append(aligned([part, second], [one, two], special[True], width, side, padding))
        return found

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
            raise InputError(
                f"encoded_inputs must be an encoding, or a list of them, with input_ids, got {quoted(encoded_inputs)}"
            )
        plan = self._plan(padding, False, max_length, pad_to_multiple_of)
        checked_choice("return_tensors", return_tensors, (*TENSORS, None))
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
        return name in self.model_input_names if asked is None else check_flag(asked, f"return_{name}")

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
            multiple = checked_positive("pad_to_multiple_of", multiple, LONGEST_PADDED)
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
        if length > LONGEST_PADDED:
            raise ConfigError(f"max_length {length} to pad to is more than {LONGEST_PADDED} tokens")
        values = {"input_ids": self.pad_token_id, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
        missing = [length - len(row) for row in rows]
        for key in columns.keys() & values.keys():
            value, both = values[key], zip(columns[key], missing, strict=True)
            columns[key] = [row + [value] * n if side == "right" else [value] * n + row for row, n in both]

    # -- ids to text --------------------------------------------------------------------------------------------------

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
            raise InputError(f"sequences must be rows of ids, got {type(sequences).__name__}")
        if rows and not isinstance(rows[0], (list, tuple)):
            rows = [rows]
        clean = self.clean_up_tokenization_spaces
        if clean_up_tokenization_spaces is not None:
            clean = check_flag(clean_up_tokenization_spaces, "clean_up_tokenization_spaces")
        decoded = self._decode_rows(rows, check_flag(skip_special_tokens, "skip_special_tokens"))
        return [cleaned_up(text) for text in decoded] if clean and self.CLEANS_UP else decoded

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
        """Write everything `from_pretrained` needs, here and in transformers; return the paths.

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
            **self._own_options(),
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
        """Load a tokenizer that transformers 4 or 5 or `save_pretrained` wrote, or the bare files of a vocabulary.

        Args:
            path_or_id: a directory, a hub id, or the path of a vocabulary that is one file.
            overrides: options of the constructor, which win over the saved ones, and those of the download (revision,
                cache_dir, token, local_files_only, force_download, subfolder; `bertgen.hub.resolve_file`). Arguments of
                transformers that change nothing here are accepted.

        Raises:
            CheckpointError: a file is missing or corrupt (which one, and what was looked for).
            ConfigError: one of `overrides` is unknown or has a bad value.
        """
        overrides, hub = split_hub_options({k: v for k, v in overrides.items() if k not in IGNORED_ARGUMENTS})
        if as_path(path_or_id).is_file():
            path = as_path(path_or_id)
            tokenizer = cls(**{cls._option_of_file(path): path, **overrides})
            tokenizer.name_or_path = str(path_or_id)
            return tokenizer
        vocabulary: dict[str, Any] = dict(find_vocabulary(path_or_id, cls.VOCABULARY_FILES, hub))
        known = {name for one in (cls, Tokenizer) for name in inspect.signature(one).parameters}
        saved = saved_options(path_or_id, known, hub)
        try:
            options = saved | overrides
            behind = {} if "added_tokens_decoder" in saved else read_optional(path_or_id, ADDED_TOKENS_FILE, hub)
            if behind and "added_tokens_decoder" not in overrides:
                special = {AddedToken.of(options[name]).content for name in SPECIAL_NAMES if options.get(name)}
                special.update(AddedToken.of(token).content for token in options.get("extra_special_tokens") or ())
                named = {index: AddedToken.of(content, content in special) for content, index in behind.items()}
                options["added_tokens_decoder"] = named | cls._added_tokens_in(vocabulary)
            tokenizer = cls(**vocabulary, **options)
            tokenizer.name_or_path = str(path_or_id)
            return tokenizer
        except (ConfigError, TypeError) as error:
            kind = ConfigError if overrides else CheckpointError
            raise kind(f"{path_or_id}: {error}") from error

    @classmethod
    def _option_of_file(cls, path: Path) -> str:
        """Name of the constructor's option that takes a vocabulary of one file."""
        return "vocab_file"

    @classmethod
    def _added_tokens_in(cls, vocabulary: dict[str, Any]) -> dict[int, AddedToken]:
        """Added tokens that the vocabulary's own file holds."""
        return {}

    @classmethod
    def has_vocabulary(cls, path_or_id: str | os.PathLike, hub: dict[str, Any]) -> bool:
        """Whether a directory or repository holds a vocabulary of this class; `hub`: options of the download."""
        return has_one_of(path_or_id, cls.VOCABULARY_FILES, hub)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens, special: {self.special_tokens_map})"
