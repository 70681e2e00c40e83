"""A decoder on its own, as a language model: `generate` against transformers', token for token."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
import transformers

from bertgen import BertGenerationConfig, BertGenerationDecoder, InputError
from bertgen.cache.cache import Cache
from bertgen.config import BertConfig, RobertaConfig
from bertgen.model import BertLMHeadModel, RobertaForCausalLM
from tests.support.generate_comparison import assert_same, both, random_search

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers")

VOCABULARY, POSITIONS = 60, 40
SHAPE = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=POSITIONS, initializer_range=0.3,
)  # fmt: skip
KINDS = {
    "bert-generation": (transformers.BertGenerationConfig, transformers.BertGenerationDecoder),
    "bert": (transformers.BertConfig, transformers.BertLMHeadModel),
    "roberta": (transformers.RobertaConfig, transformers.RobertaForCausalLM),
}
OURS = {
    "bert-generation": (BertGenerationConfig, BertGenerationDecoder),
    "bert": (BertConfig, BertLMHeadModel),
    "roberta": (RobertaConfig, RobertaForCausalLM),
}


def twins(kind: str = "bert-generation", **options):
    """(transformers', ours) with the same random weights."""
    config, model = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        oracle = model(config(**SHAPE, **options)).eval()
        for p in oracle.parameters():
            if p.dim() == 1:
                p.data += 0.1 * torch.randn_like(p)
    oracle.set_attn_implementation("eager")
    config, model = OURS[kind]
    ours = model(config(**SHAPE, **options)).eval()
    assert not ours.load_state_dict(oracle.state_dict(), strict=False).unexpected_keys
    return oracle, ours


@pytest.fixture(scope="module")
def causal():
    return twins(is_decoder=True)


@pytest.fixture(scope="module")
def bidirectional():
    return twins(is_decoder=False)


def prompts(r: random.Random) -> torch.Tensor:
    rows, length = r.randint(1, 6), r.randint(1, 9)
    return torch.tensor([[r.randrange(5, VOCABULARY) for _ in range(length)] for _ in range(rows)])


@pytest.mark.filterwarnings("ignore:the prompt is padded on the right", "ignore:encoder_")
@pytest.mark.parametrize("seed", range(100))
def test_any_options_equal_transformers(causal, bidirectional, seed):
    r = random.Random(seed)
    is_causal = r.random() < 0.7
    oracle, model = causal if is_causal else bidirectional
    ids = prompts(r)
    rows, length = ids.shape
    chosen = random_search(r, VOCABULARY)
    for name in ("max_length", "min_length"):
        if name in chosen:
            chosen[name] += length
    if chosen.get("max_new_tokens", 99) + length < chosen.get("min_length", 0):
        del chosen["min_length"]
    side = r.choice(["none", "left", "left", "right", "mask"])
    if side != "none":
        mask = torch.ones_like(ids)
        for row in range(1, rows):
            cut = r.randint(0, length - 1)
            mask[row, length - cut if side == "right" else 0 : length if side == "right" else cut] = 0
        if side == "mask":
            chosen["attention_mask"] = mask
        else:
            ids = ids * mask
    given = dict(input_ids=ids)
    if is_causal and r.random() < 0.25:  # where not, transformers caches all the same, with other results
        given["inputs_embeds"] = oracle.get_input_embeddings()(ids).detach() + 0.01
        if side == "none" and r.random() < 0.5:
            del given["input_ids"]
    # A stack that is not causal has nothing to cache: transformers is only right with use_cache=False.
    expected, got = both(oracle, model, seed, **given, **chosen, use_cache=is_causal)
    assert_same(expected, got, padded=side in ("left", "mask"))


@pytest.mark.parametrize("options", [dict(), dict(num_beams=3, num_return_sequences=2), dict(do_sample=True)])
@pytest.mark.parametrize("looks", [dict(output_hidden_states=True), dict(output_attentions=True)])
@pytest.mark.parametrize("embedded", [False, True])
def test_without_a_cache_states_have_the_shapes_of_transformers(causal, looks, options, embedded):
    oracle, model = causal
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
    given = dict(input_ids=ids, attention_mask=(ids != 0).long())
    if embedded:
        given["inputs_embeds"] = oracle.get_input_embeddings()(ids).detach()
    options = dict(**looks, **options, use_cache=False, return_dict_in_generate=True, max_new_tokens=4)
    assert_same(*both(oracle, model, 1, **given, **options), padded=True)


@pytest.mark.parametrize("ends", [None, [1, *range(20, 40)]])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("beams", [1, 3])
def test_left_padding_changes_nothing(causal, bidirectional, is_causal, beams, ends):
    """Also where rows end at different times and leave."""
    _, model = causal if is_causal else bidirectional
    rows = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14], [15], [16, 17, 18, 19, 11]]
    longest = max(map(len, rows))
    ids = torch.tensor([[*[0] * (longest - len(row)), *row] for row in rows])
    options = dict(num_beams=beams, max_new_tokens=12, eos_token_id=ends, pad_token_id=0)
    for more in (dict(), dict(attention_mask=(ids != 0).long(), infer_attention_mask=False)):
        got, lengths = model.generate(ids, **options, **more), set()
        for row, found in zip(rows, got):
            alone = model.generate(torch.tensor([row]), **options)[0].tolist()
            lengths.add(len(alone) - len(row))
            assert found[longest - len(row) :].tolist()[: len(alone)] == alone
        assert (len(lengths) > 1) == (ends is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_decoder_goes_on_as_its_own_forward(kind):
    """roberta too, where transformers begins with position 0 instead of the one after the padding id."""
    oracle, model = twins(kind, is_decoder=True)
    pad = model.config.pad_token_id
    rows = [[5, 6, 7, 8], [9, 10]]
    ids = torch.tensor([rows[0], [pad, pad, *rows[1]]])
    options = dict(max_new_tokens=10, eos_token_id=None, pad_token_id=pad)
    got = model.generate(ids, **options)
    for row, found in zip(rows, got):
        history = torch.tensor([row])
        with torch.no_grad():
            for _ in range(10):
                best = oracle(history, use_cache=False).logits[:, -1].argmax(-1)
                history = torch.cat((history, best[:, None]), 1)
        assert found[-history.shape[1] :].tolist() == history[0].tolist()
    if kind != "roberta":
        assert torch.equal(got, oracle.generate(ids, **options))
    types = dict(token_type_ids=torch.ones_like(ids)) if kind == "bert" else {}
    if types:
        assert torch.equal(model.generate(ids, **types, **options), oracle.generate(ids, **types, **options))
        assert not torch.equal(model.generate(ids, **types, **options), got)


def test_without_a_prompt_it_begins_with_bos(causal):
    oracle, model = causal
    assert torch.equal(model.generate(max_new_tokens=6), oracle.generate(max_new_tokens=6))


def test_the_default_length_ends_with_the_positions(causal):
    oracle, model = causal
    for length in (3, 30):
        ids = torch.full((1, length), 7)
        results = [one.generate(ids, eos_token_id=None, pad_token_id=0) for one in (oracle, model)]
        assert torch.equal(*results)
        assert results[1].shape[1] == min(length + 20, POSITIONS)


def test_embeddings_alone_count_for_the_length_but_are_not_returned(causal, bidirectional):
    ids = torch.tensor([[5, 6, 7]])
    for _, model in (causal, bidirectional):
        embeds = model.get_input_embeddings()(ids).detach()
        for options in (dict(max_length=9), dict(max_new_tokens=6)):
            whole = model.generate(ids, eos_token_id=None, **options)
            assert torch.equal(model.generate(inputs_embeds=embeds, eos_token_id=None, **options), whole[:, 3:])


def test_lengths_count_embeddings(causal):
    """A minimum too, as in transformers: with so many end tokens only it keeps the output going."""
    oracle, model = causal
    embeds = model.get_input_embeddings()(torch.tensor([[5, 6, 7]])).detach()
    ends = list(range(1, 50))
    for options in (dict(min_length=7, max_length=12), dict(min_length=2, max_length=12), dict(min_new_tokens=4)):
        results = [one.generate(inputs_embeds=embeds, eos_token_id=ends, **options) for one in (oracle, model)]
        assert torch.equal(*results)
    lengths = {model.generate(inputs_embeds=embeds, eos_token_id=ends, min_length=n).shape[1] for n in (2, 7, 9)}
    assert len(lengths) == 3


def test_a_decoder_with_an_encoder_of_the_callers():
    oracle, model = twins(is_decoder=True, add_cross_attention=True)
    states = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 6).long()
    mask[1, 4:] = 0
    ids = torch.tensor([[5, 6], [7, 8], [9, 10]])
    for options in (dict(), dict(num_beams=3, num_return_sequences=2), dict(do_sample=True)):
        given = dict(input_ids=ids, encoder_hidden_states=states, encoder_attention_mask=mask, max_new_tokens=8)
        # With a cache transformers raises AttributeError: it makes one without cross-attention.
        expected, got = both(oracle, model, 3, **given, **options, use_cache=False)
        assert torch.equal(got, expected)


