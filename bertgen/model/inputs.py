"""What the models accept: checks of ids, masks, labels and positions before anything is computed.

Ids are checked on the host by one reduction per tensor; under torch.compile and in a trace they are not.
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


def either(given: bool | None, default: bool) -> bool:
    """The option of a call, or that of the configuration where the call has none."""
    if given is None:
        return default
    try:
        return check_flag(given, "")
    except ConfigError:
        names = "output_hidden_states, output_attentions, use_cache and return_dict"
        raise ConfigError(f"{names} are True, False or None, got {quoted(given)}") from None


def check_tensors(device: torch.device | None, **given: Any) -> None:
    """What is given must be dense tensors with values, each on the device (None: any); InputError with the name."""
    for name, value in given.items():
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
    """The one of ids [B, L] and embeds [B, L, hidden] that is given, checked."""
    if (ids is None) == (embeds is None):
        raise InputError("You must specify exactly one of input_ids or inputs_embeds")
    check_tensors(None, input_ids=ids, inputs_embeds=embeds)
    if ids is not None:
        if ids.dim() != 2 or 0 in ids.shape:
            raise InputError(f"input_ids must be [batch, length] with neither 0, got shape {tuple(ids.shape)}")
        check_ids(ids, config.vocab_size, "input_ids")
        return ids
    return check_states(embeds, config.hidden_size, "inputs_embeds")


def check_states(states: Any, hidden: int, name: str) -> torch.Tensor:
    """The states, if they are floats [batch, length, hidden]."""
    check_tensors(None, **{name: states})
    if states.dim() != 3 or states.shape[-1] != hidden or 0 in states.shape:
        raise InputError(f"{name} must be [batch, length, {hidden}] without a 0, got shape {tuple(states.shape)}")
    if not states.is_floating_point():
        raise InputError(f"{name} must hold floats, got {states.dtype}")
    return states


def check_columns(weight: torch.Tensor, columns: int, **given: Any) -> None:
    """What modules take: floats [.., columns] that a weight of this dtype can be computed with."""
    for name, x in given.items():
        if not isinstance(x, torch.Tensor):
            raise InputError(f"{name} must be a tensor, got {quoted(x)}")
        check_tensors(None, **{name: x})
        if x.dim() == 0 or x.shape[-1] != columns or not x.is_floating_point():
            raise InputError(f"{name} must be floats [.., {columns}], got {x.dtype} of shape {tuple(x.shape)}")
        if x.dtype != weight.dtype and weight.is_floating_point() and not torch.is_autocast_enabled(x.device.type):
            raise InputError(f"{name} must be {weight.dtype}, as the weights of the module, got {x.dtype}")


def check_encoded(encoder_outputs: Any, hidden: int) -> Any:
    """What an encoder returned, or a tuple that begins with its states [batch, length, hidden], with names."""
    if isinstance(encoder_outputs, (tuple, list)):
        encoder_outputs = BaseModelOutputWithPastAndCrossAttentions(*encoder_outputs[:1])
    states = getattr(encoder_outputs, "last_hidden_state", None)
    if not isinstance(states, torch.Tensor):
        raise InputError(
            "encoder_outputs must be what the encoder returned, or a tuple that begins with its states, got "
            f"{quoted(encoder_outputs)}"
        )
    check_states(states, hidden, "encoder_outputs")
    return encoder_outputs


def check_cache(cache: Any, config: BertGenerationConfig, layers: int) -> Cache | None:
    """The cache, if it is one that a decoder of this shape and with so many layers returned."""
    if cache is None:
        return None
    if not isinstance(cache, Cache):
        raise InputError(f"past_key_values must be the Cache that an earlier call returned, got {type(cache).__name__}")
    found = len(cache.pools.keys), *(cache.pools.keys[0].shape[1:] if cache.pools.keys else (0, 0))
    if found[0] != layers or (found[0] and found[1:] != (config.num_attention_heads, config.head_dim)):
        raise InputError(
            f"past_key_values hold {found[0]} layers of {found[1]} heads of {found[2]} columns, the model has "
            f"{layers} of {config.num_attention_heads} of {config.head_dim}"
        )
    return cache


def check_kept(logits_to_keep: Any, length: int) -> slice | torch.Tensor:
    """The positions of [batch, length] that `logits_to_keep` names: the last so many (0: all), or those of a tensor."""
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
    """Integer ids from 0 to vocabulary - 1, or InputError with the offending one."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"{name} must be int64 or int32, got {ids.dtype}")
    if torch.compiler.is_compiling() or is_traced() or not ids.numel():
        return
    least, most = (int(x) for x in ids.aminmax())
    if least < 0 or most >= vocabulary:
        wrong = most if most >= vocabulary else least
        raise InputError(f"{name} holds {wrong}; ids go from 0 to {vocabulary - 1} (vocabulary of {vocabulary})")


