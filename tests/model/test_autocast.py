"""Under torch.autocast a model gives what transformers' gives there: with a cache and in `generate`."""

from __future__ import annotations

import pytest
import torch

import bertgen
from tests.support.small_pairs import IDS, MASK, own, theirs

TARGETS = torch.tensor([[2, 3, 4, 5, 6], [2, 7, 8, 9, 4]])
MODELS = {"own": own, "accelerated": lambda: bertgen.accelerate(theirs())}


def pair(kind):
    """A model of bertgen's and transformers' of the same weights."""
    oracle, model = theirs(), MODELS[kind]()
    with torch.no_grad():  # far from ties
        for name, parameter in oracle.named_parameters():
            parameter.mul_(4 if "word_embeddings" in name or "dense.weight" in name else 1)
    model.load_state_dict(oracle.state_dict())
    return oracle, model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", MODELS)
def test_logits_of_a_cache_equal_transformers(kind, dtype):
    oracle, model = pair(kind)
    given = dict(input_ids=IDS, attention_mask=MASK)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        expected = oracle(**given, decoder_input_ids=TARGETS).logits
        found = model(**given, decoder_input_ids=TARGETS)
        torch.testing.assert_close(found.logits, expected, rtol=0.1, atol=0.1)
        cache = model(**given, decoder_input_ids=TARGETS[:, :2]).past_key_values
        for place in (2, 3):
            step = model(**given, decoder_input_ids=TARGETS[:, place : place + 1], past_key_values=cache)
            torch.testing.assert_close(step.logits[:, -1], expected[:, place], rtol=0.1, atol=0.1)
            cache = step.past_key_values
    with torch.no_grad():  # the cache outlives the autocast
        step = model(**given, decoder_input_ids=TARGETS[:, 4:], past_key_values=cache)
        torch.testing.assert_close(step.logits[:, -1], expected[:, 4].float(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("options", [{}, dict(num_beams=3), dict(num_beams=2, num_return_sequences=2)], ids=str)
@pytest.mark.parametrize("extension", [True, False], ids=["cpp", "python"])
@pytest.mark.parametrize("kind", MODELS)
def test_tokens_are_there(kind, extension, options, monkeypatch):
    if not extension:
        monkeypatch.setattr("bertgen.layers.stack.decoder_step", lambda *arguments: None)
    oracle, model = pair(kind)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.generate(IDS, attention_mask=MASK, max_length=8, **options)
        expected = oracle.generate(IDS, attention_mask=MASK, max_length=8, **options)
    assert found.tolist() == expected.tolist()


def test_a_generator_runs_under_autocast():
    generator = bertgen.Generator("demo", device="cpu")
    expected = [output.text for output in generator.generate(["Where is the station?", "Hello."])]
    with torch.autocast("cpu", torch.bfloat16):
        assert [output.text for output in generator.generate(["Where is the station?", "Hello."])] == expected
