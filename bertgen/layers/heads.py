"""Heads of a stack: the language-model heads of the three model types, and the pooler.

Attribute names are those of the checkpoint.
"""

from __future__ import annotations

import torch
from torch import nn

from .. import ops
from ..config import BertGenerationConfig
from .activations import learned_activation
from .inspection import is_plain_layer_norm
from .linear import apply


def _normalized(y: torch.Tensor, norm: nn.Module, activation: str) -> torch.Tensor:
    """LayerNorm(activation(y))"""
    if not is_plain_layer_norm(norm):
        return norm(y if activation == "linear" else ops.bias_gelu(y, None, activation))
    return ops.gelu_layer_norm(y, norm.weight, norm.bias, norm.eps, activation)


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
        return apply(self.decoder, x)


class Transform(nn.Module):
    """LayerNorm(activation(dense(x))), before the LM head of BERT."""

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform_act_fn = learned_activation(config.hidden_act)
        self.activation = config.hidden_act if self.transform_act_fn is None else "linear"
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]"""
        y = apply(self.dense, x)
        if self.transform_act_fn is not None:
            y = self.transform_act_fn(y)
        return _normalized(y, self.LayerNorm, self.activation)


class BertPredictions(LMHead):
    """The LM head of BERT: `Transform`, then `LMHead`."""

    def __init__(self, config: BertGenerationConfig):
        super().__init__(config)
        self.transform = Transform(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, vocab]"""
        return super().forward(self.transform(x))


class BertLMHead(nn.Module):
    """Holds the head of BERT under its name in checkpoints, `predictions`."""

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        self.predictions = BertPredictions(config)


class RobertaLMHead(LMHead):
    """The LM head of RoBERTa: dense, GELU and LayerNorm, then `LMHead`. GELU for every activation of the stack."""

    def __init__(self, config: BertGenerationConfig):
        super().__init__(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, vocab]"""
        return super().forward(_normalized(apply(self.dense, x), self.layer_norm, "gelu"))


class Pooler(nn.Module):
    """tanh(dense(state of the first token))."""

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, L, hidden] -> [B, hidden]"""
        return torch.tanh(apply(self.dense, x[:, 0].contiguous()))
