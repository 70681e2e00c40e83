"""The special tokens that stand around the texts of a model, which depend on how it was trained."""

from __future__ import annotations

from .config import BertConfig, EncoderDecoderConfig
from .errors import ConfigError
from .tokenizer import Tokenizer


def source_frame(config: EncoderDecoderConfig, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids before and behind a source.

    A BERT or RoBERTa encoder reads [CLS] text [SEP], as in its pre-training; a bert-generation encoder reads the bare
    text, whichever tokenizer cut it (Rothe et al. 2020; the published models of that kind were trained so).
    """
    if not isinstance(config.encoder, BertConfig):
        return [], []
    before, _, behind = tokenizer.frame(pair=False)
    return before, behind


def end_of_target(config: EncoderDecoderConfig | None, tokenizer: Tokenizer) -> int:
    """Id that ends a target: what the model stops at, else the tokenizer's end token; ConfigError without one."""
    own = None if config is None else config.eos_token_id
    if own is None and config is not None:
        own = config.decoder.eos_token_id
    for end in (own, tokenizer.eos_token_id, tokenizer.sep_token_id):
        if end is not None:
            return end[0] if isinstance(end, list) else end
    raise ConfigError("neither the model nor its tokenizer has a token that ends a text (eos_token or sep_token)")
