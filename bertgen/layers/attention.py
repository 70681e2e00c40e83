"""Self-attention and cross-attention on packed tokens. Attribute names are those of the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .. import ops
from ..cache.cache import Cache
from ..cache.step_cache import StepCache
from ..config import BertGenerationConfig
from ..packing import Packing
from .add_norm import AddNorm
from .inspection import is_plain
from .linear import Int4Linear, apply, check_dtype, int4_linears


@dataclass(frozen=True)
class AttentionContext:
    """The inputs of attention besides hidden states; the same for all layers of one forward.

    Attributes:
        tokens: rows of the packed hidden states.
        causal: a query sees no later position of its row.
        key_len: integer [B], the number of visible positions of each row; None where all are visible.
        key_mask: bool [B, max_seqlen], for masks that lengths cannot express; with a cache [B, past + new].
        cache: holds past keys and values, and receives the new ones.
        source: packed encoder states [Ts, hidden] and their `Packing`; None without cross-attention, or where the cache
            holds their keys and values already.
        mask: bool or additive, broadcasts to [B, heads, new, past + new]; replaces `causal`, `key_len` and `key_mask`.
            `tokens` must then hold every token of the batch.
        attentions: collects the weights [B, heads, T, S] of self-attention and cross-attention of every layer.
        askers: cu_seqlens and max_seqlen of the queries of each row of `source`, where several rows of `tokens` share
            it; None where each row has its own source.
    """

    tokens: Packing
    causal: bool = False
    key_len: torch.Tensor | None = None
    key_mask: torch.Tensor | None = None
    cache: StepCache | None = None
    source: tuple[torch.Tensor, Packing] | None = None
    mask: torch.Tensor | None = None
    attentions: Attentions | None = None
    askers: tuple[torch.Tensor, int] | None = None

    @classmethod
    def of_step(cls, cache: StepCache) -> AttentionContext:
        """One more token of each running row of a cache. Valid for all steps until the number of rows changes."""
        return cls(Packing.full(cache.rows, 1, cache.device), causal=True, cache=cache)


@dataclass
class Attentions:
    """Attention weights [B, heads, T, S] of the layers so far: own of self-attention, cross of cross-attention."""

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
    """Several layers, as in `apply`, on one input: x [T, K] -> one [T, N] each. The weights are not copied."""
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
        if context.mask is not None or self._is_dense(context):
            assert cache is None or isinstance(cache, Cache), "a static step computes no attention weights"
            pair = (rows.unpack(k), rows.unpack(v)) if cache is None else cache.extend(cache.layer, k, v)
            return self._attend_dense(q, *pair, dense_mask(context, pair[0].shape[1]), context, "own")
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
                assert isinstance(cache, Cache), "a static step finds the keys of its sources in the cache"
                cache.set_cross(cache.layer, k, v)
            elif not self._is_dense(context):
                cu_seqlens_q, max_seqlen_q = context.askers or (rows.cu_seqlens, rows.max_seqlen)
                return ops.attention(
                    q, k, v, cu_seqlens_q, source.cu_seqlens, max_seqlen_q, source.max_seqlen, dropout=self._dropout
                )
        if not self._is_dense(context):
            assert cache is not None
            return cache.attend_cross(cache.layer, q)
        if cache is not None:
            assert isinstance(cache, Cache), "a static step computes no attention weights"
            k, v, mask = cache.cross(cache.layer)
        else:
            k, v, mask = source.unpack(k), source.unpack(v), source.mask()
        width = rows.shape[0] // k.shape[0]  # rows per source
        k, v, mask = (None if t is None else t.repeat_interleave(width, 0) for t in (k, v, mask))
        return self._attend_dense(q, k, v, None if mask is None else mask[:, None, None], context, "cross")

    def source_pair(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [T, heads, head_dim] of encoder states [T, hidden]."""
        check_dtype(states, self.self.key, "encoder states")
        k, v = (self._heads(t) for t in project(states, self.self.key, self.self.value))
        return k, v

    def _is_dense(self, context: AttentionContext) -> bool:
        """Whether attention weights are computed: to return them, or for dropout with a cache."""
        return context.attentions is not None or (context.cache is not None and self._dropout > 0)

    def _attend_dense(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        context: AttentionContext,
        kind: str,
    ) -> torch.Tensor:
        """Attention of q [T, heads, head_dim] to keys and values [B, S, heads, head_dim]; collects the weights."""
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
    """The mask of self-attention of a context for rows of `keys` keys, bool or additive; None where all are visible."""
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
