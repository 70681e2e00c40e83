"""Changes to the tensors of a checkpoint before a model takes them."""

from __future__ import annotations

import pytest
import torch

from bertgen import CheckpointError
from bertgen.model.state_dict import count_layers, fold_token_types, rename_tensors


def test_equal_tensors_may_get_one_name_and_others_may_not():
    state = {"a.weight": torch.ones(2), "b.weight": torch.ones(2), "c": torch.zeros(2)}
    assert list(rename_tensors(state, lambda name: name.replace("b.", "a."))) == ["a.weight", "c"]
    with pytest.raises(CheckpointError, match=r"b\.weight and c are two weights for one name, x"):
        rename_tensors({"b.weight": torch.ones(2), "c": torch.zeros(2)}, lambda name: "x")
    with pytest.raises(CheckpointError, match="two weights"):  # of another dtype
        rename_tensors({"a": torch.ones(2), "b": torch.ones(2).half()}, lambda name: "x")


def test_layers_are_counted_in_the_deepest_stack():
    names = ["encoder.layer.1.output.dense.weight", "decoder.bert.encoder.layer.10.x", "layer.99.x", "x.layer.7"]
    assert count_layers(dict.fromkeys(names, torch.ones(1))) == 11
    assert count_layers({"embeddings.weight": torch.ones(1)}) == 0


def test_folded_embeddings_are_the_sum_of_both():
    positions, types = torch.arange(6.0).view(3, 2), torch.tensor([[10.0, 20.0], [5.0, 5.0]])
    state = {
        "bert.embeddings.position_embeddings.weight": positions,
        "bert.embeddings.token_type_embeddings.weight": types,
    }
    folded, count = fold_token_types({**state, "other": torch.ones(1)}, first=1)
    assert count == 2 and list(folded) == ["bert.embeddings.position_embeddings.weight", "other"]
    assert torch.equal(folded["bert.embeddings.position_embeddings.weight"], torch.tensor([[12.0, 23.0], [14.0, 25.0]]))


def test_without_token_types_nothing_is_folded():
    with pytest.raises(CheckpointError, match=r"there are \['position_embeddings.weight'\]"):
        fold_token_types({"embeddings.position_embeddings.weight": torch.ones(3, 2)}, first=0)
