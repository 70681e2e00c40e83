"""Layers of a post-LN BERT stack on packed tokens. Attribute names are the checkpoint's names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from . import ops
from .cache import Cache
from .config import BertGenerationConfig
from .errors import ConfigError, UnsupportedError
from .kernels.layernorm_gelu import ACTIVATIONS
from .packing import Packing


@dataclass(frozen=True)
class AttentionContext:
    """What attention needs to know of the batch; the same for all layers of one forward.

    Attributes:
        tokens: rows of the packed hidden states.
        causal: a query sees no later position of its row.
        key_len: integer [B], hides the positions of a row from there on; None where all are real.
        key_mask: bool [B, longest], the same for masks that lengths cannot express.
        cache: where past keys and values are and new ones go; `tokens` is then not used.
        source: packed encoder states [Ts, hidden] and their rows; None without cross-attention, or where the cache
            holds their keys and values already.
    """

    tokens: Packing
    causal: bool = False
    key_len: torch.Tensor | None = None
    key_mask: torch.Tensor | None = None
    cache: Cache | None = None
    source: tuple[torch.Tensor, Packing] | None = None


class Embeddings(nn.Module):
    """LayerNorm(word[id] + position[p]), then dropout."""

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids: torch.Tensor | None, positions: torch.Tensor, embeds: torch.Tensor | None = None):
        """ids int64 [T] or embeds [T, hidden], positions int64 [T] -> [T, hidden]"""
        words = self.word_embeddings(ids) if embeds is None else embeds
        norm = self.LayerNorm
        summed = words + self.position_embeddings(positions)
        return self.dropout(ops.add_layer_norm(summed, None, None, norm.weight, norm.bias, norm.eps))


class AddNorm(nn.Module):
    """LayerNorm(dropout(dense(x)) + residual): the end of an attention block and of a feed-forward block."""

    def __init__(self, inputs: int, config: BertGenerationConfig):
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        norm, dropout = self.LayerNorm, self.dropout if self.training else 0.0
        y = ops.linear(x, self.dense.weight)
        return ops.add_layer_norm(y, self.dense.bias, residual, norm.weight, norm.bias, norm.eps, dropout)


class Projections(nn.Module):
    """The query, key and value projections of one attention block."""

    def __init__(self, config: BertGenerationConfig, source_size: int):
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(source_size, config.hidden_size)
        self.value = nn.Linear(source_size, config.hidden_size)


def project(x: torch.Tensor, *layers: nn.Linear) -> tuple[torch.Tensor, ...]:
    """Several Linear layers on one input: x [T, K] -> one [T, N] each, in a single matmul where they can be fused."""
    fused = fused_weights(*layers)
    if fused is None:
        return tuple(ops.linear(x, layer.weight, layer.bias) for layer in layers)
    return ops.linear(x, *fused).chunk(len(layers), dim=-1)


def fused_weights(*layers: nn.Linear) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weights and biases of equal Linear layers as one matrix and one vector, without a second copy.

    In inference the parameters are slices of one storage: if they are not (freshly loaded, moved, copied), each
    parameter's data becomes such a slice. None with grad on, or where a layer is anything but a plain Linear.
    """
    if torch.is_grad_enabled() or any(type(layer) is not nn.Linear for layer in layers):
        return None
    parts = []
    for name in ("weight", "bias"):
        tensors = [getattr(layer, name) for layer in layers]
        if any(type(t) is not nn.Parameter for t in tensors):
            return None
        joined = _adjacent(tensors)
        if joined is None:
            # A tensor made under inference_mode could never be trained again.
            with torch.inference_mode(False), torch.no_grad():
                joined = torch.cat([t.data for t in tensors])
                for t, piece in zip(tensors, joined.split(tensors[0].shape[0])):
                    t.data = piece
        parts.append(joined)
    return parts[0], parts[1]


