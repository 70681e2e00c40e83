"""Cached and uncached decoders of `generate`, against transformers."""

from __future__ import annotations

import random

import pytest
import torch

from bertgen.cache.cache import Cache
from tests.support.generate_comparison import assert_same, batch, both

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers")


LOOKS = (
    dict(output_hidden_states=True),
    dict(output_attentions=True),
    dict(output_hidden_states=True, output_attentions=True),
)


SEARCHES = (dict(), dict(num_beams=3, num_return_sequences=2), dict(do_sample=True, num_return_sequences=2))


@pytest.mark.parametrize("looks", LOOKS, ids=lambda looks: " ".join(looks))
@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: " ".join(search) or "greedy")
@pytest.mark.parametrize("prefix", [None, [[2, 9], [2, 7]], [[9, 8], [0, 7]]])
def test_without_a_cache_states_have_the_shapes_of_transformers(models, search, looks, prefix):
    model, oracle = models
    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    more = {} if prefix is None else dict(decoder_input_ids=torch.tensor(prefix))
    if prefix is not None and prefix[1][0] == 0:
        more["decoder_attention_mask"] = torch.tensor([[1, 1], [0, 1]])
    options = dict(
        use_cache=False, return_dict_in_generate=True, output_scores=True, max_new_tokens=5, **looks, **search
    )
    expected, got = both(oracle, model, 3, input_ids=ids, attention_mask=mask, **more, **options)
    assert_same(expected, got, "decoder_attention_mask" in more)
    assert got.past_key_values is None
    cached = both(oracle, model, 3, input_ids=ids, attention_mask=mask, **more, **{**options, "use_cache": True})[1]
    assert torch.equal(cached.sequences, got.sequences)


@pytest.mark.parametrize("beams", [1, 4])
def test_the_cache_changes_nothing(models, beams):
    """Scores of beams from cached steps equal a teacher-forced forward over the chosen tokens."""
    model, _ = models
    ids, mask = batch(random.Random(9), model.config.encoder.vocab_size)
    chosen = dict(num_beams=beams, max_new_tokens=12, length_penalty=0.0, return_dict_in_generate=True)
    output = model.generate(ids, attention_mask=mask, **chosen)
    with torch.no_grad():
        logits = model(ids, mask, decoder_input_ids=output.sequences[:, :-1]).logits
    targets = output.sequences[:, 1:]
    chosen_log = logits.log_softmax(-1).gather(2, targets[..., None]).squeeze(2)
    for row in range(len(ids)):
        end = (targets[row] == 1).nonzero()
        length = int(end[0]) + 1 if len(end) else targets.shape[1]
        if beams > 1:
            assert abs(float(chosen_log[row, :length].sum() - output.sequences_scores[row])) <= 1e-4
        else:
            assert torch.equal(logits[row, :length].argmax(-1), targets[row, :length])


def test_cross_keys_are_computed_once_and_never_copied_per_beam(models, monkeypatch):
    model, _ = models
    calls, shapes, set_cross = [], [], Cache.set_cross

    def watched(self, layer, keys, values):
        calls.append(layer)
        shapes.append(keys.shape)
        set_cross(self, layer, keys, values)

    monkeypatch.setattr(Cache, "set_cross", watched)
    model.generate(torch.full((3, 5), 6), num_beams=4, max_new_tokens=8)
    layers = model.config.decoder.num_hidden_layers
    assert calls == list(range(layers)) and {shape[0] for shape in shapes} == {3 * 5}


def test_a_reorder_moves_no_keys(models, monkeypatch):
    model, _ = models
    reorder, moved = Cache.reorder, []

    def watched(self, rows):
        before = [keys.clone() for keys in self.pool.keys]
        reorder(self, rows)
        moved.append(all(map(torch.equal, before, self.pool.keys)) and not torch.equal(rows, torch.arange(len(rows))))

    monkeypatch.setattr(Cache, "reorder", watched)
    # The loop, whose cache is watched, and not static steps.
    model.generate(torch.tensor([[5, 6, 7, 8]]), num_beams=4, max_new_tokens=8, return_dict_in_generate=True)
    assert any(moved) and len(moved) >= 2


@pytest.mark.parametrize("cut", [1, 4])
def test_a_cache_goes_on_where_it_ended(models, monkeypatch, cut):
    """Generated in two parts: the same tokens, and the second part feeds none of the first again, nor the encoder."""
    model, _ = models
    ids, mask = batch(random.Random(8), model.config.encoder.vocab_size)
    chosen = dict(attention_mask=mask, eos_token_id=None, return_dict_in_generate=True)
    whole = model.generate(ids, max_new_tokens=12, **chosen).sequences
    first = model.generate(ids, max_new_tokens=cut, **chosen)
    assert first.past_key_values.get_seq_length() == cut
    fed, begin = [], Cache.begin
    monkeypatch.setattr(Cache, "begin", lambda self, count: fed.append(count) or begin(self, count))
    monkeypatch.setattr(model.encoder, "forward", None)
    more = dict(decoder_input_ids=first.sequences, past_key_values=first.past_key_values)
    assert torch.equal(model.generate(ids, max_new_tokens=12 - cut, **chosen | more).sequences, whole)
    assert set(fed) == {1}, "one token a row"
