"""BertGenerationTokenizer: sentencepiece through its batch calls, with the names and results of transformers.

`encode_batch` and `batch_decode` are the fast paths; the other methods call them. Comments that begin with "Unlike
transformers" mark results of transformers 5 that are corrected here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import sentencepiece

from ..config import write_json
from ..errors import CheckpointError, ConfigError, UnsupportedError, quoted
from ..files.atomic import write_file
from ..hub import check_file
from .alignment import TokenizedText
from .base import Tokenizer
from .files import ADDED_TOKENS_FILE, target_file
from .lengths import truncate_pair
from .tokens import AddedToken, read_added_tokens

_SENTENCEPIECE_OPTIONS = frozenset(
    "enable_sampling nbest_size alpha add_bos add_eos reverse emit_unk_piece num_threads".split()
)
# sentencepiece starts its threads in every batch call. A smaller batch, or a thread for less text, costs more time than
# it saves.
_SMALL_BATCH = 64
_CHARACTERS_PER_THREAD = 16384


class BertGenerationTokenizer(Tokenizer):
    """Sentencepiece tokenizer of the BertGeneration models. Adds no special tokens to a text.

    A special or added token in a text becomes its id; the text between such tokens is encoded piece by piece.

    Args:
        vocab_file: a sentencepiece model (`spiece.model`).
        bos_token, eos_token, unk_token, pad_token, sep_token, cls_token, mask_token: special tokens. Those that are no
            sentencepiece pieces get ids after the last piece. None for no such token.
        sp_model_kwargs: `enable_sampling`, `nbest_size`, `alpha` (subword regularisation, Kudo 2018), `num_threads`
            and other encoding options of sentencepiece's processor.
        added_tokens_decoder: id -> token, as in saved files.
        options: those of `Tokenizer`.

    Raises:
        CheckpointError: `vocab_file` is missing or no sentencepiece model.
        ConfigError: an option is unknown or has a bad value.
    """

    VOCABULARY_FILES: ClassVar = ({"vocab_file": "spiece.model"},)
    PADS_ONE_EMPTY_TEXT: ClassVar = False  # as transformers

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
        added_tokens_decoder: Mapping[Any, Any] | None = None,
        legacy: bool = True,
        **options: Any,
    ):
        special = dict(bos_token=bos_token, eos_token=eos_token, unk_token=unk_token, sep_token=sep_token)
        super().__init__(special | dict(pad_token=pad_token, cls_token=cls_token, mask_token=mask_token), **options)
        if not legacy:
            raise UnsupportedError("legacy=False (no space before the first word) is not supported")
        if sp_model_kwargs is not None and not isinstance(sp_model_kwargs, Mapping):
            raise ConfigError(f"sp_model_kwargs must be a dict of options, got {quoted(sp_model_kwargs)}")
        self.sp_model_kwargs = dict(sp_model_kwargs or {})
        if not self.sp_model_kwargs.keys() <= _SENTENCEPIECE_OPTIONS:
            names = ", ".join(sorted(map(repr, self.sp_model_kwargs.keys() - _SENTENCEPIECE_OPTIONS)))
            raise ConfigError(
                f"sp_model_kwargs has no option {names}; it has {', '.join(sorted(_SENTENCEPIECE_OPTIONS))}"
            )
        self.vocab_file = str(vocab_file)
        self._model_proto = _read_model(vocab_file)
        self._load_sentencepiece()
        self._added = read_added_tokens(added_tokens_decoder or {})
        self._ids = {token.content: index for index, token in self._added.items()}
        self.add_tokens(self.all_special_tokens, special_tokens=True)

    def _load_sentencepiece(self) -> None:
        try:
            self._sp = sentencepiece.SentencePieceProcessor(**self.sp_model_kwargs)
            self._sp.LoadFromSerializedProto(self._model_proto)
            # All at once, because a corrupt model may hold pieces that are no Unicode.
            self._pieces = [self._sp.id_to_piece(index) for index in range(self._sp.get_piece_size())]
        except Exception as error:  # RuntimeError, or an error of the binding for invalid bytes
            raise CheckpointError(f"{self.vocab_file} is no usable sentencepiece model: {error}") from error
        try:
            self._sp.encode(["a"])
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"sentencepiece rejects sp_model_kwargs {self.sp_model_kwargs}: {error}") from error

    # -- vocabulary ---------------------------------------------------------------------------------------------------

    @property
    def sp_model(self) -> sentencepiece.SentencePieceProcessor:
        """The object of the library."""
        return self._sp

    @property
    def vocab_size(self) -> int:
        """Number of sentencepiece pieces, without added tokens."""
        return len(self._pieces)

    def __len__(self) -> int:
        return self.vocab_size + sum(index >= self.vocab_size for index in self._added)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id -> token of the added and the special tokens, by id."""
        return dict(sorted(self._added.items()))

    @cached_property
    def _token_of(self) -> dict[int, str]:
        return dict(enumerate(self._pieces)) | {index: token.content for index, token in self._added.items()}

    def _id_of(self, token: str) -> int | None:
        index = self._ids.get(token)
        if index is None and self._pieces[piece := self._sp.piece_to_id(token)] == token:
            index = piece
        return index

    @property
    def _unknown_id(self) -> int:
        return self._sp.unk_id()

    def _add(self, tokens: Sequence[str | AddedToken], special: bool) -> None:
        size = len(self)
        known_special = set(self.all_special_tokens)
        for value in tokens:
            if isinstance(value, str) and (value == "" or value in self._ids):
                continue
            token = AddedToken.of(value, special=special or value in known_special)
            if special:
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

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        """Matches the leftmost longest special or added token; None without such tokens."""
        if not self._ids:
            return None
        # Unlike transformers' trie, which leaves a text unsplit where one added token begins inside a near miss of
        # another (tokens "abx" and "b", text "abcx").
        return re.compile(f"({'|'.join(map(re.escape, sorted(self._ids, key=len, reverse=True)))})")

    # -- text to ids --------------------------------------------------------------------------------------------------

    def frame(self, pair: bool) -> tuple[list[int], list[int], list[int]]:
        return [], [], []

    def _second_type_id(self, add_special_tokens: bool) -> int:
        return 1 if add_special_tokens else 0  # as transformers

    def _truncate_pair(
        self, index: int, row: list[int], second: list[int] | None, limit: int, strategy: str
    ) -> tuple[list[int], list[int] | None]:
        return truncate_pair(row, second, limit, strategy, self.truncation_side)

    def _encode_rows(self, texts: list[str]) -> list[list[int]]:
        # One search over all texts, because few corpora have special tokens.
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

    def _encode_segments(self, texts: list[str]) -> list[list[int]]:
        """Encode texts without looking for special tokens in them."""
        if self.sp_model_kwargs.get("enable_sampling"):
            return [self.convert_tokens_to_ids(pieces) for pieces in self._encode(texts, str)]
        rows = self._encode(texts, int)
        # Unknown characters become one piece with their normalized text. transformers looks this text up again: it may
        # be an added token (full-width forms become ASCII).
        unknown = self._sp.unk_id()
        affected = [index for index, row in enumerate(rows) if unknown in row]
        for index, pieces in zip(affected, self._encode([texts[index] for index in affected], str), strict=True):
            rows[index] = self.convert_tokens_to_ids(pieces)
        return rows

    def _encode_words(self, texts: list[list[str]]) -> list[list[int]]:
        rows = iter(self.encode_batch([word for words in texts for word in words], add_special_tokens=False))
        return [[index for _ in words for index in next(rows)] for words in texts]

    def _align_texts(self, texts: list[Any], split: bool) -> list[TokenizedText]:
        if self.sp_model_kwargs.get("enable_sampling"):
            raise UnsupportedError("enable_sampling: tokens are sampled in each call, so there is no alignment")
        if split:
            return [_join_words([self._align_text(word) for word in words]) for words in texts]
        return [self._align_text(text) for text in texts]

    def _align_text(self, text: str) -> TokenizedText:
        """The tokens of one text; the space before a word belongs to its token."""
        aligned, end = TokenizedText([], [], [], None), 0
        for piece in self._split(text):
            start = text.index(piece, end)  # white space between pieces is dropped
            end = start + len(piece)
            if piece in self._ids and not self.split_special_tokens:
                aligned.ids.append(self._ids[piece])
                aligned.tokens.append(piece)
                aligned.offsets.append((start, end))
                continue
            mapping = self._sp.encode(piece, out_type="offset_mapping")
            aligned.ids.extend(self._encode_segments([piece])[0])
            aligned.tokens.extend(mapping["pieces"])
            aligned.offsets.extend((start + a, start + b) for a, b in mapping["offsets"])
        return aligned

    def _encode(self, texts: list[str], kind: type) -> list[list[Any]]:
        if len(texts) < _SMALL_BATCH:
            return [self._sp.encode(text, out_type=kind) for text in texts]
        threads = min(os.cpu_count() or 1, 1 + sum(map(len, texts)) // _CHARACTERS_PER_THREAD)
        return self._sp.encode(texts, out_type=kind, num_threads=self.sp_model_kwargs.get("num_threads", threads))

    def _split(self, text: str) -> list[str]:
        """Split a text at its special and added tokens, without empty parts."""
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

    def _tokenize(self, text: str) -> list[str]:
        tokens: list[str] = []
        for part in self._split(text):
            tokens += [part] if part in self._ids else self._sp.encode(part, out_type=str)
        return tokens

    # -- ids to text --------------------------------------------------------------------------------------------------

    @cached_property
    def _byte_ids(self) -> list[int]:
        return [index for index in range(self.vocab_size) if self._sp.is_byte(index)]

    @cached_property
    def _text_of(self) -> dict[int, str]:
        """Id -> text; the decoded text is these joined and stripped."""
        texts = {index: token.replace("▁", " ") for index, token in self._token_of.items()}
        # Unlike transformers, which writes "<0xE4>": a byte piece is its byte until the whole text is decoded.
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

    def _decode_rows(self, rows: Sequence[Any], skip_special_tokens: bool) -> list[str]:
        texts = self._text_of_ordinary if skip_special_tokens else self._text_of
        return [self._decode(row, texts) for row in rows]

    def _decode(self, ids: Sequence[int], texts: dict[int, str]) -> str:
        try:
            text = "".join(map(texts.__getitem__, ids))
        except (KeyError, TypeError):
            ids = self._checked_ids(ids)
            text = "".join(map(texts.__getitem__, ids))
        if self._spaced_ids and not self._spaced_ids.isdisjoint(ids):
            # Unlike transformers 5, which writes an ordinary added token without a space after the word before it.
            # Encoding drops this space; a piece has its own.
            text = ""
            for index in ids:
                lacks_space = index in self._spaced_ids and not texts[index].startswith(" ") and not text.endswith(" ")
                text += " " + texts[index] if lacks_space else texts[index]
        if self._byte_ids and not text.isascii():
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return text.strip()

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """Join tokens to a text."""
        if not self._byte_ids:
            return "".join(tokens).replace("▁", " ").strip()
        # Unlike transformers, which writes "<0xE4>": the same text as that of the ids.
        texts = [self._text_of_byte.get(token) or token.replace("▁", " ") for token in tokens]
        return "".join(texts).encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()

    @cached_property
    def _text_of_byte(self) -> dict[str, str]:
        return {self._pieces[index]: self._text_of[index] for index in self._byte_ids}

    # -- files --------------------------------------------------------------------------------------------------------

    def save_vocabulary(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the sentencepiece model into a directory; returns its path in a tuple, as transformers."""
        path = target_file(save_directory, filename_prefix, "spiece.model")
        write_file(path, self._model_proto)
        return (str(path),)

    def _save_files(self, save_directory: str | os.PathLike, filename_prefix: str | None) -> list[str]:
        saved = list(self.save_vocabulary(save_directory, filename_prefix))
        added = {token.content: i for i, token in self.added_tokens_decoder.items() if i >= self.vocab_size}
        if added:
            path = target_file(save_directory, filename_prefix, ADDED_TOKENS_FILE)
            write_json(path, added)
            saved.append(str(path))
        return saved

    def _class_options(self) -> dict[str, Any]:
        return {"sp_model_kwargs": self.sp_model_kwargs}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in ("_sp", "_pieces")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load_sentencepiece()


def _join_words(words: list[TokenizedText]) -> TokenizedText:
    """One text from its words."""
    return TokenizedText(
        [index for word in words for index in word.ids],
        [token for word in words for token in word.tokens],
        [offsets for word in words for offsets in word.offsets],
        [number for number, word in enumerate(words) for _ in word.ids],
    )


def _read_model(vocab_file: Any) -> bytes:
    if not isinstance(vocab_file, (str, os.PathLike)):
        raise ConfigError(f"vocab_file must be the path of a sentencepiece model, got {vocab_file!r}")
    if (path := Path(vocab_file)).exists():
        check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"no sentencepiece model (spiece.model) at {vocab_file}: {error.strerror}") from error
