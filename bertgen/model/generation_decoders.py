"""Decoders of the decode loop (`decoding.Decoder`): with a cache, or without."""

from __future__ import annotations

from typing import Any

import torch

from ..config import GenerationConfig
from ..layers.attention import AttentionContext, Attentions
from ..layers.decoder_step import is_wide
from ..packing import Packing
from .generation_inputs import GenerationInputs
from .inputs import positions_of


class CachedDecoder:
    """A causal decoder with a cache: a step computes the newest tokens only.

    Args:
        options: resolved.

    Attributes:
        states, attentions, cross_attentions: of each step, where they are returned; else None.
    """

    def __init__(self, decoder: Any, inputs: GenerationInputs, options: GenerationConfig):
        self.decoder, self.cache, self.source = decoder, inputs.cache, inputs.source
        width = max(options.num_beams, options.num_return_sequences)
        self.embeds, self.mask, self.positions, self.types = (
            x if x is None or width == 1 else x.repeat_interleave(width, 0)
            for x in (inputs.embeds, inputs.mask, inputs.positions, inputs.types)
        )
        self.rows = inputs.prefix.shape[0] * width
        self.states: tuple[Any, ...] | None = () if options.output_hidden_states else None
        self.attentions: tuple[Any, ...] | None = () if options.output_attentions else None
        self.cross_attentions: tuple[Any, ...] | None = None
        self._prepare(inputs.prefix)

    def _prepare(self, prefix: torch.Tensor) -> None:
        """Make the cache where the inputs have none."""
        if self.cache is None:
            source = None if self.source is None else self.source[1]
            columns = prefix.shape[1] if self.embeds is None else self.embeds.shape[1]
            self.cache = self.decoder.body.new_cache(self.rows, columns, prefix.device, source)
        self.cached = self.cache.length  # tokens of the prefix that the cache has already
        if self.source is not None and prefix.shape[1] == 1 and self._is_wide():
            self._write_sources()  # so that the first step is as all others

    def _write_sources(self) -> None:
        self.decoder.body.encoder.write_sources(self.cache, self.source[0])
        self.source = None

    def _is_wide(self) -> bool:
        """Whether steps may be those of the C++ runner in 16 bits."""
        given = (self.embeds, self.mask, self.positions, self.types, self.states, self.attentions)
        return all(x is None for x in given) and is_wide(self.decoder.body.embeddings, self.decoder.head)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, T], the T newest tokens of each row -> logits [R, vocab] of the next."""
        embeds, self.embeds = self.embeds, None
        ids = tokens[:, self.cached :] if embeds is None else None
        embeds = None if embeds is None else embeds[:, self.cached :]
        self.cached, past = 0, self.cache.length
        length = (ids if embeds is None else embeds).shape[1]
        fits = past < self.decoder.config.max_tokens  # else an error says so below
        if fits and length == 1 and embeds is None and self.source is None and self._is_wide():
            with self.cache.step(1):
                return self.decoder.step(ids.flatten(), AttentionContext.of_step(self.cache))
        with self.cache.step(length):
            hidden = self._run(ids, embeds, length, past, causal=True)
        self.source = None  # its keys and values are in the cache now
        return self.decoder.head(hidden if length == 1 else hidden[length - 1 :: length])

    def _run(
        self, ids: torch.Tensor | None, embeds: torch.Tensor | None, length: int, past: int, causal: bool
    ) -> torch.Tensor:
        """States [R * length, hidden] of the decoder's stack for `length` tokens of each row after `past` others."""
        device = (ids if embeds is None else embeds).device
        if self.positions is None:
            positions = positions_of(None, ids, self.rows, length, past, self.decoder.config, device)
        else:
            positions = self.positions[:, -length:]
        attentions = None if self.attentions is None else Attentions()
        states: list[torch.Tensor] | None = None if self.states is None else []
        tokens = Packing.full(self.rows, length, device)
        context = AttentionContext(
            tokens, causal, key_mask=self.mask, cache=self.cache, source=self.source, attentions=attentions,
            askers=self._source_queries(tokens),
        )  # fmt: skip
        hidden = self.decoder.body.packed(
            None if ids is None else ids.flatten(),
            positions.flatten(),
            context,
            None if embeds is None else embeds.flatten(0, 1),
            states,
            None if self.types is None else self.types[:, -length:].flatten(),
        )
        if states is not None:
            self.states += (tuple(x.unflatten(0, (self.rows, length)) for x in states),)
        if attentions is not None:
            self.attentions += (tuple(attentions.own),)
            if attentions.cross:
                self.cross_attentions = (self.cross_attentions or ()) + (tuple(attentions.cross),)
        self._extend()
        return hidden

    def _source_queries(self, tokens: Packing) -> tuple[torch.Tensor, int] | None:
        """`AttentionContext.askers` of these tokens; None where the cache holds which rows share a source."""
        return None

    def _extend(self) -> None:
        """Extend mask, positions and types by the next token of each row."""
        if self.mask is not None:
            self.mask = torch.cat((self.mask, torch.ones_like(self.mask[:, :1])), 1)
        if self.positions is not None:
            self.positions = torch.cat((self.positions, self.positions[:, -1:] + 1), 1)
        if self.types is not None:
            self.types = torch.cat((self.types, self.types[:, -1:]), 1)

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r continues row rows[r], which has the same source."""
        self.cache.reorder(rows)

    def select(self, rows: torch.Tensor) -> None:
        """Keep only these rows."""
        self.cache.select(rows)
        self._keep(rows)

    def _keep(self, rows: torch.Tensor) -> None:
        self.rows = rows.numel()
        self.mask, self.positions, self.types = (
            None if x is None else x[rows] for x in (self.mask, self.positions, self.types)
        )


class ForwardDecoder(CachedDecoder):
    """A causal decoder with a cache that calls the model's `forward` in each step.

    For a model with a hook or a patched forward on itself, its decoder or the decoder's stack: the hook runs in every
    step, and its changes take effect.
    """

    def __init__(self, model: Any, inputs: GenerationInputs, options: GenerationConfig):
        super().__init__(model.decoder if inputs.is_encoder_decoder else model, inputs, options)
        self.model, self.encoder_output = model, inputs.encoder_output

    def _prepare(self, prefix: torch.Tensor) -> None:
        super()._prepare(prefix)
        if self.source is not None:  # `forward` has no argument for beams that share a source
            self._write_sources()

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, T], the T newest tokens of each row -> logits [R, vocab] of the next."""
        embeds, self.embeds = self.embeds, None
        inputs = (tokens if embeds is None else embeds)[:, self.cached :]
        self.cached, length = 0, inputs.shape[1]
        is_encoder_decoder = self.model is not self.decoder
        arguments: dict[str, Any] = {
            "input_ids" if embeds is None else "inputs_embeds": inputs,
            "attention_mask": self.mask,
            "position_ids": None if self.positions is None else self.positions[:, -length:],
            "token_type_ids": None if self.types is None else self.types[:, -length:],
        }
        if is_encoder_decoder:
            arguments = {f"decoder_{name}": value for name, value in arguments.items()}
            # The decoder reads keys and values from the cache; the encoder's output is passed for hooks.
            arguments["encoder_outputs"] = self.encoder_output or self._empty_states()
        output = self.model(
            **arguments, past_key_values=self.cache, use_cache=True, output_hidden_states=self.states is not None,
            output_attentions=self.attentions is not None, return_dict=True,
        )  # fmt: skip
        prefix = "decoder_" if is_encoder_decoder else ""
        if self.states is not None:
            self.states += (output[f"{prefix}hidden_states"],)
        if self.attentions is not None:
            self.attentions += (output[f"{prefix}attentions"],)
            if output.cross_attentions:
                self.cross_attentions = (self.cross_attentions or ()) + (output.cross_attentions,)
        self._extend()
        return output.logits[:, -1]

    def _empty_states(self) -> tuple[torch.Tensor]:
        width = self.model.config.encoder.hidden_size
        return (torch.zeros(self.rows, 1, width, dtype=self.model.dtype, device=self.model.device),)


