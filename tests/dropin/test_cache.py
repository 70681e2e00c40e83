"""`PagedCache`: filled by an accelerated model, by transformers' modules, or by both."""

from __future__ import annotations

import pytest
import torch

import bertgen
from tests.support.dropin_models import batch, distance, make_both, make_model


def test_no_cache_is_returned_in_training(calls):
    model, (inputs, labels) = bertgen.accelerate(make_model()), batch()
    ids = labels.clamp(min=0)
    assert model(**inputs, decoder_input_ids=ids, labels=labels).past_key_values is None
    assert model(**inputs, decoder_input_ids=ids).past_key_values.get_seq_length() == 6
    assert model.train()(**inputs, decoder_input_ids=ids).past_key_values is None and len(calls) == 3


def test_a_cache_that_transformers_filled(calls):
    (theirs, ours), (inputs, labels) = make_both(), batch()
    ids, cache = labels.clamp(min=0), bertgen.PagedCache(theirs.config)
    with torch.no_grad():
        first = theirs(**inputs, decoder_input_ids=ids, past_key_values=cache)
        more = dict(encoder_outputs=(first.encoder_last_hidden_state,), attention_mask=inputs["attention_mask"])
        expected = theirs(**inputs, decoder_input_ids=torch.cat((ids, ids[:, :1]), 1)).logits[:, -1:]
        got = ours(**more, decoder_input_ids=ids[:, :1], past_key_values=cache).logits
    assert distance(got, expected) <= 1e-4 and not calls


def test_a_call_continues_from_a_cache(calls):
    (theirs, ours), (inputs, labels) = make_both(), batch()
    ids = labels.clamp(min=0)
    logits = []
    with torch.no_grad():
        for model in (theirs, ours):
            first = model(**inputs, decoder_input_ids=ids)
            states, cache = (first.encoder_last_hidden_state,), first.past_key_values
            more = dict(encoder_outputs=states, attention_mask=inputs["attention_mask"])
            second = model(**more, decoder_input_ids=ids[:, :2], past_key_values=cache)
            cache = second.past_key_values
            cache.reorder_cache(torch.tensor([0, 1, 2]))
            logits.append(model(**more, decoder_input_ids=ids[:, :1], past_key_values=cache).logits)
            assert cache.get_seq_length() == 9
    assert distance(*logits) <= 1e-4 and len(calls) == 3


def test_a_cache_that_both_libraries_fill(calls):
    """Started by bertgen, continued by transformers' modules, then by bertgen again."""
    (theirs, ours), (inputs, labels) = make_both(), batch()
    ids, logits = labels.clamp(min=0), []
    with torch.no_grad():
        for model in (theirs, ours):
            first = model(**inputs, decoder_input_ids=ids)
            more = dict(
                encoder_outputs=(first.encoder_last_hidden_state,), attention_mask=inputs["attention_mask"],
                past_key_values=first.past_key_values,
            )  # fmt: skip
            model(**more, decoder_input_ids=ids[:, :2], output_hidden_states=True)
            logits.append(model(**more, decoder_input_ids=ids[:, :1]).logits)
    assert distance(*logits) <= 1e-4 and len(calls) == 2


@pytest.mark.parametrize("beams", [1, 4])
def test_a_paged_cache_in_transformers_own_model_and_loop(beams):
    model, (inputs, _) = make_model(), batch()
    expected, got = (
        model.generate(**inputs, max_new_tokens=12, num_beams=beams, **more)
        for more in ({}, dict(past_key_values=bertgen.PagedCache(model.config)))
    )
    assert torch.equal(got, expected)
    with pytest.raises(bertgen.UnsupportedError, match="cannot be cropped"):
        bertgen.PagedCache(model.config).crop(-1)
