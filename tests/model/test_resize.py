"""Resized vocabularies: embeddings, heads and configurations."""

from __future__ import annotations

import pytest
import torch

from bertgen import (
    InputError,
    UnsupportedError,
)
from tests.support.model_kinds import KINDS, alone
from tests.support.reference_models import make_model_pair
from tests.support.tiny_models import distance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_resizing_the_vocabulary(kind, tied):
    model, _ = alone(kind, 2, is_decoder=True, tie_word_embeddings=tied)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        model.get_output_embeddings().bias += torch.rand(40)
    before = model(ids).logits
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    assert model.resize_token_embeddings(43) is model.get_input_embeddings()
    assert model.config.vocab_size == 43 and model.get_input_embeddings().weight.shape[0] == 43
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
    after = model(torch.tensor([[5, 6, 42]])).logits
    assert after.shape[-1] == 43 and distance(after[:, :2, :40], before[:, :2]) <= 1e-6
    assert distance(model.get_input_embeddings().weight[40:], words.weight.mean(0).expand(3, -1)) <= 1e-6
    assert not model.get_output_embeddings().bias[40:].any()
    model.resize_token_embeddings(30)
    assert distance(model(ids).logits, before[..., :30]) <= 1e-6
    assert model.resize_token_embeddings(None, pad_to_multiple_of=16).num_embeddings == 32
    model.resize_token_embeddings(40, mean_resizing=False)
    assert model.get_input_embeddings().weight[32:].std() > 0.05
    assert head.weight.shape[0] == 40  # what was taken out earlier is as it was
    with pytest.raises(UnsupportedError, match=r"model\.decoder\.resize_token_embeddings"):
        make_model_pair(0).model.resize_token_embeddings(50)
    with pytest.raises(InputError, match="-1"):
        model.resize_token_embeddings(-1)


def test_a_resized_half_keeps_its_place_in_the_whole():
    model = make_model_pair(0).model
    model.decoder.resize_token_embeddings(120)
    labels = torch.tensor([[110, 119, 1]])
    assert model(torch.tensor([[5, 6]]), labels=labels).logits.shape == (1, 3, 120)
    assert model.config.decoder.vocab_size == 120
