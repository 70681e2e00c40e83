"""A layer of a post-LN BERT stack on packed tokens. Attribute names are those of the checkpoint."""

from __future__ import annotations

import torch
from torch import nn

from ..config import BertGenerationConfig
from .activations import learned_activation
from .add_norm import AddNorm
from .attention import Attention, AttentionContext
from .linear import apply


class Intermediate(nn.Module):
    """The first half of the feed-forward block: activation(dense(x))."""

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = learned_activation(config.hidden_act)
        self.activation = None if self.intermediate_act_fn is not None else config.hidden_act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.intermediate_act_fn is None:
            return apply(self.dense, x, self.activation)
        return self.intermediate_act_fn(apply(self.dense, x))


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