def test_a_cache_goes_on_where_it_ended(causal, monkeypatch):
    oracle, model = causal
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
    options = dict(eos_token_id=None, pad_token_id=0, return_dict_in_generate=True)
    whole = model.generate(ids, max_new_tokens=12, **options).sequences
    fed, attend = [], Cache.attend
    results, firsts = [], [one.generate(ids, max_new_tokens=5, **options) for one in (oracle, model)]
    monkeypatch.setattr(Cache, "attend", lambda self, i, q, *rest: fed.append(len(q)) or attend(self, i, q, *rest))
    for one, first in zip((oracle, model), firsts):
        mask = (first.sequences != 0).long()
        more = dict(past_key_values=first.past_key_values, attention_mask=mask)
        results.append(one.generate(first.sequences, max_new_tokens=7, **more, **options).sequences)
    assert torch.equal(results[0], whole) and torch.equal(results[1], whole)
    assert set(fed) == {2}, "one token a row"


def test_a_prompt_padded_on_the_right_is_warned_about(causal):
    oracle, model = causal
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    with pytest.warns(UserWarning, match="padded on the right") as caught:
        assert torch.equal(model.generate(ids, max_new_tokens=4), oracle.generate(ids, max_new_tokens=4))
    assert sum("padded on the right" in str(w.message) for w in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(ids.flip(1), max_new_tokens=4)
        model.generate(ids[1:], max_new_tokens=4)


@pytest.mark.parametrize("is_causal", [True, False])
def test_what_does_not_fit_is_named(causal, bidirectional, is_causal):
    _, model = causal if is_causal else bidirectional
    ids = torch.tensor([[5, 6, 7]])
    for given, message in (
        (
            dict(input_ids=torch.full((1, POSITIONS), 5)),
            f"max_length {POSITIONS} leaves no room after the first {POSITIONS}",
        ),
        (dict(input_ids=ids, max_new_tokens=POSITIONS), f"needs {POSITIONS + 2} decoder positions.* has {POSITIONS}"),
        (dict(input_ids=torch.tensor([[99]])), "input_ids holds 99"),
        (dict(input_ids=ids, attention_mask=torch.ones(1, 2)), r"attention_mask has shape \(1, 2\), expected \(1, 3\)"),
        (dict(input_ids=ids, inputs_embeds=torch.ones(1, 2, 32)), "different lengths"),
        (dict(input_ids=ids, decoder_input_ids=ids), "no option 'decoder_input_ids'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**given)
    ids = torch.cat((torch.zeros(1, 30, dtype=torch.long), ids), 1)
    assert model.generate(ids, max_new_tokens=POSITIONS - 3, eos_token_id=None, pad_token_id=0).shape[1] == 70


def test_what_needs_a_causal_decoder_is_refused(causal, bidirectional):
    ids = torch.tensor([[5, 6, 7]])
    cache = causal[1].generate(ids, return_dict_in_generate=True).past_key_values
    for given in (dict(past_key_values=cache), dict(encoder_hidden_states=torch.ones(1, 2, 32))):
        with pytest.raises(InputError, match="need a causal decoder"):
            bidirectional[1].generate(ids, **given)
    assert bidirectional[1].generate(ids, return_dict_in_generate=True).past_key_values is None
