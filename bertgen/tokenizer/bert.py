"""BertTokenizer: WordPiece, `[CLS] text [SEP]`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ..errors import UnsupportedError
from .fast import TOKENIZER_FILE, FastTokenizer
from .tokens import AddedToken

# A vocabulary with a larger share of tokens with upper-case letters is for cased text.
_CASED_SHARE = 0.05


class BertTokenizer(FastTokenizer):
    """WordPiece tokenizer of the BERT models: `[CLS] a [SEP]`, and `[CLS] a [SEP] b [SEP]` for a pair.

    Args:
        vocab: a `vocab.txt` with one token a line, or a table of token -> id.
        do_lower_case: make texts lower-case, and remove accents unless `strip_accents` is False. None is True, with a
            warning if the vocabulary is for cased text.
        unk_token, sep_token, pad_token, cls_token, mask_token, bos_token, eos_token: special tokens. Those that are not
            in the vocabulary get ids after it. None for no such token.
        tokenize_chinese_chars: treat each Chinese character as a word.
        strip_accents: remove accents from letters; None is the value of `do_lower_case`.
        vocab_file: older name of `vocab`.
        tokenizer_file: a `tokenizer.json` in place of `vocab`; its vocabulary and added tokens are read.
        added_tokens_decoder: id -> token, as in saved files.
        never_split, do_basic_tokenize: options of older versions, of which only the defaults are supported.
        options: those of `bertgen.tokenizer.base.Tokenizer`.

    Raises:
        CheckpointError: a file is missing or corrupt.
        ConfigError: there are none or several vocabularies, or an option is unknown or has a bad value.
    """

    MODEL: ClassVar = "WordPiece"
    NEEDS: ClassVar = "vocab"
    VOCABULARY_FILES: ClassVar = ({"tokenizer_file": TOKENIZER_FILE}, {"vocab_file": "vocab.txt"})
    MODEL_INPUT_NAMES: ClassVar = ("input_ids", "token_type_ids", "attention_mask")

    def __init__(
        self,
        vocab: str | os.PathLike | Mapping[str, int] | None = None,
        do_lower_case: bool | None = None,
        unk_token: str | AddedToken | None = "[UNK]",
        sep_token: str | AddedToken | None = "[SEP]",
        pad_token: str | AddedToken | None = "[PAD]",
        cls_token: str | AddedToken | None = "[CLS]",
        mask_token: str | AddedToken | None = "[MASK]",
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        *,
        bos_token: str | AddedToken | None = None,
        eos_token: str | AddedToken | None = None,
        vocab_file: str | os.PathLike | None = None,
        tokenizer_file: str | os.PathLike | None = None,
        added_tokens_decoder: Mapping[Any, Any] | None = None,
        never_split: Sequence[str] | None = None,
        do_basic_tokenize: bool = True,
        **options: Any,
    ):
        if never_split or not do_basic_tokenize:
            raise UnsupportedError(
                "never_split and do_basic_tokenize=False are not supported; add_tokens keeps words whole"
            )
        self.do_lower_case = do_lower_case is None or do_lower_case
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.strip_accents = strip_accents
        # In the order of transformers, in which tokens that are not in the vocabulary get ids.
        special = dict(bos_token=bos_token, eos_token=eos_token, unk_token=unk_token, sep_token=sep_token)
        special |= dict(pad_token=pad_token, cls_token=cls_token, mask_token=mask_token)
        vocab = vocab if vocab_file is None else vocab_file
        super().__init__(special, (vocab,), tokenizer_file, added_tokens_decoder, **options)
        if do_lower_case is None and self._cased_share() > _CASED_SHARE:
            warnings.warn(
                "this vocabulary has words with upper-case letters and accents, and do_lower_case is not set: its "
                "default True removes both from every text; do_lower_case=False is probably right here",
                stacklevel=2,
            )

    @classmethod
    def options_in(cls, parts: dict[str, Any]) -> dict[str, Any]:
        """Options that correspond to the normalizer of a tokenizer.json."""
        names = dict(
            do_lower_case="lowercase", tokenize_chinese_chars="handle_chinese_chars", strip_accents="strip_accents"
        )
        normalizer = parts["normalizer"] or {}
        return {name: normalizer[key] for name, key in names.items() if key in normalizer}

    def _read_vocabulary(self, vocab: Any) -> dict[str, Any]:
        return {"vocab": dict(vocab) if isinstance(vocab, Mapping) else models.WordPiece.read_file(os.fspath(vocab))}

    def _make(self, model: dict[str, Any]) -> Tokenizer:
        library = Tokenizer(models.WordPiece(model["vocab"], unk_token=str(self.unk_token)))
        library.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=self.tokenize_chinese_chars,
            strip_accents=self.strip_accents,
            lowercase=self.do_lower_case,
        )
        library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        library.decoder = decoders.WordPiece(prefix="##")
        return library

    def _cased_share(self) -> float:
        """Share of the vocabulary that has upper-case letters; tokens such as [MASK] do not count."""
        words = [token for token in self._token_of.values() if not token.startswith("[")]
        return sum(token != token.lower() for token in words) / max(len(words), 1)

    def frame(self, pair: bool) -> tuple[list[int], list[int], list[int]]:
        # Unlike transformers, where a tokenizer without these tokens takes the ids 2 and 3.
        cls, sep = ([] if index is None else [index] for index in (self.cls_token_id, self.sep_token_id))
        return cls, sep if pair else [], sep

    def _second_type_id(self, add_special_tokens: bool) -> int:
        return 1

    def _post_processor(self) -> Any:
        tokens = [self.cls_token, self.sep_token]
        cls, sep = ([] if token is None else [f"{token}:0"] for token in tokens)
        return processors.TemplateProcessing(
            single=[*cls, "$A:0", *sep],
            pair=[*cls, "$A:0", *sep, "$B:1", *(f"{self.sep_token}:1" for _ in sep)],
            special_tokens=[(token, self._id_of(token)) for token in tokens if token is not None],
        )

    def _class_options(self) -> dict[str, Any]:
        names = ("do_lower_case", "tokenize_chinese_chars", "strip_accents")
        return {name: getattr(self, name) for name in names}
