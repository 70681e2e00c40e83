"""The end of an attention block and of a feed-forward block. Attribute names are those of the checkpoint."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .. import ops
from ..config import BertGenerationConfig
from .inspection import is_plain_layer_norm
from .linear import apply


class AddNorm(nn.Module):
    """LayerNorm(dropout(dense(x)) + residual): the end of an attention block and of a feed-forward block."""

    def __init__(self, inputs: int, config: BertGenerationConfig):
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        norm, dropout = self.LayerNorm, self.dropout if self.training else 0.0
        y = apply(self.dense, x)
        if not is_plain_layer_norm(norm):
            return norm(F.dropout(y, dropout) + residual)
        return ops.add_layer_norm(y, None, residual, norm.weight, norm.bias, norm.eps, dropout=dropout)
