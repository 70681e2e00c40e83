"""The name of a cache in calls and outputs: that of the installed transformers, or `past_key_values`."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers

import bertgen
from bertgen.dropin.cache_argument import NAME, OLD_NAME, with_current_name
from tests.support.dropin_models import batch, distance, make_both, make_model


def test_the_name_is_that_of_the_installed_transformers():
    fields = {field.name for field in dataclasses.fields(transformers.modeling_outputs.Seq2SeqLMOutput)}
    assert {"cache", OLD_NAME} & fields == {NAME}


def test_the_old_name_becomes_the_current_one():
    assert with_current_name({OLD_NAME: 1, "labels": 2}) == {NAME: 1, "labels": 2}
    both = {OLD_NAME: 1, NAME: 2}
    assert with_current_name(both) == both and with_current_name({"labels": 2}) == {"labels": 2}


@pytest.mark.parametrize("name", sorted({NAME, OLD_NAME}))
def test_a_forward_continues_from_a_cache_by_each_name(name, calls):
    (theirs, ours), (inputs, labels) = make_both(), batch()
    ids, logits = labels.clamp(min=0), []
    with torch.no_grad():
        for model in (theirs, ours):
            first = model(**inputs, decoder_input_ids=ids)
            more = {"encoder_outputs": (first.encoder_last_hidden_state,), name: first[NAME]}
            logits.append(model(**more, attention_mask=inputs["attention_mask"], decoder_input_ids=ids[:, :2]).logits)
    assert distance(*logits) <= 1e-4 and len(calls) == 2


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize("name", sorted({NAME, OLD_NAME}))
def test_no_cache_by_each_name(name, generate, recwarn):
    model, (inputs, _) = make_model(), batch()
    expected = model.generate(**inputs, max_new_tokens=6)
    ours = bertgen.accelerate(model, generate=generate)
    assert torch.equal(ours.generate(**inputs, max_new_tokens=6, **{name: None}), expected)
    assert not [one for one in recwarn if "deprecated" in str(one.message)]


@pytest.mark.parametrize("search", [{}, {"generate": False}])
def test_generate_returns_the_cache_under_the_current_name(search):
    model, (inputs, _) = bertgen.accelerate(make_model(), **search), batch()
    output = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
    assert NAME in output.keys() and isinstance(output[NAME], bertgen.PagedCache)
