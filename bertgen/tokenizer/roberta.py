"""RobertaTokenizer: byte pair encoding over bytes (Radford et al. 2019), `<s> text </s>`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from ..errors import UnsupportedError
from .fast import TOKENIZER_FILE, FastTokenizer
from .tokens import AddedToken

_SPACE = "\u0120"  # a space, in the alphabet of bytes


class RobertaTokenizer(FastTokenizer):
    """Byte-level BPE tokenizer of the RoBERTa models: `<s> a </s>`, and `<s> a </s></s> b </s>` for a pair.

    A word is encoded with the space before it, so the first word of a text differs from the same word later.

    Args:
        vocab: a `vocab.json`, or a table of token -> id.
        merges: a `merges.txt`, or a list of pairs of tokens, most frequent first.
        errors: only "replace": bytes of decoded text that are no UTF-8 become U+FFFD.
        bos_token, eos_token, sep_token, cls_token, unk_token, pad_token, mask_token: special tokens. Those that are not
            in the vocabulary get ids after it. None for no such token.
        add_prefix_space: put a space before the first word.
        trim_offsets: the offsets of a word do not include the space before it (`return_offsets_mapping`).
        vocab_file, merges_file: older names of `vocab` and `merges`.
        tokenizer_file: a `tokenizer.json` in place of `vocab` and `merges`; its vocabulary and added tokens are read.
        added_tokens_decoder: id -> token, as in saved files.
        options: those of `bertgen.tokenizer.base.Tokenizer`; `clean_up_tokenization_spaces` has no effect, as
            in transformers, because tokens have the spaces of the text.

    Raises:
        CheckpointError: a file is missing or corrupt.
        ConfigError: there are none or several vocabularies, or an option is unknown or has a bad value.
    """

    MODEL: ClassVar = "BPE"
    NEEDS: ClassVar = "vocab and merges"
    VOCABULARY_FILES: ClassVar = (
        {"tokenizer_file": TOKENIZER_FILE},
        {"vocab_file": "vocab.json", "merges_file": "merges.txt"},
    )
    CLEANS_UP: ClassVar = False

    def __init__(
        self,
        vocab: str | os.PathLike | Mapping[str, int] | None = None,
        merges: str | os.PathLike | Sequence[tuple[str, str]] | None = None,
        errors: str = "replace",
        bos_token: str | AddedToken | None = "<s>",
        eos_token: str | AddedToken | None = "</s>",
        sep_token: str | AddedToken | None = "</s>",
        cls_token: str | AddedToken | None = "<s>",
        unk_token: str | AddedToken | None = "<unk>",
        pad_token: str | AddedToken | None = "<pad>",
        mask_token: str | AddedToken | None = "<mask>",
        add_prefix_space: bool = False,
        trim_offsets: bool = True,
        *,
        vocab_file: str | os.PathLike | None = None,
        merges_file: str | os.PathLike | None = None,
        tokenizer_file: str | os.PathLike | None = None,
        added_tokens_decoder: Mapping[Any, Any] | None = None,
        **options: Any,
    ):
        if errors != "replace":
            raise UnsupportedError(f"errors={errors!r} is not supported, only 'replace'")
        self.add_prefix_space = add_prefix_space
        self.trim_offsets = trim_offsets
        # In the order of transformers, in which tokens that are not in the vocabulary get ids.
        special = dict(bos_token=bos_token, eos_token=eos_token, unk_token=unk_token, sep_token=sep_token)
        special |= dict(pad_token=pad_token, cls_token=cls_token, mask_token=mask_token)
        vocab = vocab if vocab_file is None else vocab_file
        merges = merges if merges_file is None else merges_file
        super().__init__(special, (vocab, merges), tokenizer_file, added_tokens_decoder, **options)

    @classmethod
    def options_in(cls, parts: dict[str, Any]) -> dict[str, Any]:
        """Options that correspond to the post-processor of a tokenizer.json."""
        post_processor = parts["post_processor"] or {}
        return {name: post_processor[name] for name in ("add_prefix_space", "trim_offsets") if name in post_processor}

    def _read_vocabulary(self, vocab: Any, merges: Any) -> dict[str, Any]:
        if isinstance(vocab, (str, os.PathLike)) and isinstance(merges, (str, os.PathLike)):
            vocab, merges = models.BPE.read_file(os.fspath(vocab), os.fspath(merges))
        return {"vocab": vocab, "merges": merges}

    def _make(self, model: dict[str, Any]) -> Tokenizer:
        merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
        library = Tokenizer(
            models.BPE(dict(model["vocab"]), merges, continuing_subword_prefix="", end_of_word_suffix="")
        )
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=self.add_prefix_space)
        library.decoder = decoders.ByteLevel()
        return library

    def _offsets(self, tokens: list[str], offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
        if not self.trim_offsets:
            return offsets
        # As the tokenizers library: offsets do not include the spaces of a token. A space that was added before the
        # first word is not in the text.
        trimmed = []
        for i, (token, (start, end)) in enumerate(zip(tokens, offsets, strict=True)):
            leading = len(token) - len(token.lstrip(f"{_SPACE} "))
            trailing = len(token) - len(token.rstrip(f"{_SPACE} "))
            if leading and self.add_prefix_space and (i == 0 or start == 0):
                leading -= 1
            start = min(start + leading, end)
            trimmed.append((start, max(end - trailing, start) if trailing and end >= trailing else end))
        return trimmed

    def frame(self, pair: bool) -> tuple[list[int], list[int], list[int]]:
        cls, sep = ([] if index is None else [index] for index in (self.cls_token_id, self.sep_token_id))
        return cls, [*sep, *sep] if pair else [], sep

    def _second_type_id(self, add_special_tokens: bool) -> int:
        return 0

    def _post_processor(self) -> Any:
        if self.sep_token is None or self.cls_token is None:
            return None  # the library needs both tokens
        sep, cls = (self.sep_token, self.sep_token_id), (self.cls_token, self.cls_token_id)
        return processors.RobertaProcessing(sep, cls, self.trim_offsets, self.add_prefix_space)

    def _class_options(self) -> dict[str, Any]:
        return {"add_prefix_space": self.add_prefix_space, "trim_offsets": self.trim_offsets}
