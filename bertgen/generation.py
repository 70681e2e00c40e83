"""Generation: the `generate` method of the models, and the decoder as the search drives it."""

from __future__ import annotations

from typing import Any

import torch

from . import search
from .config import GenerationConfig
from .errors import InputError
from .inputs import check_ids, check_tokens
from .layers import AttentionContext
from .outputs import GenerateOutput
from .packing import Packing

FIRST_CAPACITY = 64  # positions a cache begins with; it doubles when they are full


class GenerationMixin:
    """`generate`, for models with an encoder and a decoder."""

    config: Any
    generation_config: GenerationConfig
    decoder: Any
    _encoded: Any

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> torch.Tensor | GenerateOutput:
        """Generate with greedy search, sampling or beam search; tokens and scores are those of transformers.

        Args:
            inputs (or input_ids): int64 [B, S].
            generation_config: options for this call; the model's own fill in what it leaves open.
            attention_mask: [B, S]. Where absent, pad ids of the input count as padding (`infer_attention_mask`).
            position_ids: int64 [B, S], of the encoder.
            generator: source of randomness for sampling; torch's default one otherwise.
            options: see `GenerationConfig`.

        Returns:
            int64 [B * num_return_sequences, L], start token first; with `return_dict_in_generate` a GenerateOutput.

        Raises:
            ConfigError: unknown or contradictory options. UnsupportedError: options bertgen does not have.
            InputError: ids, shapes or lengths outside the model's limits.
        """
        if (inputs is None) == (input_ids is None):
            raise InputError("generate needs input_ids, once")
        ids = inputs if input_ids is None else input_ids
        settled = search.settle(GenerationConfig.of_call(options), generation_config, self.generation_config)
        pad = settled.pad_token_id
        if (
            attention_mask is None
            and settled.infer_attention_mask
            and pad is not None
            and pad not in settled.end_tokens
        ):
            attention_mask = check_tokens(ids, None, self.config.encoder) != pad
        tokens, states = self._encoded(ids, attention_mask, position_ids)
        prefix = torch.full((ids.shape[0], 1), settled.decoder_start_token_id, device=ids.device)
        check_ids(prefix, self.config.decoder.vocab_size, "decoder_start_token_id")
        width = max(settled.num_beams, settled.num_return_sequences)
        if settled.max_length - 1 > self.config.decoder.max_position_embeddings:
            raise InputError(
                f"max_length {settled.max_length} needs {settled.max_length - 1} decoder positions, the model has "
                f"{self.config.decoder.max_position_embeddings}"
            )
        steps = Steps(self.decoder, tokens, states, width)
        return search.decode(steps, search.begin(prefix, settled, generator))


class Steps:
    """The decoder as `search.decode` drives it: tokens of all rows in, logits of all rows out."""

    def __init__(self, decoder: Any, source: Packing, states: torch.Tensor, width: int):
        self.decoder = decoder
        self.cache = decoder.body.new_cache(source.shape[0] * width, FIRST_CAPACITY, states)
        self.cache.source_mask = source.mask()
        self.source: tuple[torch.Tensor, Packing] | None = (states, source)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, T], the T newest tokens of each row -> logits [R, vocab] of the next."""
        rows, length = tokens.shape
        past = self.cache.length
        self.cache.reserve(past + length)
        positions = torch.arange(past, past + length, device=tokens.device).repeat(rows)
        context = AttentionContext(
            Packing.full(rows, length, tokens.device), True, cache=self.cache, source=self.source
        )
        hidden = self.decoder.body.packed(tokens.flatten(), positions, context)
        self.cache.advance(length)
        self.source = None  # its keys and values are in the cache now
        return self.decoder.head(hidden if length == 1 else hidden[length - 1 :: length])

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r goes on from where row rows[r] is."""
        self.cache.reorder(rows)

    def select(self, rows: torch.Tensor, sources: torch.Tensor) -> None:
        """Go on with these rows, of these sources, only."""
        self.cache.select(rows, sources)
