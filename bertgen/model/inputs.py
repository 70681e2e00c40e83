"""Inputs of the models: checks of ids, masks, labels and positions.

Ids are checked on the host by one reduction per tensor, but not under torch.compile or in a trace.
"""

from __future__ import annotations

from typing import Any

import torch

from ..cache.cache import Cache
from ..config import BertConfig, BertGenerationConfig
from ..config.validators import check_flag, check_integer, check_number
from ..errors import ConfigError, InputError, quoted
from ..kernels.plain import is_traced
from ..outputs import BaseModelOutputWithPastAndCrossAttentions
from ..packing import Packing


def option_or_default(option: bool | None, default: bool) -> bool:
    """The option of a call, or its default from the configuration where it is None."""
    if option is None:
        return default
    try:
        return check_flag(option, "")
    except ConfigError:
        names = "output_hidden_states, output_attentions, use_cache and return_dict"
        raise ConfigError(f"{names} are True, False or None, got {quoted(option)}") from None


def check_tensors(device: torch.device | None, **tensors: Any) -> None:
    """Raise InputError for values that are no dense tensors with values, or on another device (None: any)."""
    for name, value in tensors.items():
        if value is None:
            continue
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{name} must be a tensor, got {type(value).__name__}")
        if value.layout != torch.strided or value.is_meta:
            kind = "meta" if value.is_meta else value.layout
            raise InputError(f"{name} must be a dense tensor with values, got one that is {kind}")
        if device is not None and value.device != device:
            raise InputError(f"{name} must be on {device}, where the rest of the input is, got {value.device}")


def check_tokens(ids: torch.Tensor | None, embeds: torch.Tensor | None, config: BertGenerationConfig) -> torch.Tensor:
    """The ids [B, L], or the embeds [B, L, hidden] where ids are None; InputError for bad ones, both or none."""
    if (ids is None) == (embeds is None):
        raise InputError("You must specify exactly one of input_ids or inputs_embeds")
    check_tensors(None, input_ids=ids, inputs_embeds=embeds)
    if ids is not None:
        if ids.dim() != 2 or 0 in ids.shape:
            raise InputError(f"input_ids must be [batch, length] with no size 0, got shape {tuple(ids.shape)}")
        check_ids(ids, config.vocab_size, "input_ids")
        return ids
    return check_states(embeds, config.hidden_size, "inputs_embeds")


def check_states(states: Any, hidden: int, name: str) -> torch.Tensor:
    """The states; InputError if they are no floats [batch, length, hidden]."""
    check_tensors(None, **{name: states})
    if states.dim() != 3 or states.shape[-1] != hidden or 0 in states.shape:
        raise InputError(f"{name} must be [batch, length, {hidden}] with no size 0, got shape {tuple(states.shape)}")
    if not states.is_floating_point():
        raise InputError(f"{name} must hold floats, got {states.dtype}")
    return states


def check_columns(weight: torch.Tensor, columns: int, **tensors: Any) -> None:
    """Raise InputError for tensors that are no floats [.., columns] of the dtype of the weight."""
    for name, x in tensors.items():
        if not isinstance(x, torch.Tensor):
            raise InputError(f"{name} must be a tensor, got {quoted(x)}")
        check_tensors(None, **{name: x})
        if x.dim() == 0 or x.shape[-1] != columns or not x.is_floating_point():
            raise InputError(f"{name} must be floats [.., {columns}], got {x.dtype} of shape {tuple(x.shape)}")
        if x.dtype != weight.dtype and weight.is_floating_point() and not torch.is_autocast_enabled(x.device.type):
            raise InputError(f"{name} must be {weight.dtype}, as the weights of the module, got {x.dtype}")


def check_encoded(encoder_outputs: Any, hidden: int) -> Any:
    """The output of an encoder, from itself or a tuple that begins with its states [batch, length, hidden]."""
    if isinstance(encoder_outputs, (tuple, list)):
        encoder_outputs = BaseModelOutputWithPastAndCrossAttentions(*encoder_outputs[:1])
    states = getattr(encoder_outputs, "last_hidden_state", None)
    if not isinstance(states, torch.Tensor):
        raise InputError(
            "encoder_outputs must be the return value of the encoder, or a tuple that begins with its states, got "
            f"{quoted(encoder_outputs)}"
        )
    check_states(states, hidden, "encoder_outputs")
    return encoder_outputs


