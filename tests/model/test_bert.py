"""What BERT has and bert-generation has not: the pooler."""

from __future__ import annotations

import random

import pytest
import torch

from tests.support.model_kinds import alone, ids_and_mask
from tests.support.tiny_models import distance


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_pooler_and_the_order_of_outputs(kind):
    ours, theirs = alone(kind, 1)
    ids, mask = ids_and_mask(random.Random(4), 3, 7)
    inputs = dict(attention_mask=mask, output_hidden_states=True, output_attentions=True)
    with torch.no_grad():
        expected, got = theirs(ids, **inputs), ours(ids, **inputs)
    assert distance(got.pooler_output, expected.pooler_output) <= 1e-5
    # transformers adds cross-attentions to the encoder's outputs: an empty tuple
    assert list(got.keys()) == [name for name in expected.keys() if name != "cross_attentions"]
    assert isinstance(ours(ids, return_dict=False)[1], torch.Tensor)
