"""The encoder of texts: sources and targets as ids, for generating and for scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config import GenerationConfig
from ..model import EncoderDecoderModel
from ..tokenizer import Tokenizer
from ..tokenizer.special_tokens import Encoded, encode_sources, encode_targets, target_end_token


@dataclass(frozen=True)
class TextEncoder:
    """Turns texts into ids that one model can read.

    The result of a text that cannot be used has a `reason`; no exception is raised.

    Attributes:
        special_tokens: ids before and after a source.
        max_input_length: the most tokens of a source, special tokens included.
        truncation: cut longer sources, where a call does not decide it.
    """

    model: EncoderDecoderModel
    tokenizer: Tokenizer
    special_tokens: tuple[list[int], list[int]]
    max_input_length: int
    truncation: bool

    def sources(self, texts: Sequence[Any], truncation: bool | None = None) -> list[Encoded]:
        """Texts as the encoder reads them, with special tokens; a text without tokens has no ids."""
        return encode_sources(
            texts,
            self.tokenizer,
            self.special_tokens,
            limit=self.max_input_length,
            vocabulary=self.model.config.encoder.vocab_size,
            truncation=self.truncation if truncation is None else truncation,
        )

    def targets(self, targets: Sequence[Any], end: int) -> list[Encoded]:
        """Targets as the decoder writes them: a text is followed by the token `end`, lists of ids are kept."""
        config = self.model.config.decoder
        return encode_targets(targets, self.tokenizer, end, limit=config.max_tokens, vocabulary=config.vocab_size)

    def target_end(self, options: GenerationConfig) -> int:
        """The token that ends a target; ConfigError where neither the model nor its tokenizer has one."""
        return target_end_token(self.model.config, self.tokenizer, options)
