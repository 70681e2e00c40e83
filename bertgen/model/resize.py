"""Resizing of embedding tables and heads."""

from __future__ import annotations

import torch
from torch import nn

from ..config.validators import check_integer
from ..errors import ConfigError, InputError, UnsupportedError
from ..layers.linear import Int4Linear
from ..layers.meta_init import init_empty_weights


def size_of(rows: int | None, current: int, multiple: int | None) -> int:
    """New number of rows of a table of `current` rows: `rows` (None keeps it), rounded up to a multiple."""
    try:
        rows = current if rows is None else check_integer(1, rows, "new_num_tokens")
        if multiple is not None:
            multiple = check_integer(1, multiple, "pad_to_multiple_of")
            rows = check_integer(1, -(-rows // multiple) * multiple, "new_num_tokens, as pad_to_multiple_of makes it,")
    except ConfigError as error:
        raise InputError(str(error)) from None
    return rows


def check_rows(rows: int, expected: int, name: str) -> None:
    """Raise ConfigError for a table of another size than the configuration's: its file could not be loaded."""
    if rows != expected:
        raise ConfigError(
            f"{name} has {rows} rows, config.vocab_size is {expected}; resize_token_embeddings changes both"
        )


def resized_embedding(table: nn.Embedding, rows: int, std: float | None) -> nn.Embedding:
    """A new table of `rows` rows, the first ones copied from `table`.

    Args:
        table: [V, hidden]; not changed.
        rows: of the new table.
        std: new rows are sampled from N(0, std); None sets them to the mean of the old ones (Hewitt 2021), which hardly
            changes the probabilities of the old tokens.
    """
    padding = table.padding_idx if table.padding_idx is not None and table.padding_idx < rows else None
    with init_empty_weights():
        new = nn.Embedding(rows, table.embedding_dim, padding)
    new.weight = nn.Parameter(_resized(table.weight, rows, std), requires_grad=table.weight.requires_grad)
    return new


def resized_linear(layer: nn.Linear, rows: int, std: float | None) -> nn.Linear:
    """As `resized_embedding`, for a head; new biases are 0."""
    if isinstance(layer, Int4Linear):
        raise UnsupportedError(
            "the output layer is in 4 bits; dequantize() the model, resize it, and quantize it again"
        )
    with init_empty_weights():
        new = nn.Linear(layer.in_features, rows)
    new.weight = nn.Parameter(_resized(layer.weight, rows, std), requires_grad=layer.weight.requires_grad)
    new.bias = nn.Parameter(_resized(layer.bias, rows, 0.0), requires_grad=layer.bias.requires_grad)
    return new


def _resized(old: torch.Tensor, rows: int, std: float | None) -> torch.Tensor:
    old = old.detach()
    kept = min(rows, old.shape[0])
    new = old.new_empty(rows, *old.shape[1:])
    new[:kept] = old[:kept]
    if std is None:
        new[kept:] = old.float().mean(0)
    else:
        new[kept:].normal_(0.0, std)
    return new
