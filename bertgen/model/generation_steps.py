"""The decoder as the search drives it: with a cache, or anew each time."""

from __future__ import annotations

from typing import Any

import torch

from ..config import GenerationConfig
from ..layers.attention import AttentionContext, Attentions
from ..packing import Packing
from .generation_inputs import Prompt
from .inputs import positions_of


class Steps:
    """The decoder as `search.decode` drives it: tokens of all rows in, logits of all rows out.

    Attributes:
        states, attentions, cross_attentions: of each step, where they were asked for; else None.
    """

    def __init__(self, decoder: Any, prompt: Prompt, settled: GenerationConfig):
        self.decoder, self.cache, self.source = decoder, prompt.cache, prompt.source
        width = max(settled.num_beams, settled.num_return_sequences)
        self.embeds, self.mask, self.positions, self.types = (
            x if x is None or width == 1 else x.repeat_interleave(width, 0)
            for x in (prompt.embeds, prompt.mask, prompt.positions, prompt.types)
        )
        self.rows = prompt.prefix.shape[0] * width
        self.states: tuple[Any, ...] | None = () if settled.output_hidden_states else None
        self.attentions: tuple[Any, ...] | None = () if settled.output_attentions else None
        self.cross_attentions: tuple[Any, ...] | None = None
        self._prepare(prompt.prefix)

    def _prepare(self, like: torch.Tensor) -> None:
        if self.cache is None:
            source = None if self.source is None else self.source[1]
            columns = like.shape[1] if self.embeds is None else self.embeds.shape[1]
            self.cache = self.decoder.body.new_cache(self.rows, columns, like.device, source)
        self.known = self.cache.length  # tokens of the prefix that need not be fed

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, T], the T newest tokens of each row -> logits [R, vocab] of the next."""
        embeds, self.embeds = self.embeds, None
        ids = tokens[:, self.known :] if embeds is None else None
        embeds = None if embeds is None else embeds[:, self.known :]
        self.known, past = 0, self.cache.length
        length = (ids if embeds is None else embeds).shape[1]
        with self.cache.step(length):
            hidden = self._run(ids, embeds, length, past, causal=True)
        self.source = None  # its keys and values are in the cache now
        return self.decoder.head(hidden if length == 1 else hidden[length - 1 :: length])

    def _run(
        self, ids: torch.Tensor | None, embeds: torch.Tensor | None, length: int, past: int, causal: bool
    ) -> torch.Tensor:
        """The decoder's stack on `length` tokens of each row that stand behind `past` others: [R * length, hidden]."""
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
            askers=self._askers(tokens),
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

    def _askers(self, tokens: Packing) -> tuple[torch.Tensor, int] | None:
        """Which rows share a row of the source; None where the cache knows."""
        return None

    def _extend(self) -> None:
        """The next token of each row is real, stands behind the last, and is of its type."""
        if self.mask is not None:
            self.mask = torch.cat((self.mask, torch.ones_like(self.mask[:, :1])), 1)
        if self.positions is not None:
            self.positions = torch.cat((self.positions, self.positions[:, -1:] + 1), 1)
        if self.types is not None:
            self.types = torch.cat((self.types, self.types[:, -1:]), 1)

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r goes on from where row rows[r], of the same source, is."""
        self.cache.reorder(rows)

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        self.cache.select(rows)
        self._keep(rows)

    def _keep(self, rows: torch.Tensor) -> None:
        self.rows = rows.numel()
        self.mask, self.positions, self.types = (
            None if x is None else x[rows] for x in (self.mask, self.positions, self.types)
        )


class Calls(Steps):
    """A causal decoder through the forward of the whole model, where something is hung on it, on the decoder or on the
    stack in that: hooks see every call, and what they change holds.
    """

    def __init__(self, model: Any, prompt: Prompt, settled: GenerationConfig):
        super().__init__(model.decoder if prompt.joint else model, prompt, settled)
        self.model, self.encoded = model, prompt.encoded

    def _prepare(self, like: torch.Tensor) -> None:
        super()._prepare(like)
        if self.source is not None:  # beams share it, which a call cannot say
            self.decoder.body.encoder.write_sources(self.cache, self.source[0])
            self.source = None

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, T], the T newest tokens of each row -> logits [R, vocab] of the next."""
        embeds, self.embeds = self.embeds, None
        inputs = (tokens if embeds is None else embeds)[:, self.known :]
        self.known, length = 0, inputs.shape[1]
        joint = self.model is not self.decoder
        given: dict[str, Any] = {
            "input_ids" if embeds is None else "inputs_embeds": inputs,
            "attention_mask": self.mask,
            "position_ids": None if self.positions is None else self.positions[:, -length:],
            "token_type_ids": None if self.types is None else self.types[:, -length:],
        }
        if joint:
            given = {f"decoder_{name}": value for name, value in given.items()}
            # Read from the cache; what the encoder gave is there for whoever looks at the call.
            given["encoder_outputs"] = self.encoded or self._no_states()
        output = self.model(
            **given, past_key_values=self.cache, use_cache=True, output_hidden_states=self.states is not None,
            output_attentions=self.attentions is not None, return_dict=True,
        )  # fmt: skip
        prefix = "decoder_" if joint else ""
        if self.states is not None:
            self.states += (output[f"{prefix}hidden_states"],)
        if self.attentions is not None:
            self.attentions += (output[f"{prefix}attentions"],)
            if output.cross_attentions:
                self.cross_attentions = (self.cross_attentions or ()) + (output.cross_attentions,)
        self._extend()
        return output.logits[:, -1]

    def _no_states(self) -> tuple[torch.Tensor]:
        width = self.model.config.encoder.hidden_size
        return (torch.zeros(self.rows, 1, width, dtype=self.model.dtype, device=self.model.device),)


class Reruns(Steps):
    """A decoder without a cache: the states of all tokens are computed anew in each step.

    For one that is not causal, where each new token changes the states of all before it, and for `use_cache=False`
    where somebody looks at the states.
    """

    def _prepare(self, like: torch.Tensor) -> None:
        self.fed: torch.Tensor | None = None  # all so far: ids [R, L] or, behind embeddings, embeddings [R, L, hidden]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, T], the T newest tokens of each row -> logits [R, vocab] of the next."""
        if self.fed is None:
            self.fed = tokens if self.embeds is None else self.embeds
        else:
            new = tokens if self.fed.dim() == 2 else self.decoder.get_input_embeddings()(tokens)
            self.fed = torch.cat((self.fed, new), 1)
        ids, embeds = (self.fed, None) if self.fed.dim() == 2 else (None, self.fed)
        length = self.fed.shape[1]
        causal = self.decoder.config.is_decoder
        return self.decoder.head(self._run(ids, embeds, length, 0, causal)[length - 1 :: length])

    def _askers(self, tokens: Packing) -> tuple[torch.Tensor, int] | None:
        """As `Steps._askers`: as many rows for each."""
        sources = 0 if self.source is None else self.source[1].shape[0]
        return tokens.joined([self.rows // sources] * sources) if 0 < sources < self.rows else None

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r goes on from where row rows[r], of the same source, is."""
        self.fed = self.fed[rows]

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        self.fed = self.fed[rows]
        self._keep(rows)
