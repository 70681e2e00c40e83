"""Generation: the `generate` method of the models, and the decoder as the search drives it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import processors, search, stopping
from .cache import Cache
from .config import EncoderDecoderConfig, GenerationConfig
from .errors import ConfigError, InputError
from .inputs import check_ids, check_mask, check_tokens, check_types, pack_source, positions_of
from .layers import AttentionContext, Attentions
from .outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
    GenerateOutput,
)
from .packing import Packing

FIRST_CAPACITY = 64  # positions a cache begins with; it doubles when they are full


class GenerationMixin:
    """`generate`, for encoder-decoders and for decoders on their own."""

    config: Any
    generation_config: GenerationConfig
    decoder: Any  # of an encoder-decoder

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[processors.Processor] | None = None,
        stopping_criteria: Sequence[stopping.Criterion] | None = None,
        prefix_allowed_tokens_fn: processors.AllowedTokens | None = None,
        *,
        streamer: Any = None,
        tokenizer: Any = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> torch.Tensor | GenerateOutput:
        """Generate with greedy search, sampling or beam search; tokens and scores are those of transformers.

        Args:
            inputs (or input_ids): int64 [B, S]; for a decoder on its own the prompt, best padded on the left. One
                bos token where nothing is given.
            generation_config: options for this call; the model's own fill in what it leaves open.
            logits_processor: functions (tokens so far int64 [R, L], scores float32 [R, V]) -> scores, called after the
                processors of the options and before those of sampling.
            stopping_criteria: functions (tokens so far, scores of all steps or None) -> bool [R], or one bool.
            prefix_allowed_tokens_fn: function (source, its tokens so far int64 [L]) -> ids one of which comes next.
            streamer: gets the tokens as they are chosen, see `bertgen.streamers`; not with beams.
            tokenizer: for `stop_strings`.
            generator: source of randomness for sampling; torch's default one otherwise.
            options: those of `GenerationConfig`, and inputs of the model:
                attention_mask: [B, S]. Where absent, pad ids of the input count as padding (`infer_attention_mask`).
                position_ids, token_type_ids: int64 [B, S]. inputs_embeds: [B, S, hidden], in place of ids.
                past_key_values: the cache an earlier call returned; it goes on from there. The ids are those of the
                    whole sequence so far.
              Of an encoder-decoder:
                encoder_outputs: what the encoder returned; saves encoding.
                decoder_input_ids: int64 [B, P] to begin with. The start token goes in front unless some row has it.
                decoder_attention_mask, decoder_position_ids: [B, P].
              Of a decoder on its own:
                encoder_hidden_states: [B, S, hidden], encoder_attention_mask: [B, S], if it has cross-attention.

        Returns:
            int64 [B * num_return_sequences, L], start token or prompt first; with `return_dict_in_generate` a
            GenerateEncoderDecoderOutput or GenerateDecoderOnlyOutput.

        Raises:
            ConfigError: unknown or contradictory options. UnsupportedError: options bertgen does not have.
            InputError: ids, shapes or lengths outside the model's limits.
        """
        prepare: Any = _pair_prompt if isinstance(self.config, EncoderDecoderConfig) else _decoder_prompt
        # The keywords of `prepare` are the inputs of the model, all others are options.
        given = {name: options.pop(name) for name in prepare.__kwdefaults__ if name in options}
        if inputs is not None:
            if given.get("input_ids") is not None:
                raise InputError("inputs and input_ids are two names of one argument; give one of them")
            given["input_ids"] = inputs
        levels = GenerationConfig.of_call(options, generation_config, self.generation_config)
        prompt, settled = prepare(self, levels, **given)
        if streamer is not None and settled.num_beams > 1:
            raise ConfigError(f"a streamer cannot be used with num_beams {settled.num_beams}: beams change their past")
        decoder = self.decoder if prompt.joint else self
        rules = processors.build(
            settled, decoder.config.vocab_size, prompt.prefix, prefix_mask=prompt.mask, source_ids=prompt.source_ids,
            allowed=prefix_allowed_tokens_fn, custom=logits_processor,
        )  # fmt: skip
        criteria = stopping.build(settled, tokenizer, stopping_criteria)
        searching = search.begin(prompt.prefix, settled, rules, criteria, generator)
        steps = (Steps if decoder.config.is_decoder else Reruns)(decoder, prompt, settled)
        found = search.decode(steps, searching, streamer)
        if not settled.return_dict_in_generate:
            return found.sequences
        cache = steps.cache if settled.use_cache else None
        if not prompt.joint:
            return GenerateDecoderOnlyOutput(
                **vars(found), attentions=steps.attentions, hidden_states=steps.states, past_key_values=cache
            )
        encoded = prompt.encoded
        return GenerateEncoderDecoderOutput(
            **vars(found),
            encoder_attentions=encoded.attentions if encoded and settled.output_attentions else None,
            encoder_hidden_states=encoded.hidden_states if encoded and settled.output_hidden_states else None,
            decoder_attentions=steps.attentions,
            cross_attentions=steps.cross_attentions,
            decoder_hidden_states=steps.states,
            past_key_values=cache,
        )

    def compute_transition_scores(
        self,
        sequences: torch.Tensor,
        scores: Sequence[torch.Tensor],
        beam_indices: torch.Tensor | None = None,
        normalize_logits: bool = False,
    ) -> torch.Tensor:
        """The score of each token that was generated, float32 [N, steps]; 0 behind the end of a beam's output.

        Args:
            sequences: int64 [N, L]; scores: per step [R, vocab]; beam_indices: [N, steps], as `generate` returned them.
            normalize_logits: make log-probabilities of the scores first.
        """
        table = torch.stack(tuple(scores))
        if normalize_logits:
            table = table.log_softmax(-1)
        if beam_indices is None:  # row r is output r
            beam_indices = torch.arange(table.shape[1], device=sequences.device)[:, None].expand(-1, len(table))
        steps = int((beam_indices >= 0).sum(1).max())
        rows = beam_indices[:, :steps].long()
        tokens = sequences[:, sequences.shape[1] - steps :]
        found = table[torch.arange(steps, device=rows.device), rows.clamp(min=0), tokens]
        return found.masked_fill(rows < 0, 0.0)


@dataclass(frozen=True)
class Prompt:
    """What a call generates from, B rows of it.

    Attributes:
        prefix: int64 [B, P], what the outputs begin with.
        joint: for an encoder-decoder.
        embeds: [B, E, hidden], fed in place of the prefix.
        mask: bool [B, P or E], False at padding; None where all is real.
        positions, types: int64 [B, P or E]; None where the decoder counts by itself, has no types.
        cache: what an earlier call left.
        source: packed encoder states and their rows; None without, or where the cache has their keys and values.
        source_ids: int64 [B, S], the ids that the processors of the input look at.
        encoded: what the encoder returned.
    """

    prefix: torch.Tensor
    joint: bool
    embeds: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    types: torch.Tensor | None = None
    cache: Cache | None = None
    source: tuple[torch.Tensor, Packing] | None = None
    source_ids: torch.Tensor | None = None
    encoded: BaseModelOutputWithPastAndCrossAttentions | None = None


def _pair_prompt(
    model: Any,
    levels: GenerationConfig,
    *,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    encoder_outputs: Any = None,
    decoder_input_ids: torch.Tensor | None = None,
    decoder_attention_mask: torch.Tensor | None = None,
    decoder_position_ids: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
) -> tuple[Prompt, GenerationConfig]:
    """The prompt and the settled options of an encoder-decoder; the encoder has run."""
    config = model.config.decoder
    start = levels.bos_token_id if levels.decoder_start_token_id is None else levels.decoder_start_token_id
    if start is None:
        raise ConfigError("generation needs decoder_start_token_id or bos_token_id")
    cached = isinstance(past_key_values, Cache) and past_key_values.has_cross
    if isinstance(encoder_outputs, (tuple, list)):
        encoder_outputs = BaseModelOutputWithPastAndCrossAttentions(*encoder_outputs[:1])
    states = getattr(encoder_outputs, "last_hidden_state", None)
    if encoder_outputs is not None and not isinstance(states, torch.Tensor):
        raise InputError("encoder_outputs must be what the encoder returned, or a tuple that begins with its states")
    if input_ids is None and inputs_embeds is None and states is None and not cached:
        input_ids = _bos(levels, 1 if decoder_input_ids is None else len(decoder_input_ids), model.device)
    if states is None and not cached:
        check_tokens(input_ids, inputs_embeds, model.config.encoder)
    given = [x for x in (input_ids, inputs_embeds, states, decoder_input_ids) if x is not None]
    if not given:
        raise InputError("past_key_values need decoder_input_ids: the whole sequence so far")
    rows, device = given[0].shape[0], given[0].device
    if attention_mask is None and input_ids is not None:
        attention_mask = _inferred_mask(input_ids, levels)

    prefix = torch.full((rows, 1), start, device=device)
    check_ids(prefix, config.vocab_size, "decoder_start_token_id")
    mask = decoder_attention_mask
    if decoder_input_ids is not None:
        _check_prefix(decoder_input_ids, rows, config.vocab_size)
        mask = check_mask(mask, rows, decoder_input_ids.shape[1], "decoder_attention_mask")
        if bool((decoder_input_ids[:, 0] != start).all()):
            prefix = torch.cat((prefix, decoder_input_ids), 1)
            mask = None if mask is None else torch.cat((torch.ones_like(mask[:, :1]), mask), 1)
        else:
            prefix = decoder_input_ids.long()
    length = prefix.shape[1]
    mask = _partial(check_mask(mask, rows, length, "decoder_attention_mask"))
    settled = search.settle(levels, length)
    last, limit = length - 1, config.max_tokens
    if decoder_position_ids is not None:
        decoder_position_ids = positions_of(decoder_position_ids, prefix, rows, length, 0, config, device)
        last, limit = int(decoder_position_ids[:, -1].max()), config.max_position_embeddings
    _check_room(settled, length, last, limit)
    _check_cache(past_key_values, settled, rows, length)

    source = None
    if encoder_outputs is None and not cached:
        encoder_outputs = model.encoder(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            token_type_ids=token_type_ids, inputs_embeds=inputs_embeds, return_dict=True,
            output_attentions=settled.output_attentions, output_hidden_states=settled.output_hidden_states,
        )  # fmt: skip
    if not cached:
        source = pack_source(model.bridged(encoder_outputs.last_hidden_state), attention_mask, rows)
    prompt = Prompt(
        prefix, True, mask=mask, positions=decoder_position_ids, cache=past_key_values, source=source,
        source_ids=input_ids, encoded=encoder_outputs,
    )  # fmt: skip
    return prompt, settled


def _decoder_prompt(
    model: Any,
    levels: GenerationConfig,
    *,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    encoder_hidden_states: torch.Tensor | None = None,
    encoder_attention_mask: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
) -> tuple[Prompt, GenerationConfig]:
    """The prompt and the settled options of a decoder on its own."""
    config = model.config
    if input_ids is None and inputs_embeds is None:
        input_ids = _bos(levels, 1 if encoder_hidden_states is None else len(encoder_hidden_states), model.device)
    if input_ids is not None:
        check_tokens(input_ids, None, config)
    given = input_ids
    if inputs_embeds is not None:
        given = check_tokens(None, inputs_embeds, config)
        if input_ids is not None and input_ids.shape != given.shape[:2]:
            raise InputError(
                f"input_ids {tuple(input_ids.shape)} and inputs_embeds {tuple(given.shape)} are of different lengths"
            )
    (rows, length), device = given.shape[:2], given.device
    if attention_mask is None and input_ids is not None:
        attention_mask = _inferred_mask(input_ids, levels)
    mask = _partial(check_mask(attention_mask, rows, length, "attention_mask"))
    if mask is not None and rows > 1 and not bool(mask[:, -1].all()):
        warnings.warn(
            "the prompt is padded on the right: outputs go on behind the padding. Pad on the left (padding_side)",
            UserWarning,
            stacklevel=4,
        )
    prefix = torch.empty((rows, 0), dtype=torch.int64, device=device) if input_ids is None else input_ids.long()
    embedded = 0 if input_ids is not None else length
    settled = search.settle(levels, length - embedded, embedded, config.max_tokens)
    if position_ids is not None:
        position_ids = positions_of(position_ids, input_ids, rows, length, 0, config, device)
    elif mask is not None:
        position_ids = (mask.cumsum(1) - 1).masked_fill(~mask, 0) + config.first_position
    last, limit = length - 1, config.max_tokens
    if position_ids is not None:
        last, limit = int(position_ids[:, -1].max()), config.max_position_embeddings
    _check_room(settled, length - embedded, last, limit)
    for name, value in (("past_key_values", past_key_values), ("encoder_hidden_states", encoder_hidden_states)):
        if value is not None and not config.is_decoder:
            raise InputError(f"{name} need a causal decoder (config.is_decoder=True)")
    _check_cache(past_key_values, settled, rows, length)
    source = None
    if encoder_hidden_states is not None and not (past_key_values is not None and past_key_values.has_cross):
        source = pack_source(encoder_hidden_states, encoder_attention_mask, rows)
    prompt = Prompt(
        prefix, False, inputs_embeds, mask, position_ids, check_types(token_type_ids, (rows, length), config),
        past_key_values, source, source_ids=input_ids if inputs_embeds is None else None,
    )  # fmt: skip
    return prompt, settled


def _bos(levels: GenerationConfig, rows: int, device: torch.device) -> torch.Tensor:
    """What is generated from where a call names no input."""
    if levels.bos_token_id is None:
        raise InputError("generate needs input_ids: there is no bos_token_id to begin with")
    return torch.full((rows, 1), levels.bos_token_id, device=device)


def _inferred_mask(ids: torch.Tensor, levels: GenerationConfig) -> torch.Tensor | None:
    """Pad ids of the input are padding, unless they end outputs too."""
    pad = levels.pad_token_id
    if levels.infer_attention_mask is False or pad is None or pad in levels.end_tokens:
        return None
    return ids != pad


def _partial(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask as bool; None where it hides nothing."""
    return None if mask is None or bool(mask.all()) else mask.bool()