def check_cache(cache: Any, config: BertGenerationConfig, layers: int) -> Cache | None:
    """The cache; InputError if it is not of a decoder of this shape with so many layers."""
    if cache is None:
        return None
    if not isinstance(cache, Cache):
        raise InputError(f"past_key_values must be the Cache that an earlier call returned, got {type(cache).__name__}")
    shape = len(cache.pool.keys), *(cache.pool.keys[0].shape[1:] if cache.pool.keys else (0, 0))
    if shape[0] != layers or (shape[0] and shape[1:] != (config.num_attention_heads, config.head_dim)):
        raise InputError(
            f"past_key_values hold {shape[0]} layers of {shape[1]} heads of {shape[2]} columns, the model has "
            f"{layers} of {config.num_attention_heads} of {config.head_dim}"
        )
    return cache


def check_kept(logits_to_keep: Any, length: int) -> slice | torch.Tensor:
    """Index of the positions in `logits_to_keep`: a number of last ones (0 for all), or a tensor of positions."""
    if not isinstance(logits_to_keep, torch.Tensor):
        kept = check_integer(0, logits_to_keep, "logits_to_keep")
        return slice(-kept if kept else None, None)
    check_tensors(None, logits_to_keep=logits_to_keep)
    if logits_to_keep.dtype == torch.bool:
        if logits_to_keep.shape != (length,):
            raise InputError(f"logits_to_keep has shape {tuple(logits_to_keep.shape)}, expected ({length},)")
        return logits_to_keep
    if logits_to_keep.dim() != 1:
        raise InputError(f"logits_to_keep must be an integer or [positions], got shape {tuple(logits_to_keep.shape)}")
    if not logits_to_keep.numel():
        return slice(0, 0)
    check_ids(torch.where(logits_to_keep < 0, logits_to_keep + length, logits_to_keep), length, "logits_to_keep")
    return logits_to_keep


def check_ids(ids: torch.Tensor, vocabulary: int, name: str) -> None:
    """Raise InputError for ids that are no integers from 0 to vocabulary - 1, with the offending one."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"{name} must be int64 or int32, got {ids.dtype}")
    if torch.compiler.is_compiling() or is_traced() or not ids.numel():
        return
    least, most = (int(x) for x in ids.aminmax())
    if least < 0 or most >= vocabulary:
        outside = most if most >= vocabulary else least
        raise InputError(f"{name} holds {outside}; ids go from 0 to {vocabulary - 1} (vocabulary of {vocabulary})")


def check_labels(labels: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raise InputError for labels that do not fit the shape (B, T, vocab) of their logits."""
    check_tensors(None, labels=labels)
    if labels.dim() != 2 or tuple(labels.shape) != tuple(shape[:2]) or 0 in labels.shape:
        raise InputError(f"labels have shape {tuple(labels.shape)}, expected {tuple(shape[:2])}")
    check_ids(labels.masked_fill(labels == -100, 0), shape[-1], "labels")


def check_items(items: Any) -> Any:
    """`num_items_in_batch`: a number above 0, a tensor of one number, or None; ConfigError for anything else."""
    if isinstance(items, torch.Tensor) and items.numel() == 1 and not items.is_complex():
        check_tensors(None, num_items_in_batch=items)
        return items
    return None if items is None else check_number(1e-30, 1e30, items, "num_items_in_batch")


def check_mask(mask: torch.Tensor | None, rows: int, length: int, name: str) -> torch.Tensor | None:
    """The mask; InputError if it is not [rows, length]."""
    check_tensors(None, **{name: mask})
    if mask is not None and tuple(mask.shape) != (rows, length):
        raise InputError(f"{name} has shape {tuple(mask.shape)}, expected {(rows, length)}")
    return mask