class UncachedDecoder(CachedDecoder):
    """A decoder without a cache: each step computes the states of all tokens again.

    For decoders that are not causal, where a new token changes the states of all earlier ones, and for
    `use_cache=False` where states or attentions are returned.
    """

    def _prepare(self, prefix: torch.Tensor) -> None:
        # All tokens so far: ids [R, L], or embeddings [R, L, hidden] where the inputs were embeddings.
        self.history: torch.Tensor | None = None

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, T], the T newest tokens of each row -> logits [R, vocab] of the next."""
        if self.history is None:
            self.history = tokens if self.embeds is None else self.embeds
        else:
            new = tokens if self.history.dim() == 2 else self.decoder.get_input_embeddings()(tokens)
            self.history = torch.cat((self.history, new), 1)
        ids, embeds = (self.history, None) if self.history.dim() == 2 else (None, self.history)
        length = self.history.shape[1]
        causal = self.decoder.config.is_decoder
        return self.decoder.head(self._run(ids, embeds, length, 0, causal)[length - 1 :: length])

    def _source_queries(self, tokens: Packing) -> tuple[torch.Tensor, int] | None:
        """As `CachedDecoder._source_queries`: the same number of rows for each."""
        sources = 0 if self.source is None else self.source[1].shape[0]
        return tokens.joined([self.rows // sources] * sources) if 0 < sources < self.rows else None

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r continues row rows[r], which has the same source."""
        self.history = self.history[rows]

    def select(self, rows: torch.Tensor) -> None:
        """Keep only these rows."""
        self.history = self.history[rows]
        self._keep(rows)
