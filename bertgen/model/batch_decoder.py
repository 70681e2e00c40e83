"""The decoder of a running batch: rows of any lengths that join and leave."""

from __future__ import annotations

import torch

from ..cache.cache import Cache
from ..layers.attention import AttentionContext
from .encoder_decoder import EncoderDecoderModel


class BatchDecoder:
    """The model's decoder over the rows of a cache, as `decoding.step_searches` calls it."""

    def __init__(self, model: EncoderDecoderModel, cache: Cache):
        self.decoder, self.cache = model.decoder, cache
        self.reorder, self.select = cache.reorder, cache.select
        self._context: AttentionContext | None = None

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, 1], the newest token of each row -> logits [R, vocab] of the next."""
        cache, context = self.cache, self._context
        if context is None or context.tokens.shape[0] != len(tokens):
            self._context = context = AttentionContext.of_step(cache)
        with cache.step(1):
            return self.decoder.step(tokens.flatten(), context)
