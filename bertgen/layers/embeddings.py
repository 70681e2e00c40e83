"""Word, position and token-type embeddings. Attribute names are those of the checkpoint."""

from __future__ import annotations

import torch
from torch import nn

from .. import ops
from ..config import BertConfig, BertGenerationConfig
from ..errors import ConfigError
from .inspection import is_plain, is_plain_layer_norm
from .linear import check_dtype


class Embeddings(nn.Module):
    """LayerNorm(word[id] + token_type[t] + position[p]), then dropout; only bert and roberta have token types."""

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        size, padding = config.hidden_size, config.pad_token_id
        for name in ("vocab_size", "max_position_embeddings") if config.first_position else ("vocab_size",):
            if padding is not None and padding >= getattr(config, name):
                raise ConfigError(f"pad_token_id {padding} has no row: {name} is {getattr(config, name)}")
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=padding)
        padding = padding if config.first_position else None
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size, padding_idx=padding)
        if isinstance(config, BertConfig):
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        ids: torch.Tensor | None,
        positions: torch.Tensor,
        embeds: torch.Tensor | None = None,
        types: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """ids int64 [T] or embeds [T, hidden], positions and types (None: all 0) int64 [T] -> [T, hidden]

        Args:
            dtype: of sums and the result, at least as wide as that of the tables; None is that of the tables.
        """
        if embeds is not None:
            check_dtype(embeds, self.position_embeddings, "inputs_embeds")
        summed = self.word_embeddings(ids) if embeds is None else embeds
        if dtype is not None:
            summed = summed.to(dtype)
        if hasattr(self, "token_type_embeddings"):
            table = self.token_type_embeddings
            if types is None and is_plain(table, nn.Embedding) and table.max_norm is None:
                summed = summed + table.weight[0]
            else:
                summed = summed + table(torch.zeros_like(positions) if types is None else types)
        summed = summed + self.position_embeddings(positions)
        norm = self.LayerNorm
        if not is_plain_layer_norm(norm):
            return self.dropout(norm(summed))
        return self.dropout(ops.add_layer_norm(summed, None, None, norm.weight, norm.bias, norm.eps))