def _check_prefix(ids: torch.Tensor, rows: int, vocabulary: int) -> None:
    if ids.dim() != 2 or ids.shape[0] != rows or ids.shape[1] == 0:
        raise InputError(f"decoder_input_ids have shape {tuple(ids.shape)}, expected ({rows}, at least 1)")
    check_ids(ids, vocabulary, "decoder_input_ids")


def _check_room(settled: GenerationConfig, prefix: int, last: int, limit: int) -> None:
    """The last token that is fed has a position: `last` is that of the prefix's last token."""
    needed = last + settled.max_length - prefix
    if needed > limit:
        raise InputError(f"max_length {settled.max_length} needs {needed} decoder positions, the model has {limit}")


def _check_cache(cache: Any, settled: GenerationConfig, rows: int, length: int) -> None:
    if cache is None:
        return
    if not isinstance(cache, Cache):
        raise InputError(f"past_key_values must be the Cache that an earlier call returned, got {type(cache).__name__}")
    width = max(settled.num_beams, settled.num_return_sequences)
    if width > 1:
        raise InputError(f"past_key_values go on with one output per row, not with {width} (num_beams, n-best)")
    if cache.rows != rows:
        raise InputError(f"past_key_values hold {cache.rows} rows, the input has {rows}")
    if cache.length >= length:
        raise InputError(
            f"past_key_values hold {cache.length} tokens a row, the input has {length}: it must be the whole sequence "
            "so far, with at least one token more"
        )


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
            self.cache = self.decoder.body.new_cache(self.rows, FIRST_CAPACITY, like)
        self.known = self.cache.length  # tokens of the prefix that need not be fed
        if self.source is not None:
            self.cache.source_mask = self.source[1].mask()

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, T], the T newest tokens of each row -> logits [R, vocab] of the next."""
        embeds, self.embeds = self.embeds, None
        ids = tokens[:, self.known :] if embeds is None else None
        embeds = None if embeds is None else embeds[:, self.known :]
        self.known, past = 0, self.cache.length
        length = (ids if embeds is None else embeds).shape[1]
        self.cache.reserve(past + length)
        hidden = self._run(ids, embeds, length, past, causal=True)
        self.cache.advance(length)
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
        context = AttentionContext(
            Packing.full(self.rows, length, device), causal, key_mask=self.mask, cache=self.cache, source=self.source,
            attentions=attentions,
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

    def select(self, rows: torch.Tensor, sources: torch.Tensor) -> None:
        """Go on with these rows, of these sources, only."""
        self.cache.select(rows, sources)
        self._keep(rows)

    def _keep(self, rows: torch.Tensor) -> None:
        self.rows = rows.numel()
        self.mask, self.positions, self.types = (
            None if x is None else x[rows] for x in (self.mask, self.positions, self.types)
        )


class Reruns(Steps):
    """A decoder that is not causal: each new token changes the states of all before it, so all are computed anew."""

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
        return self.decoder.head(self._run(ids, embeds, length, 0, causal=False)[length - 1 :: length])

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r goes on from where row rows[r], of the same source, is."""
        self.fed = self.fed[rows]

    def select(self, rows: torch.Tensor, sources: torch.Tensor) -> None:
        """Go on with these rows only."""
        self.fed = self.fed[rows]
        self._keep(rows)
