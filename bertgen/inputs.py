"""What the models accept: checks of ids, masks, labels and positions before anything is computed.

Ids are checked on the host by one reduction per tensor; under torch.compile and in a trace they are not.
"""

from __future__ import annotations

import torch

from .config import BertConfig, BertGenerationConfig
from .errors import ConfigError, InputError
from .kernels.plain import is_traced
from .packing import Packing


def either(given: bool | None, default: bool) -> bool:
    """The option of a call, or that of the configuration where the call has none."""
    if given is None:
        return default
    if not isinstance(given, bool):
        raise ConfigError(f"output_hidden_states, use_cache and the like are True, False or None, got {given!r}")
    return given


def check_tokens(ids: torch.Tensor | None, embeds: torch.Tensor | None, config: BertGenerationConfig) -> torch.Tensor:
    """The one of ids [B, L] and embeds [B, L, hidden] that is given, checked."""
    if (ids is None) == (embeds is None):
        raise InputError("You must specify exactly one of input_ids or inputs_embeds")
    given = ids if embeds is None else embeds
    if not isinstance(given, torch.Tensor):
        raise InputError(f"input_ids must be a tensor, got {type(given).__name__}")
    if given.dim() != (2 if embeds is None else 3) or 0 in given.shape:
        raise InputError(f"input must be [batch, length] with neither 0, got shape {tuple(given.shape)}")
    if embeds is None:
        check_ids(given, config.vocab_size, "input_ids")
    elif embeds.shape[-1] != config.hidden_size:
        raise InputError(f"inputs_embeds have {embeds.shape[-1]} columns, hidden_size is {config.hidden_size}")
    return given


def check_ids(ids: torch.Tensor, vocabulary: int, name: str) -> None:
    """Integer ids from 0 to vocabulary - 1, or InputError with the offending one."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"{name} must be int64 or int32, got {ids.dtype}")
    if torch.compiler.is_compiling() or is_traced():
        return
    least, most = (int(x) for x in ids.aminmax())
    if least < 0 or most >= vocabulary:
        wrong = most if most >= vocabulary else least
        raise InputError(f"{name} holds {wrong}; ids go from 0 to {vocabulary - 1} (vocabulary of {vocabulary})")


def check_labels(labels: torch.Tensor, shape: tuple[int, ...]) -> None:
    """labels [B, T] against the shape (B, T, vocab) of their logits."""
    if labels.dim() != 2 or tuple(labels.shape) != tuple(shape[:2]) or 0 in labels.shape:
        raise InputError(f"labels have shape {tuple(labels.shape)}, expected {tuple(shape[:2])}")
    check_ids(labels.masked_fill(labels == -100, 0), shape[-1], "labels")


def check_mask(mask: torch.Tensor | None, rows: int, length: int, name: str) -> torch.Tensor | None:
    """The mask, if it is [rows, length]."""
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
