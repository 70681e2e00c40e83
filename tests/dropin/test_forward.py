"""`forward` of accelerated models where arguments are unusual: what plain models answer, or their error."""

from __future__ import annotations

import pytest
import torch

import bertgen
from tests.dropin.test_accelerate import KINDS, batch, calls, distance, pair, twins  # noqa: F401
from tests.dropin.test_generation import alone, prompts

STATES = torch.linspace(-1, 1, 3 * 9 * 32).view(3, 9, 32)


def same(theirs, ours, **given):
    """Logits are equal, or errors are of one type; what came of it."""
    found = []
    for model in (theirs, ours):
        try:
            with torch.no_grad():
                found.append(model(**given)[0])
        except Exception as error:
            found.append(type(error).__name__)
    expected, got = found
    if isinstance(expected, str) or isinstance(got, str):
        assert got == expected
    else:
        assert distance(got, expected) <= 1e-4
    return got


def ones(width):
    return torch.ones(3, width, dtype=torch.long)


PAIRS = {
    "a longer mask": dict(attention_mask=ones(12)),
    "a shorter mask": dict(attention_mask=ones(5)),
    "a longer decoder mask": dict(decoder_attention_mask=ones(8)),
    "a shorter decoder mask": dict(decoder_attention_mask=ones(4)),
    "a mask longer than states": dict(input_ids=None, encoder_outputs=(STATES,), attention_mask=ones(12)),
    "a mask shorter than states": dict(input_ids=None, encoder_outputs=(STATES,), attention_mask=ones(5)),
    "positions of one dimension": dict(position_ids=torch.arange(9)),
    "decoder positions of one dimension": dict(decoder_position_ids=torch.arange(6)),
    "token types": dict(token_type_ids=ones(9)),
    "decoder token types": dict(decoder_token_type_ids=ones(6)),
    "an empty batch": dict(
        input_ids=torch.ones(0, 9, dtype=torch.long), attention_mask=None,
        decoder_input_ids=torch.ones(0, 6, dtype=torch.long),
    ),
    "a flag that is a number": dict(use_cache=1),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", PAIRS)
def test_a_pair(case, kind):
    given, labels = batch()
    same(*twins(kind), **{**given, "decoder_input_ids": labels.clamp(min=4), **PAIRS[case]})


@pytest.mark.parametrize("width", [4, 8])
def test_a_decoder_mask_of_another_length_than_labels(width):
    given, labels = batch()
    same(*twins(), **given, labels=labels, decoder_attention_mask=ones(width))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [3, 6, 9])
def test_a_decoder_on_its_own_with_a_mask_of_any_length(kind, width):
    same(alone(kind), alone(kind, fast=True), input_ids=prompts()[0], attention_mask=ones(width))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [2, 8, 10])
def test_a_cache_and_the_new_tokens_with_a_mask_of_any_length(kind, width):
    ids, mask = prompts()
    found = []
    for model in (alone(kind), alone(kind, fast=True)):
        with torch.no_grad():
            past = model(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
            whole = torch.cat((mask, ones(4)), 1)[:, :width]
            try:
                found.append(
                    model(input_ids=ids[:, :2].clamp(min=4), attention_mask=whole, past_key_values=past).logits
                )
            except Exception as error:
                found.append(type(error).__name__)
    if isinstance(found[0], str):
        assert found[0] == found[1]
    else:
        assert distance(*found) <= 1e-4


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "ids", [dict(eos_token_id=-1), dict(eos_token_id=[-1]), dict(eos_token_id=[]), dict(bos_token_id=-1),
            dict(pad_token_id=-1), dict(eos_token_id=None, bos_token_id=None), dict(eos_token_id=[3, 7])], ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_that_are_none(kind, ids, when, calls):  # noqa: F811
    given, labels = batch()
    models = []
    for fast in (False, True):
        model = pair(kind)
        if fast and when == "after":
            model = bertgen.accelerate(model)
        for config in (model.config, model.config.encoder, model.config.decoder):
            for name, value in ids.items():
                setattr(config, name, value)
        models.append(bertgen.accelerate(model) if fast and when == "before" else model)
    same(*models, **given, decoder_input_ids=labels.clamp(min=4))
    assert calls == ["forward"]


@pytest.mark.parametrize("kind", KINDS)
def test_own_models_have_the_same_special_ids(kind, tmp_path):
    theirs = pair(kind)
    for config in (theirs.config, theirs.config.decoder):
        config.eos_token_id, config.bos_token_id = -1, -1
    theirs.generation_config.eos_token_id = None
    theirs.save_pretrained(tmp_path)
    ours = bertgen.EncoderDecoderModel.from_pretrained(tmp_path).eval()
    assert ours.config.decoder.eos_token_id == -1
    given, labels = batch()
    same(theirs, ours, **given, labels=labels.clamp(min=4))
    assert bertgen.GenerationConfig.from_model_config(ours.config).end_tokens == []
    ours.save_pretrained(tmp_path / "again")
    assert type(theirs).from_pretrained(tmp_path / "again").config.decoder.eos_token_id == -1
