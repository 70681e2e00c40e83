"""Changes to the tensors of a checkpoint, {name: tensor}, before a model takes them."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from ..errors import CheckpointError


def rename_tensors(state: dict[str, torch.Tensor], new_name: Callable[[str], str]) -> dict[str, torch.Tensor]:
    """The tensors under new names.

    Raises:
        CheckpointError: two different tensors would get the same name.
    """
    renamed: dict[str, torch.Tensor] = {}
    former: dict[str, str] = {}
    for name, tensor in state.items():
        new = new_name(name)
        if new in renamed and not (renamed[new].dtype == tensor.dtype and torch.equal(renamed[new], tensor)):
            raise CheckpointError(f"{former[new]} and {name} are two weights for one name, {new}")
        renamed[new], former[new] = tensor, name
    return renamed


def count_layers(state: dict[str, torch.Tensor]) -> int:
    """The number of layers of the deepest stack in a checkpoint."""
    matches = (re.search(r"\.layer\.(\d{1,9})\.", name) for name in state)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def fold_token_types(state: dict[str, torch.Tensor], first: int) -> tuple[dict[str, torch.Tensor], int]:
    """Add the embedding of token type 0 to the position embeddings of a BERT, which then begin with row `first`.

    Returns:
        The tensors with the new table of positions and without token types, and the number of positions.

    Raises:
        CheckpointError: there are no such tables.
    """
    tables = {name.rpartition(".embeddings.")[2]: name for name in state if name.endswith("_embeddings.weight")}
    tables = {name.removeprefix("embeddings."): full for name, full in tables.items()}
    positions, types = tables.get("position_embeddings.weight"), tables.get("token_type_embeddings.weight")
    if positions is None or types is None:
        raise CheckpointError(f"fold_embeddings needs tables of positions and token types; there are {list(tables)}")
    folded = state[positions][first:] + state[types][0]
    return {**{name: t for name, t in state.items() if name != types}, positions: folded}, folded.shape[0]
