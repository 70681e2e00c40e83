"""Growing and shrinking the tables of a vocabulary."""

from __future__ import annotations

import torch
from torch import nn

from ..config.validators import check_integer
from ..errors import ConfigError, InputError, UnsupportedError
from ..layers.linear import Int4Linear
from ..layers.meta_init import outlined


def size_of(rows: int | None, now: int, multiple: int | None) -> int:
    """Rows that a table of `now` rows gets: `rows` (None: as many as it has), up to the next multiple."""
    try:
        rows = now if rows is None else check_integer(1, rows, "new_num_tokens")
        if multiple is not None:
            multiple = check_integer(1, multiple, "pad_to_multiple_of")
            rows = check_integer(1, -(-rows // multiple) * multiple, "new_num_tokens, as pad_to_multiple_of makes it,")
    except ConfigError as error:
        raise InputError(str(error)) from None
    return rows


def check_rows(rows: int, expected: int, name: str) -> None:
    """ConfigError where a table has not as many rows as the configuration says: its file could not be loaded."""
    if rows != expected:
        raise ConfigError(
            f"{name} has {rows} rows, config.vocab_size is {expected}; resize_token_embeddings changes both"
        )


def resized_embedding(table: nn.Embedding, rows: int, std: float | None) -> nn.Embedding:
    """A table of `rows` rows with the first rows of another.

    Args:
        table: [V, hidden]; stays as it is.
        rows: of the new table.
        std: standard deviation of the new rows around 0; None makes each the mean of the old ones (Hewitt 2021), which
            leaves the probabilities of the old tokens nearly as they were.
    """
    padding = table.padding_idx if table.padding_idx is not None and table.padding_idx < rows else None
    with outlined():
        new = nn.Embedding(rows, table.embedding_dim, padding)
    new.weight = nn.Parameter(_resized(table.weight, rows, std), requires_grad=table.weight.requires_grad)
    return new


def resized_linear(layer: nn.Linear, rows: int, std: float | None) -> nn.Linear:
    """The same for a head; its bias gets zeros."""
    if isinstance(layer, Int4Linear):
        raise UnsupportedError(
            "the output layer is in 4 bits; dequantize() the model, resize it, and quantize it again"
        )
    with outlined():
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
