"""Checks of the inputs of the models."""

from __future__ import annotations

import pytest
import torch

from bertgen import (
    ConfigError,
    InputError,
)
from tests.support.model_kinds import alone
from tests.support.tiny_models import distance, tiny

BAD_CALLS = {
    "id above": (dict(input_ids=torch.tensor([[40]])), "40.*39"),
    "id below": (dict(input_ids=torch.tensor([[-1]])), "-1"),
    "ids dtype": (dict(input_ids=torch.tensor([[1.0]])), "float32"),
    "ids one-dimensional": (dict(input_ids=torch.tensor([3])), r"\(1,\)"),
    "no rows": (dict(input_ids=torch.zeros(0, 3, dtype=torch.long)), r"\(0, 3\)"),
    "no tokens": (dict(input_ids=torch.zeros(2, 0, dtype=torch.long)), r"\(2, 0\)"),
    "too long": (dict(input_ids=torch.full((1, 17), 3)), "17.*16"),
    "mask shape": (dict(input_ids=torch.full((1, 3), 3), attention_mask=torch.ones(1, 4)), r"\(1, 4\).*\(1, 3\)"),
    "position": (dict(input_ids=torch.full((1, 1), 3), position_ids=torch.tensor([[16]])), "16.*15"),
    "nothing": (dict(), "exactly one"),
    "both": (dict(input_ids=torch.full((1, 1), 3), inputs_embeds=torch.zeros(1, 1, 32)), "exactly one"),
    "embeds width": (dict(inputs_embeds=torch.zeros(1, 1, 31)), "32.*31"),
    "not a tensor": (dict(input_ids=[[3]]), "list"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_encoder_input_is_named(case):
    inputs, message = BAD_CALLS[case]
    with pytest.raises(InputError, match=message):
        tiny().encoder(**inputs)


def test_bad_labels_and_masks_are_named():
    model, ids = tiny(), torch.full((1, 3), 3)
    with pytest.raises(InputError, match="labels holds 40"):
        model(ids, labels=torch.tensor([[40]]))
    with pytest.raises(InputError, match=r"labels have shape \(2, 3\)"):
        model(ids, labels=torch.full((2, 3), 3))
    with pytest.raises(InputError, match="17 tokens.*16 positions"):
        model(ids, labels=torch.full((1, 17), 3))
    model.config.pad_token_id = None
    with pytest.raises(ConfigError, match="pad_token_id"):
        model(ids, labels=ids)


def test_bad_inputs_of_the_new_kinds_are_named():
    model, _ = alone("bert", 1)
    ids = torch.full((1, 3), 5)
    with pytest.raises(InputError, match=r"token_type_ids holds 2; ids go from 0 to 1"):
        model(ids, token_type_ids=torch.tensor([[0, 1, 2]]))
    with pytest.raises(InputError, match=r"token_type_ids have shape \(1, 2\)"):
        model(ids, token_type_ids=torch.zeros(1, 2, dtype=torch.long))
    plain, _ = alone("bert-generation", 1)
    assert distance(plain(ids, token_type_ids=torch.zeros_like(ids))[0], plain(ids)[0]) == 0
    with pytest.raises(InputError, match="token_type_ids holds 1; ids go from 0 to 0"):
        plain(ids, token_type_ids=torch.ones_like(ids))
    roberta, _ = alone("roberta", 1)
    with pytest.raises(InputError, match="20 tokens, but the model has 19 positions"):
        roberta(torch.full((1, 20), 5))
    with pytest.raises(InputError, match=r"\(1, 1, 3, 2\), which does not broadcast to \(1, 4, 3, 3\)"):
        model(ids, attention_mask=torch.ones(1, 1, 3, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="bool or floating.*int64"):
        model(ids, attention_mask=torch.ones(1, 1, 3, 3, dtype=torch.long))
    with pytest.raises(InputError, match=r"\(1, 3, 3\)"):
        model(ids, attention_mask=torch.ones(1, 3, 3))
    with pytest.raises(ConfigError, match=r"True, False or None, got \[0\]"):
        model(ids, output_hidden_states=[0])
    decoder, _ = alone("bert", 2, is_decoder=True)
    with pytest.raises(InputError, match="past_key_values hold 1 rows, the input has 2"):
        decoder(torch.full((2, 1), 5), past_key_values=decoder(ids).past_key_values)
