"""Inputs of a `generate` call: checked, with the states of the encoder and the resolved options."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from .. import decoding
from ..cache.cache import Cache
from ..config import GenerationConfig
from ..errors import ConfigError, InputError
from ..outputs import BaseModelOutputWithPastAndCrossAttentions
from ..packing import Packing
from .inputs import (
    check_cache,
    check_encoded,
    check_ids,
    check_mask,
    check_states,
    check_tensors,
    check_tokens,
    check_types,
    pack_source,
    positions_of,
)


@dataclass(frozen=True)
class GenerationInputs:
    """Inputs of a `generate` call for B sources.

    Attributes:
        prefix: int64 [B, P], the first tokens of the outputs.
        is_encoder_decoder: whether the model has an encoder.
        embeds: [B, E, hidden], input of the decoder in place of the prefix.
        mask: bool [B, P or E], False at padding; None without padding.
        positions, types: int64 [B, P or E]; None for the decoder's default positions, and without token types.
        cache: of an earlier call.
        source: packed encoder states and their rows; None without, or where the cache has their keys and values.
        source_ids: int64 [B, S], the input ids for logits processors.
        encoder_output: return value of the encoder.
    """

    prefix: torch.Tensor
    is_encoder_decoder: bool
    embeds: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    types: torch.Tensor | None = None
    cache: Cache | None = None
    source: tuple[torch.Tensor, Packing] | None = None
    source_ids: torch.Tensor | None = None
    encoder_output: BaseModelOutputWithPastAndCrossAttentions | None = None


def encoder_decoder_inputs(
    model: Any,
    options: GenerationConfig,
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
) -> tuple[GenerationInputs, GenerationConfig]:
    """Run the encoder; returns the inputs and the resolved options of an encoder-decoder.

    Args:
        options: the merged options of the call (`GenerationConfig.of_call`).
        others: as in `GenerationMixin.generate`.
    """
    config = model.config.decoder
    start = options.bos_token_id if options.decoder_start_token_id is None else options.decoder_start_token_id
    if start is None:
        raise ConfigError("generation needs decoder_start_token_id or bos_token_id")
    check_tensors(
        None, attention_mask=attention_mask, position_ids=position_ids, token_type_ids=token_type_ids,
        decoder_input_ids=decoder_input_ids, decoder_attention_mask=decoder_attention_mask,
        decoder_position_ids=decoder_position_ids,
    )  # fmt: skip
    check_cache(past_key_values, config, len(model.decoder.body.encoder.layer))
    cached = past_key_values is not None and past_key_values.has_cross
    states = None
    if encoder_outputs is not None:
        encoder_outputs = check_encoded(encoder_outputs, model.config.encoder.hidden_size)
        states = encoder_outputs.last_hidden_state
    if input_ids is None and inputs_embeds is None and states is None and not cached:
        input_ids = _bos_ids(options, 1 if decoder_input_ids is None else len(decoder_input_ids), model.device)
    if states is None and not cached:
        check_tokens(input_ids, inputs_embeds, model.config.encoder)
    inputs = [x for x in (input_ids, inputs_embeds, states, decoder_input_ids) if x is not None]
    if not inputs:
        raise InputError("past_key_values need decoder_input_ids: the whole sequence so far")
    rows, device = inputs[0].shape[0], inputs[0].device
    if attention_mask is None and input_ids is not None:
        attention_mask = infer_attention_mask(input_ids, options)

    prefix = torch.full((rows, 1), start, dtype=torch.int64, device=device)
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
    mask = _bool_mask(check_mask(mask, rows, length, "decoder_attention_mask"))
    resolved = decoding.resolve_generation_config(options, length)
    last, limit = length - 1, config.max_tokens
    if decoder_position_ids is not None:
        decoder_position_ids = positions_of(decoder_position_ids, prefix, rows, length, 0, config, device)
        last, limit = int(decoder_position_ids[:, -1].max()), config.max_position_embeddings
    _check_positions(resolved, length, last, limit)
    _check_cache_rows(past_key_values, resolved, rows, length)

    source = None
    if encoder_outputs is None and not cached:
        encoder_outputs = model.encoder(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            token_type_ids=token_type_ids, inputs_embeds=inputs_embeds, return_dict=True,
            output_attentions=resolved.output_attentions, output_hidden_states=resolved.output_hidden_states,
        )  # fmt: skip
    if not cached:
        source = pack_source(model.bridged(encoder_outputs.last_hidden_state), attention_mask, rows)
    generation_inputs = GenerationInputs(
        prefix, True, mask=mask, positions=decoder_position_ids, cache=past_key_values, source=source,
        source_ids=input_ids, encoder_output=encoder_outputs,
    )  # fmt: skip
    return generation_inputs, resolved


def decoder_only_inputs(
    model: Any,
    options: GenerationConfig,
    *,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    encoder_hidden_states: torch.Tensor | None = None,
    encoder_attention_mask: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
) -> tuple[GenerationInputs, GenerationConfig]:
    """The inputs and the resolved options of a decoder on its own; arguments as `encoder_decoder_inputs`."""
    config = model.config
    check_tensors(
        None, attention_mask=attention_mask, position_ids=position_ids, encoder_attention_mask=encoder_attention_mask
    )
    if encoder_hidden_states is not None:
        check_states(encoder_hidden_states, config.hidden_size, "encoder_hidden_states")
    check_cache(past_key_values, config, len(model.body.encoder.layer))
    if input_ids is None and inputs_embeds is None:
        input_ids = _bos_ids(options, 1 if encoder_hidden_states is None else len(encoder_hidden_states), model.device)
    if input_ids is not None:
        check_tokens(input_ids, None, config)
    tokens = input_ids
    if inputs_embeds is not None:
        tokens = check_tokens(None, inputs_embeds, config)
        if input_ids is not None and input_ids.shape != tokens.shape[:2]:
            raise InputError(
                f"input_ids {tuple(input_ids.shape)} and inputs_embeds {tuple(tokens.shape)} are of different lengths"
            )
    (rows, length), device = tokens.shape[:2], tokens.device
    if attention_mask is None and input_ids is not None:
        attention_mask = infer_attention_mask(input_ids, options)
    mask = _bool_mask(check_mask(attention_mask, rows, length, "attention_mask"))
    if mask is not None and rows > 1 and not bool(mask[:, -1].all()):
        warnings.warn(
            "the prompt is padded on the right: outputs continue after the padding. Pad on the left (padding_side)",
            UserWarning,
            stacklevel=4,
        )
    prefix = torch.empty((rows, 0), dtype=torch.int64, device=device) if input_ids is None else input_ids.long()
    embedded = 0 if input_ids is not None else length
    limit = config.max_tokens if position_ids is None else config.max_position_embeddings
    resolved = decoding.resolve_generation_config(options, length - embedded, embedded, limit)
    if inputs_embeds is not None and config.is_decoder:
        resolved.use_cache = True  # as transformers, which has no embeddings for the generated tokens
    if position_ids is not None:
        position_ids = positions_of(position_ids, input_ids, rows, length, 0, config, device)
    elif mask is not None:
        position_ids = (mask.cumsum(1) - 1).masked_fill(~mask, 0) + config.first_position
    last, limit = length - 1, config.max_tokens
    if position_ids is not None:
        last, limit = int(position_ids[:, -1].max()), config.max_position_embeddings
    _check_positions(resolved, length - embedded, last, limit)
    for name, value in (("past_key_values", past_key_values), ("encoder_hidden_states", encoder_hidden_states)):
        if value is not None and not config.is_decoder:
            raise InputError(f"{name} need a causal decoder (config.is_decoder=True)")
    _check_cache_rows(past_key_values, resolved, rows, length)
    source = None
    if encoder_hidden_states is not None and not (past_key_values is not None and past_key_values.has_cross):
        source = pack_source(encoder_hidden_states, encoder_attention_mask, rows)
    generation_inputs = GenerationInputs(
        prefix, False, inputs_embeds, mask, position_ids, check_types(token_type_ids, (rows, length), config),
        past_key_values, source, source_ids=input_ids if inputs_embeds is None else None,
    )  # fmt: skip
    return generation_inputs, resolved


def _bos_ids(options: GenerationConfig, rows: int, device: torch.device) -> torch.Tensor:
    """The input of a call without inputs: int64 [rows, 1]."""
    if options.bos_token_id is None:
        raise InputError("generate needs input_ids: there is no bos_token_id to begin with")
    return torch.full((rows, 1), options.bos_token_id, dtype=torch.int64, device=device)


def infer_attention_mask(ids: torch.Tensor, options: GenerationConfig) -> torch.Tensor | None:
    """bool [B, S], False at pad ids of the input; None where the pad id ends outputs too, or masks are not inferred."""
    pad = options.pad_token_id
    if options.infer_attention_mask is False or pad is None or pad in options.end_tokens:
        return None
    return ids != pad


def _bool_mask(mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask as bool; None if it is True everywhere."""
    return None if mask is None or bool(mask.all()) else mask.bool()


