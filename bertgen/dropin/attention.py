"""Attention of any transformers model by `ops.attention`: `attn_implementation="bertgen"`.

transformers makes a mask once a forward and calls the attention once a layer. `visible_keys` returns the mask that sdpa
would get, and attaches its content in lengths (`VisibleKeys`). `attend` reads these, so that no layer has to read the
mask itself. A mask without them, made by a model or a user, is applied as it is.

The results are those of transformers' sdpa, padding included: a query without visible keys gives 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from .. import ops
from ..errors import InputError, UnsupportedError
from ..kernels.plain import is_traced
from ..packing import Packing

# Arguments of attention, besides the mask, that would change its result.
_UNSUPPORTED = {
    "sliding_window": "a sliding window",
    "softcap": "a softcap of the scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a bias of the scores by position",
    "indices": "a selection of keys for each query",
    "cache": "a paged cache",
    "block_table": "a paged cache",
    "cu_seq_lens_q": "rows that are already packed",
}
_ATTRIBUTE = "_bertgen_visible"  # of a mask: its VisibleKeys


@dataclass(frozen=True)
class VisibleKeys:
    """Which keys the queries of a batch see.

    Attributes:
        causal: query i of row b sees keys up to q_start[b] + i; up to i where q_start is None.
        q_start: int32 [B]. key_len: int32 [B], hides the keys from there on. key_mask: bool [B, S], False hides a key.
        version: of the mask that this belongs to, which must not have been written to since.
    """

    causal: bool
    q_start: torch.Tensor | None = None
    key_len: torch.Tensor | None = None
    key_mask: torch.Tensor | None = None
    version: int = 0
    repeated: dict[int, tuple[torch.Tensor | None, ...]] = field(default_factory=dict)

    def of_heads(self, heads: int) -> tuple[torch.Tensor | None, ...]:
        """q_start, key_len and key_mask with one row for each head of a row; made once for all layers."""
        if heads not in self.repeated:
            tensors = self.q_start, self.key_len, self.key_mask
            self.repeated[heads] = tuple(None if x is None else x.repeat_interleave(heads, 0) for x in tensors)
        return self.repeated[heads]


def visible_keys(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **options: Any,
) -> torch.Tensor | None:
    """The mask of a forward, as transformers' `sdpa_mask` makes it, with `VisibleKeys` for `attend`.

    Args:
        q_offset: position of the first query among the keys.
        attention_mask: [B, at most S], 0 or False hides a key, and so are all keys after its end.
        options: as `sdpa_mask`.

    Returns:
        bool [B, 1, T, S]; None if all keys are visible, or if `attend` needs is_causal only.

    Raises:
        UnsupportedError: a mask with a window.
    """
    if local_size is not None:
        raise UnsupportedError(
            f'attn_implementation="bertgen" has no sliding window, this model needs one of {local_size}'
        )
    dense = dict(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset,
        mask_function=mask_function, attention_mask=attention_mask, allow_is_causal_skip=allow_is_causal_skip,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip, **options,
    )  # fmt: skip
    causal = mask_function is causal_mask_function
    known = causal or mask_function is bidirectional_mask_function
    if not known or kv_offset or _is_graph():  # a recorded graph must not read the mask
        return sdpa_mask(**dense)
    # A tensor of inference mode has no version, which shows whether the mask was written to.
    with torch.inference_mode(False):
        lengths, keys = _padding(attention_mask, kv_length)
        if lengths is None and keys is None:
            # Without a mask `attend` lets one query see all keys, and several see the keys up to their own position.
            is_default = not isinstance(q_offset, torch.Tensor) and q_offset == (kv_length - 1 if q_length == 1 else 0)
            if (allow_is_causal_skip and is_default) if causal else allow_is_bidirectional_skip:
                return None
        mask = sdpa_mask(**{**dense, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
        start = None
        if causal:
            start = torch.as_tensor(q_offset, dtype=torch.int32, device=mask.device).expand(batch_size).contiguous()
            if q_length == 1:  # for one query a length is enough
                seen = start + 1
                lengths = seen if lengths is None else torch.minimum(seen, lengths)
                causal, start = False, None
        setattr(mask, _ATTRIBUTE, VisibleKeys(causal, start, lengths, keys, mask._version))
    return mask


def _padding(mask: torch.Tensor | None, keys: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Key lengths int32 [B], or a mask bool [B, S] if hidden keys come before visible ones; (None, None) if none is."""
    if mask is None:
        return None, None
    mask = mask[:, :keys].bool()
    if mask.shape[1] < keys:
        mask = torch.nn.functional.pad(mask, (0, keys - mask.shape[1]))
    lengths = mask.sum(1, dtype=torch.int32)
    if bool((lengths == keys).all()):
        return None, None
    prefix = torch.arange(keys, device=mask.device) < lengths[:, None]
    return (lengths, None) if torch.equal(mask, prefix) else (None, mask)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, as transformers calls it.

    Args:
        query: [B, H, T, D]. key, value: [B, H / n, S, D]; n consecutive query heads share a head of keys and values.
        attention_mask: of `visible_keys`, or any other: bool, False hides a key, or floats to add to the scores, of a
            shape that broadcasts to [B, H, T, S].
        scaling: factor of the scores; None is D^-0.5.
        dropout: probability of dropping a weight; 0 outside of training.
        is_causal: None takes that of the module. Used without a mask and with more than one query.
        options: other arguments; those that would change the result raise an error.

    Returns:
        [B, T, H, D], contiguous, and None in place of the weights. Autograd works.

    Raises:
        UnsupportedError: an option that the kernels do not have. InputError: shapes or dtypes that do not fit together.
    """
    _check(query, key, value, attention_mask, options)
    rows, heads, length, width = query.shape
    if scaling is not None and not math.isclose(scaling, width**-0.5):
        query = query * (scaling * width**0.5)
    visible = _visible_keys_of(attention_mask, (rows, 1, length, key.shape[2]))
    if attention_mask is not None and visible is None:
        key, value = (_repeated(x, heads) for x in (key, value))
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        out, _ = ops.masked_attention(q, k, v, attention_mask, dropout)
        return out.contiguous(), None
    if visible is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        visible = VisibleKeys(bool(length > 1 and causal))  # in a trace a length is a tensor
    if length > 1:
        key, value = (_repeated(x, heads) for x in (key, value))
    elif key.shape[1] < heads:
        # The query heads that share a head of keys become queries of that head; with one position there is no order.
        query = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    out = _attend(query, key, value, visible, dropout)
    return out.reshape(rows, heads, length, width).transpose(1, 2).contiguous(), None


def _visible_keys_of(mask: torch.Tensor | None, shape: tuple[int, ...]) -> VisibleKeys | None:
    """The `VisibleKeys` of a mask that was not changed since `visible_keys` made it; None if there is none."""
    visible = getattr(mask, _ATTRIBUTE, None)
    return visible if visible is not None and mask.shape == shape and mask._version == visible.version else None


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: VisibleKeys, dropout: float) -> torch.Tensor:
    """q [B, H, T, D] over k, v [B, H, S, D] -> [B, H, T, D]"""
    (rows, heads, length, _), keys, device = q.shape, k.shape[2], q.device
    # A cache holds [B, H, S, D] in this order. Each head of a row is then taken as a row of one head, without a copy.
    by_head = k.is_contiguous() and v.is_contiguous()
    if by_head:
        q, k, v = (x.reshape(-1, 1, x.shape[3]) for x in (q, k, v))
        count, (start, key_len, key_mask) = rows * heads, visible.of_heads(heads)
    else:
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        count, start, key_len, key_mask = rows, visible.q_start, visible.key_len, visible.key_mask
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    full = Packing.full if _is_graph() else _full
    cu_q = full(count, length, device).cu_seqlens
    cu_k = cu_q if keys == length else full(count, keys, device).cu_seqlens
    out = ops.attention(
        q, k, v, cu_q, cu_k, length, keys,
        causal=visible.causal, q_start=start, key_len=key_len, key_mask=key_mask, dropout=dropout,
    )  # fmt: skip
    if by_head:
        return out.view(rows, heads, length, out.shape[2])
    return out.view(rows, length, heads, out.shape[2]).transpose(1, 2)


def _is_graph() -> bool:
    """Whether the code is recorded, to run with other masks later."""
    return torch.compiler.is_compiling() or is_traced()


@functools.lru_cache(maxsize=16)
def _full(rows: int, length: int, device: torch.device) -> Packing:
    """Rows of one length; all layers of a forward share them."""
    with torch.inference_mode(False):
        return Packing.full(rows, length, device)


def _repeated(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, H / n, S, D] -> [B, H, S, D]"""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, options: dict[str, Any]) -> None:
    for name, feature in _UNSUPPORTED.items():
        if options.get(name) is not None:
            raise UnsupportedError(f'attn_implementation="bertgen" does not compute {feature} ({name})')
    if options.get("output_attentions"):
        raise UnsupportedError('attn_implementation="bertgen" returns no weights (output_attentions); "eager" does')
    if any(x.dim() != 4 for x in (q, k, v)):
        raise InputError(f"{_shapes(q, k, v)}: expected [B, heads, length, head_dim]")
    if v.shape[3] != q.shape[3]:
        raise UnsupportedError(f"{_shapes(q, k, v)}: values of another width than the queries' are not supported")
    if k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3] or q.shape[1] % k.shape[1]:
        raise InputError(f"{_shapes(q, k, v)}: do not fit together")
    if not q.is_floating_point() or {k.dtype, v.dtype} != {q.dtype}:
        raise InputError(f"query {q.dtype}, key {k.dtype}, value {v.dtype}: expected floats of one dtype")
    if mask is None:
        return
    if not isinstance(mask, torch.Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise UnsupportedError(f"a mask must be a bool or floating tensor, got {kind}")
    scores = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if mask.dim() != 4 or any(size not in (1, wanted) for size, wanted in zip(mask.shape, scores)):
        raise InputError(f"mask {tuple(mask.shape)}: does not broadcast to the scores {scores}")


def _shapes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    return f"query {tuple(q.shape)}, key {tuple(k.shape)}, value {tuple(v.shape)}"