def check_dense_mask(mask: torch.Tensor, shape: tuple[int, int, int, int], name: str) -> torch.Tensor:
    """The mask; InputError if it is not bool or floating, or does not broadcast to (rows, heads, queries, keys)."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise InputError(f"{name} of 4 dimensions must be bool or floating (added to the scores), got {mask.dtype}")
    if any(size not in (1, most) for size, most in zip(mask.shape, shape, strict=True)):
        raise InputError(f"{name} has shape {tuple(mask.shape)}, which does not broadcast to {shape}")
    return mask


def check_types(
    types: torch.Tensor | None, shape: tuple[int, int], config: BertGenerationConfig
) -> torch.Tensor | None:
    """Token types [B, L]; None for a model without token types (bert-generation), where all must be 0."""
    if types is None:
        return None
    check_tensors(None, token_type_ids=types)
    if tuple(types.shape) != shape:
        raise InputError(f"token_type_ids have shape {tuple(types.shape)}, expected {shape}")
    kinds = config.type_vocab_size if isinstance(config, BertConfig) else 1
    check_ids(types, kinds, "token_type_ids")
    return types if isinstance(config, BertConfig) else None


def positions_of(
    position_ids: torch.Tensor | None,
    ids: torch.Tensor | None,
    rows: int,
    length: int,
    past: int,
    config: BertGenerationConfig,
    device: torch.device,
) -> torch.Tensor:
    """Row of the position table for each token, int64 [rows, length].

    Args:
        position_ids: of the caller, [rows, length] or [1, length]; None counts from `past`.
        ids: int64 [rows, length]; RoBERTa models do not count padding. None with embeddings as input.

    Raises:
        InputError: positions outside the table.
    """
    limit, first = config.max_position_embeddings, config.first_position
    if position_ids is not None:
        check_tensors(None, position_ids=position_ids)
        shape = tuple(position_ids.shape)
        if len(shape) != 2 or shape[1] != length or shape[0] not in (1, rows):
            raise InputError(f"position_ids have shape {shape}, expected {(rows, length)}")
        check_ids(position_ids, limit, "position_ids")
        return position_ids.expand(rows, length)
    if past + length > config.max_tokens:
        raise InputError(f"{past + length} tokens, but the model has {config.max_tokens} positions")
    if first and ids is not None:
        real = ids != first - 1
        return (real.cumsum(1) + past) * real + (first - 1)
    return torch.arange(past + first, past + first + length, device=device).expand(rows, length)


def next_positions(ids: torch.Tensor, lengths: torch.Tensor, config: BertGenerationConfig) -> torch.Tensor:
    """Row of the position table for the next token, ids int64 [R], after lengths [R] others: int64 [R]."""
    first = config.first_position
    if not first:
        return lengths.long()
    return (lengths + 1) * (ids != first - 1) + (first - 1)


def pack_source(states: torch.Tensor, mask: torch.Tensor | None, rows: int) -> tuple[torch.Tensor, Packing]:
    """Encoder states [B, S, hidden] and their mask -> packed states and their rows."""
    if states.dim() != 3 or states.shape[0] != rows:
        raise InputError(f"encoder states have shape {tuple(states.shape)}, expected ({rows}, length, hidden)")
    source = Packing.of_mask(
        check_mask(mask, rows, states.shape[1], "encoder_attention_mask"), rows, states.shape[1], states.device
    )
    return source.pack(states), source


def key_limits(mask: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """A mask [B, L] of keys as lengths [B] if it is ones then zeros, else as a bool mask; (None, None) if all ones.

    Under torch.compile and in a trace its values are not read: it stays a mask.
    """
    if mask is None:
        return None, None
    mask = mask.bool()
    if torch.compiler.is_compiling() or is_traced():
        return None, mask
    if bool(mask.all()):
        return None, None
    lengths = mask.sum(1)
    if bool((mask == (torch.arange(mask.shape[1], device=mask.device) < lengths[:, None])).all()):
        return lengths, None
    return None, mask