def _check_prefix(ids: torch.Tensor, rows: int, vocabulary: int) -> None:
    if ids.dim() != 2 or ids.shape[0] != rows or ids.shape[1] == 0:
        raise InputError(f"decoder_input_ids have shape {tuple(ids.shape)}, expected ({rows}, at least 1)")
    check_ids(ids, vocabulary, "decoder_input_ids")


def _check_positions(resolved: GenerationConfig, prefix: int, last: int, limit: int) -> None:
    """Raise InputError where the last input token would have no position; `last`: that of the last prefix token."""
    needed = last + resolved.max_length - prefix
    if needed > limit:
        raise InputError(f"max_length {resolved.max_length} needs {needed} decoder positions, the model has {limit}")


def _check_cache_rows(cache: Cache | None, resolved: GenerationConfig, rows: int, length: int) -> None:
    """Raise InputError where a cache does not fit the options and the input [rows, length]."""
    if cache is None:
        return
    width = max(resolved.num_beams, resolved.num_return_sequences)
    if width > 1:
        raise InputError(f"past_key_values allow one output per row, got {width} (num_beams, num_return_sequences)")
    if cache.rows != rows:
        raise InputError(f"past_key_values hold {cache.rows} rows, the input has {rows}")
    if cache.length >= length:
        raise InputError(
            f"past_key_values hold {cache.length} tokens a row, the input has {length}: it must be the whole sequence "
            "so far, with at least one token more"
        )
