"""Inputs of `generate`: ids, embeddings, states, masks, prefixes and caches, against transformers."""

from __future__ import annotations

import random

import pytest
import torch

from bertgen import (
    ConfigError,
    GenerationConfig,
    InputError,
)
from bertgen.outputs import BaseModelOutputWithPastAndCrossAttentions
from tests.support.generate_comparison import batch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers")


def test_padding_is_inferred_unless_switched_off(models):
    model, _ = models
    ids = torch.tensor([[7, 9, 11, 0, 0, 0], [5, 6, 7, 8, 9, 10]])
    mask = (ids != 0).long()
    chosen = dict(max_new_tokens=10, num_beams=2, return_dict_in_generate=True)
    given = model.generate(ids, attention_mask=mask, **chosen)
    inferred = model.generate(ids, **chosen)
    attended = model.generate(ids, infer_attention_mask=False, **chosen)
    assert torch.equal(inferred.sequences, given.sequences)
    assert torch.equal(inferred.sequences_scores, given.sequences_scores)
    assert not torch.equal(attended.sequences_scores, given.sequences_scores)


def test_bad_inputs_are_named(models):
    model, _ = models
    vocabulary, positions = model.config.encoder.vocab_size, model.config.encoder.max_position_embeddings
    for ids, message in (
        (torch.tensor([[vocabulary]]), f"{vocabulary}.*{vocabulary - 1}"),
        (torch.zeros(0, 4, dtype=torch.long), r"\(0, 4\)"),
        (torch.full((1, positions + 1), 5), f"{positions + 1} tokens.*{positions} positions"),
        (torch.tensor([5, 6]), r"\(2,\)"),
    ):
        with pytest.raises(InputError, match=message):
            model.generate(ids, max_new_tokens=3)
    ids = torch.tensor([[5, 6]])
    for given, message in (
        (dict(inputs=ids, input_ids=ids), "inputs and input_ids"),
        (dict(input_ids=ids, inputs_embeds=torch.ones(1, 2, 48)), "exactly one of input_ids or inputs_embeds"),
        (dict(input_ids=ids, decoder_input_ids=torch.tensor([[99]])), "decoder_input_ids holds 99"),
        (dict(input_ids=ids, decoder_input_ids=torch.tensor([[5], [6]])), r"decoder_input_ids.*\(2, 1\).*\(1, "),
        (dict(input_ids=ids, decoder_attention_mask=torch.ones(1, 3)), r"decoder_attention_mask.*\(1, 3\).*\(1, 1\)"),
        (
            dict(input_ids=ids, decoder_input_ids=torch.full((1, 9), 2), max_length=9, max_new_tokens=None),
            "max_length 9 leaves no room after the first 9 tokens",
        ),
        (
            dict(input_ids=ids, decoder_position_ids=torch.tensor([[46]])),
            "needs 49 .* the model has 48",
        ),
        (dict(encoder_outputs=()), "encoder_outputs must be the return value of the encoder"),
        (dict(encoder_outputs=torch.ones(1, 2, 48)), "encoder_outputs must be the return value of the encoder"),
        (dict(input_ids=ids, past_key_values=((1, 2),)), "past_key_values must be the Cache .* got tuple"),
    ):
        with pytest.raises((InputError, ConfigError), match=message):
            model.generate(**dict(max_new_tokens=3) | given)


@pytest.mark.parametrize("beams", [1, 3])
def test_inputs_of_every_kind_give_the_same(models, beams):
    """Embeddings, the encoder's outputs and positions in place of ids, as in transformers."""
    model, oracle = models
    ids, mask = batch(random.Random(3), model.config.encoder.vocab_size)
    chosen = dict(num_beams=beams, max_new_tokens=10, attention_mask=mask)
    expected = oracle.generate(ids, **chosen)
    with torch.no_grad():
        states = model.encoder(ids, mask).last_hidden_state
    for given in (
        dict(input_ids=ids),
        dict(inputs_embeds=model.get_input_embeddings()(ids).detach()),
        dict(encoder_outputs=(states,)),
        dict(encoder_outputs=BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)),
        dict(encoder_outputs=model.encoder(ids, mask), input_ids=ids),
        dict(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None]),
        dict(input_ids=ids, decoder_position_ids=torch.zeros(len(ids), 1, dtype=torch.long)),
    ):
        assert torch.equal(model.generate(**given, **chosen), expected), given.keys()
    shifted = dict(position_ids=torch.arange(3, 3 + ids.shape[1])[None].expand_as(ids))
    assert torch.equal(model.generate(ids, **shifted, **chosen), oracle.generate(ids, **shifted, **chosen))
    shifted = dict(decoder_position_ids=torch.full((len(ids), 1), 4))
    assert torch.equal(model.generate(ids, **shifted, **chosen), oracle.generate(ids, **shifted, **chosen))


def test_without_inputs_the_encoder_reads_one_bos(models):
    model, oracle = models
    assert torch.equal(model.generate(max_new_tokens=5), oracle.generate(max_new_tokens=5))
    prefix = torch.tensor([[9, 10], [11, 12]])
    results = [one.generate(decoder_input_ids=prefix, max_new_tokens=5) for one in models]
    assert torch.equal(*results) and len(results[0]) == 2
    none = GenerationConfig(decoder_start_token_id=2, pad_token_id=0)
    kept, model.generation_config = model.generation_config, none
    try:
        with pytest.raises(InputError, match="input_ids: there is no bos_token_id"):
            model.generate(max_new_tokens=5)
    finally:
        model.generation_config = kept


def test_a_prefix_counts_as_length_but_not_as_new_tokens(models):
    model, _ = models
    ids, prefix = torch.tensor([[5, 6, 7]]), torch.tensor([[2, 9, 10]])
    endless = dict(eos_token_id=None, pad_token_id=0)
    assert model.generate(ids, decoder_input_ids=prefix, max_length=8, **endless).shape == (1, 8)
    assert model.generate(ids, decoder_input_ids=prefix, max_new_tokens=8, **endless).shape == (1, 11)
    assert model.generate(ids, decoder_input_ids=prefix[:, 1:], max_new_tokens=8, **endless).shape == (1, 11)


def test_a_cache_that_does_not_fit_is_refused(models):
    model, _ = models
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    first = model.generate(ids, max_new_tokens=4, return_dict_in_generate=True, eos_token_id=None)
    cache, whole = first.past_key_values, first.sequences
    for given, message in (
        (dict(num_beams=2, decoder_input_ids=whole), "one output per row, got 2"),
        (dict(do_sample=True, num_return_sequences=3, decoder_input_ids=whole), "one output per row, got 3"),
        (dict(decoder_input_ids=whole[:, -1:]), "hold 4 tokens a row, the input has 2: it must be the whole sequence"),
        (dict(input_ids=ids[:1], decoder_input_ids=whole[:1]), "hold 2 rows, the input has 1"),
        (dict(input_ids=None), "need decoder_input_ids"),
    ):
        with pytest.raises(InputError, match=message):
            model.generate(**dict(input_ids=ids, past_key_values=cache, max_new_tokens=3) | given)