def _adjacent(tensors: list[torch.Tensor]) -> torch.Tensor | None:
    """One view over tensors [N, ...] that lie one behind the other in one storage, else None."""
    first = tensors[0].data
    step, storage = first.numel() * first.element_size(), first.untyped_storage()
    for i, t in enumerate(tensors):
        if t.shape != first.shape or not t.is_contiguous() or t.data_ptr() != first.data_ptr() + i * step:
            return None
        if t.untyped_storage().data_ptr() != storage.data_ptr():
            return None
    return first.as_strided((len(tensors) * first.shape[0], *first.shape[1:]), first.stride())


class Attention(nn.Module):
    """Self-attention or cross-attention with its output projection, residual and LayerNorm."""

    def __init__(self, config: BertGenerationConfig, index: int, cross: bool = False):
        super().__init__()
        self.index, self.cross = index, cross
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.dropout = config.attention_probs_dropout_prob
        source_size = config.cross_attention_hidden_size if cross else None
        self.self = Projections(config, source_size or config.hidden_size)
        self.output = AddNorm(config.hidden_size, config)

    def forward(self, x: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """x [T, hidden] -> [T, hidden]"""
        attend = self._attend_source if self.cross else self._attend_self
        return self.output(attend(x, context).flatten(1), x)

    def _attend_self(self, x: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        q, k, v = (self._heads(t) for t in project(x, self.self.query, self.self.key, self.self.value))
        if context.cache is not None:
            return context.cache.attend(self.index, q, k, v)
        rows = context.tokens
        return ops.attention(
            q, k, v, rows.cu, rows.cu, rows.longest, rows.longest,
            causal=context.causal, key_len=context.key_len, key_mask=context.key_mask, dropout=self._dropout,
        )  # fmt: skip

    def _attend_source(self, x: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        q = self._heads(ops.linear(x, self.self.query.weight, self.self.query.bias))
        if context.source is None:
            assert context.cache is not None
            return context.cache.attend_cross(self.index, q)
        states, source = context.source
        k, v = (self._heads(t) for t in project(states, self.self.key, self.self.value))
        if context.cache is not None:
            context.cache.set_cross(self.index, source.unpack(k), source.unpack(v))
            return context.cache.attend_cross(self.index, q)
        rows = context.tokens
        return ops.attention(q, k, v, rows.cu, source.cu, rows.longest, source.longest, dropout=self._dropout)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim))

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0


class Intermediate(nn.Module):
    """The first half of the feed-forward block: activation(dense(x))."""

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = config.hidden_act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ops.linear(x, self.dense.weight, self.dense.bias, self.activation)


class Layer(nn.Module):
    """Self-attention, cross-attention in a decoder that has it, feed-forward."""

    def __init__(self, config: BertGenerationConfig, index: int):
        super().__init__()
        self.attention = Attention(config, index)
        if config.add_cross_attention:
            self.crossattention = Attention(config, index, cross=True)
        self.intermediate = Intermediate(config)
        self.output = AddNorm(config.intermediate_size, config)

    def forward(self, x: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """x [T, hidden] -> [T, hidden]"""
        x = self.attention(x, context)
        if context.source is not None or (context.cache is not None and context.cache.has_cross):
            x = self.crossattention(x, context)
        return self.output(self.intermediate(x), x)


class Stack(nn.Module):
    """The layers, one after another."""

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        if config.hidden_act not in ACTIVATIONS:
            raise ConfigError(f"hidden_act {config.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        self.layer = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))

    def forward(self, x: torch.Tensor, context: AttentionContext, states: list[torch.Tensor] | None = None):
        """x [T, hidden] -> [T, hidden]; the input and every layer's output are appended to `states` if given."""
        if context.source is not None and not all(hasattr(layer, "crossattention") for layer in self.layer):
            raise UnsupportedError("encoder states were given to a decoder built without add_cross_attention=True")
        if states is not None:
            states.append(x)
        for layer in self.layer:
            x = layer(x, context)
            if states is not None:
                states.append(x)
        return x


class LMHead(nn.Module):
    """logits = hidden W^T + bias, W usually the word embeddings."""

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        if config.tie_word_embeddings:
            self.decoder.bias = self.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, vocab]"""
        return ops.linear(x, self.decoder.weight, self.decoder.bias)