def check_labels(labels: torch.Tensor, shape: tuple[int, ...]) -> None:
    """labels [B, T] against the shape (B, T, vocab) of their logits."""
    check_tensors(None, labels=labels)
    if labels.dim() != 2 or tuple(labels.shape) != tuple(shape[:2]) or 0 in labels.shape:
        raise InputError(f"labels have shape {tuple(labels.shape)}, expected {tuple(shape[:2])}")
    check_ids(labels.masked_fill(labels == -100, 0), shape[-1], "labels")


def check_items(items: Any) -> Any:
    """num_items_in_batch, if it is a number above 0, or a tensor of one, or None."""
    if isinstance(items, torch.Tensor) and items.numel() == 1 and not items.is_complex():
        check_tensors(None, num_items_in_batch=items)
        return items
    return None if items is None else check_number(1e-30, 1e30, items, "num_items_in_batch")


def check_mask(mask: torch.Tensor | None, rows: int, length: int, name: str) -> torch.Tensor | None:
    """The mask, if it is [rows, length]."""
    check_tensors(None, **{name: mask})
    if mask is not None and tuple(mask.shape) != (rows, length):
        raise InputError(f"{name} has shape {tuple(mask.shape)}, expected {(rows, length)}")
    return mask


def check_dense_mask(mask: torch.Tensor, shape: tuple[int, int, int, int], name: str) -> torch.Tensor:
    """The mask, if it is bool or floating and broadcasts to shape (rows, heads, queries, keys)."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise InputError(f"{name} of 4 dimensions must be bool or floating (added to the scores), got {mask.dtype}")
    if any(size not in (1, most) for size, most in zip(mask.shape, shape, strict=True)):
        raise InputError(f"{name} has shape {tuple(mask.shape)}, which does not broadcast to {shape}")
    return mask


def check_types(
    types: torch.Tensor | None, shape: tuple[int, int], config: BertGenerationConfig
) -> torch.Tensor | None:
    """Token types [B, L]; None where there are none, as in bert-generation, where all of them must be 0."""
    if types is None:
        return None
    check_tensors(None, token_type_ids=types)
    if tuple(types.shape) != shape:
        raise InputError(f"token_type_ids have shape {tuple(types.shape)}, expected {shape}")
    kinds = config.type_vocab_size if isinstance(config, BertConfig) else 1
    check_ids(types, kinds, "token_type_ids")
    return types if isinstance(config, BertConfig) else None


def positions_of(
    given: torch.Tensor | None,
    ids: torch.Tensor | None,
    rows: int,
    length: int,
    past: int,
    config: BertGenerationConfig,
    device: torch.device,
) -> torch.Tensor:
    """Row of the position table for each token, int64 [rows, length]; InputError where the table ends before.

    Args:
        given: positions of the caller's, [rows, length] or [1, length]; by default they count on from `past`.
        ids: int64 [rows, length]; in a roberta half padding does not count. None where embeddings were given.
    """
    limit, first = config.max_position_embeddings, config.first_position
    if given is not None:
        check_tensors(None, position_ids=given)
        if given.dim() != 2 or given.shape[1] != length or given.shape[0] not in (1, rows):
            raise InputError(f"position_ids have shape {tuple(given.shape)}, expected {(rows, length)}")
        check_ids(given, limit, "position_ids")
        return given.expand(rows, length)
    if past + length > config.max_tokens:
        raise InputError(f"{past + length} tokens, but the model has {config.max_tokens} positions")
    if first and ids is not None:
        real = ids != first - 1
        return (real.cumsum(1) + past) * real + (first - 1)
    return torch.arange(past + first, past + first + length, device=device).expand(rows, length)


def next_positions(ids: torch.Tensor, lengths: torch.Tensor, config: BertGenerationConfig) -> torch.Tensor:
    """Row of the position table for one more token, ids int64 [R], behind lengths [R] others each: int64 [R]."""
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
    """A mask [B, L] of keys as lengths [B] where it is ones then zeros, else as a bool mask; (None, None) if full.

    Under torch.compile and in a trace nobody can look: it stays a mask.
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
