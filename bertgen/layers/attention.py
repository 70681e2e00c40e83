"""Self-attention and cross-attention on packed tokens. Attribute names are those of the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .. import ops
from ..cache.cache import Cache
from ..config import BertGenerationConfig
from ..packing import Packing
from .add_norm import AddNorm
from .linear import Int4Linear, apply, check_dtype, int4_linears, is_plain


@dataclass(frozen=True)
class AttentionContext:
    """What attention needs to know of the batch; the same for all layers of one forward.

    Attributes:
        tokens: rows of the packed hidden states.
        causal: a query sees no later position of its row.
        key_len: integer [B], hides the positions of a row from there on; None where all are real.
        key_mask: bool [B, longest], the same for masks that lengths cannot express; with a cache [B, past + new].
        cache: where past keys and values are and new ones go.
        source: packed encoder states [Ts, hidden] and their rows; None without cross-attention, or where the cache
            holds their keys and values already.
        mask: bool or additive, broadcasts to [B, heads, new, past + new]: a mask that takes the place of `causal`,
            `key_len` and `key_mask`. No token may have been dropped in `tokens`.
        attentions: collects the weights [B, heads, T, S] of every layer's self-attention and cross-attention.
        askers: where the rows of `tokens` that share a row of `source` begin as one row, and the longest such row (as
            in a `Packing`); None where each row has a source of its own.
    """

    tokens: Packing
    causal: bool = False
    key_len: torch.Tensor | None = None
    key_mask: torch.Tensor | None = None
    cache: Cache | None = None
    source: tuple[torch.Tensor, Packing] | None = None
    mask: torch.Tensor | None = None
    attentions: Attentions | None = None
    askers: tuple[torch.Tensor, int] | None = None

    @classmethod
    def of_step(cls, cache: Cache) -> AttentionContext:
        """One more token of each running row of a cache, for as long as the rows that run are so many."""
        return cls(Packing.full(cache.rows, 1, cache.device), causal=True, cache=cache)


@dataclass
class Attentions:
    """Attention weights [B, heads, T, S] of the layers that have run."""

    own: list[torch.Tensor] = field(default_factory=list)
    cross: list[torch.Tensor] = field(default_factory=list)


class Projections(nn.Module):
    """The query, key and value projections of one attention block."""

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)


def project(x: torch.Tensor, *layers: Any) -> tuple[torch.Tensor, ...]:
    """Several layers, as `apply` takes them, on one input: x [T, K] -> one [T, N] each. Weights stay where they lie."""
    if all(is_plain(layer, nn.Linear) for layer in layers):
        return ops.linears(x, [layer.weight for layer in layers], [layer.bias for layer in layers])
    if all(is_plain(layer, Int4Linear) for layer in layers):
        first, *others = layers
        if all(layer.config == first.config for layer in others):
            return int4_linears(x, first.config, [layer.parts for layer in layers])
    return tuple(apply(layer, x) for layer in layers)


class Attention(nn.Module):
    """Self-attention or cross-attention with its output projection, residual and LayerNorm."""

    def __init__(self, config: BertGenerationConfig, index: int, cross: bool = False):
        super().__init__()
        self.index, self.cross = index, cross
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.dropout = config.attention_probs_dropout_prob
        self.self = Projections(config)
        self.output = AddNorm(config.hidden_size, config)

    def forward(self, x: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """x [T, hidden] -> [T, hidden]"""
        attend = self._attend_source if self.cross else self._attend_self
        return self.output(attend(x, context).flatten(1), x)

    def _attend_self(self, x: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        q, k, v = (self._heads(t) for t in project(x, self.self.query, self.self.key, self.self.value))
        rows, cache = context.tokens, context.cache
        if context.mask is not None or self._densely(context):
            pair = (rows.unpack(k), rows.unpack(v)) if cache is None else cache.extend(cache.layer, k, v)
            return self._attend_densely(q, *pair, dense_mask(context, pair[0].shape[1]), context, "own")
        if cache is not None:
            return cache.attend(cache.layer, q, k, v, context.key_mask)
        return ops.attention(
            q, k, v, rows.cu_seqlens, rows.cu_seqlens, rows.max_seqlen, rows.max_seqlen,
            causal=context.causal, key_len=context.key_len, key_mask=context.key_mask, dropout=self._dropout,
        )  # fmt: skip

    def _attend_source(self, x: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        q = self._heads(apply(self.self.query, x))
        rows, cache = context.tokens, context.cache
        if context.source is not None:
            states, source = context.source
            k, v = self.source_pair(states)
            if cache is not None:
                cache.set_cross(cache.layer, k, v)
            elif not self._densely(context):
                cu_seqlens_q, max_seqlen_q = context.askers or (rows.cu_seqlens, rows.max_seqlen)
                return ops.attention(
                    q, k, v, cu_seqlens_q, source.cu_seqlens, max_seqlen_q, source.max_seqlen, dropout=self._dropout
                )
        if not self._densely(context):
            assert cache is not None
            return cache.attend_cross(cache.layer, q)
        if cache is not None:
            k, v, mask = cache.cross(cache.layer)
        else:
            k, v, mask = source.unpack(k), source.unpack(v), source.mask()
        width = rows.shape[0] // k.shape[0]  # rows of a source
        k, v, mask = (None if t is None else t.repeat_interleave(width, 0) for t in (k, v, mask))
        return self._attend_densely(q, k, v, None if mask is None else mask[:, None, None], context, "cross")

    def source_pair(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [T, heads, head_dim] of encoder states [T, hidden]."""
        check_dtype(states, self.self.key, "encoder states")
        k, v = (self._heads(t) for t in project(states, self.self.key, self.self.value))
        return k, v

    def _densely(self, context: AttentionContext) -> bool:
        """Whether the weights are needed: to be returned, or to drop some of those over a cache."""
        return context.attentions is not None or (context.cache is not None and self._dropout > 0)

    def _attend_densely(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        context: AttentionContext,
        kind: str,
    ) -> torch.Tensor:
        """q [T, heads, head_dim] over keys and values [B, S, heads, head_dim] under any mask, keeping the weights."""
        out, weights = ops.masked_attention(context.tokens.unpack(q), k, v, mask, self._dropout)
        if context.attentions is not None:
            getattr(context.attentions, kind).append(weights)
        return context.tokens.pack(out)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim))

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0


def dense_mask(context: AttentionContext, keys: int) -> torch.Tensor | None:
    """The mask of self-attention that a context stands for, bool or additive, for rows of so many keys."""
    if context.mask is not None:
        return context.mask
    rows, device = context.tokens, context.tokens.cu_seqlens.device
    key, mask = torch.arange(keys, device=device), rows.mask()
    if mask is not None:
        mask = mask[:, None, None]
    for seen in (
        None if context.key_len is None else key < context.key_len[:, None],
        None if context.key_mask is None else context.key_mask,
    ):
        if seen is not None:
            mask = seen[:, None, None] if mask is None else mask & seen[:, None, None]
    if context.causal:
        query = torch.arange(keys - rows.shape[1], keys, device=device)
        past = key <= query[:, None]
        mask = past[None, None] if mask is None else mask & past
    return mask
