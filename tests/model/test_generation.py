"""Generation against transformers' own, on a trained tiny checkpoint, token for token; and the search on its own."""

from __future__ import annotations

import random

import pytest
import torch
import transformers
from bertgen.kernels.select import warp_reference

from bertgen import (
    BertGenerationTokenizer,
    ConfigError,
    EncoderDecoderConfig,
    GenerationConfig,
    InputError,
    UnsupportedError,
    ops,
)
from bertgen.cache.cache import Cache
from bertgen.decoding import resolve_generation_config
from bertgen.model import encoder_decoder
from tests.support.generate_comparison import assert_same, batch, both, found_by_both, random_search

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers")

CASES = 220


@pytest.mark.parametrize("seed", range(CASES))
def test_tokens_and_scores_equal_transformers(models, seed):
    """Any options together: tokens, scores, raw logits, attentions, states, transition scores; seeded draws as well."""
    model, oracle = models
    r = random.Random(seed)
    ids, mask = batch(r, model.config.encoder.vocab_size)
    chosen = random_search(r, model.config.decoder.vocab_size)
    padded = r.random() < 0.25 and target_prefix(r, chosen, len(ids), model.config.decoder.vocab_size)
    expected, got = both(oracle, model, seed, input_ids=ids, attention_mask=mask, **chosen)
    assert_same(expected, got, padded)
    if chosen.get("return_dict_in_generate") and chosen.get("output_scores"):
        for normalize in (False, True):
            ours, theirs = (
                one.compute_transition_scores(x.sequences, x.scores, x.get("beam_indices"), normalize)
                for one, x in ((model, got), (oracle, expected))
            )
            found = torch.ones(len(ours), dtype=torch.bool)
            if got.get("beam_indices") is not None:
                found = got.sequences_scores > -torch.inf
            assert torch.equal(ours[found].isinf(), theirs[found].isinf())
            assert not ((ours[found] - theirs[found]).nan_to_num(0).abs() > 1e-4).any()


def target_prefix(r: random.Random, chosen: dict, rows: int, vocabulary: int) -> bool:
    """Add something for the decoder to begin with to the options; whether rows of it begin with padding."""
    length = r.randint(1, 3)
    if chosen.get("max_length", 99) <= length + 3:
        return False
    ids = torch.tensor([[r.randrange(3, vocabulary) for _ in range(length)] for _ in range(rows)])
    if r.random() < 0.5:
        ids[r.randrange(rows), 0] = 2  # the start token in a row: none is put in front
    chosen["decoder_input_ids"] = ids
    if r.random() < 0.5:
        mask = chosen["decoder_attention_mask"] = torch.ones_like(ids)
        mask[0, : r.randint(0, length - 1)] = 0
        return not bool(mask.all())
    return False


@pytest.mark.parametrize("seed", [72, 239])
def test_a_search_that_has_stopped_everywhere_takes_as_many_steps_as_transformers(models, seed):
    """A source that found too little has to wait for the others."""
    model, oracle = models
    r = random.Random(seed)
    ids = torch.tensor([[r.randrange(5, model.config.encoder.vocab_size) for _ in range(4)] for _ in range(3)])
    chosen = dict(num_beams=5, num_return_sequences=5, max_new_tokens=12, early_stopping=True, length_penalty=-0.5)
    chosen |= dict(forced_bos_token_id=54, remove_invalid_values=True)
    chosen["stopping_criteria"] = [lambda history, scores: torch.arange(len(history)) % 3 == 0]
    expected, got = oracle.generate(ids, **chosen), model.generate(ids, **chosen)
    found = found_by_both(expected, got)
    assert found[0] and found[5:].all()


def test_only_requested_fields_are_returned(models):
    model, oracle = models
    ids = torch.tensor([[5, 6, 7]])
    for more in (dict(), dict(use_cache=False), dict(output_attentions=True)):
        results = []
        for one in (oracle, model):
            with torch.no_grad():
                encoded = one.encoder(ids, output_hidden_states=True, output_attentions=True)
            results.append(
                one.generate(encoder_outputs=encoded, return_dict_in_generate=True, max_new_tokens=4, **more)
            )
        assert_same(*results)


@pytest.mark.parametrize("seed", range(8))
def test_seeded_samples_equal_transformers(models, seed):
    model, oracle = models
    ids, mask = batch(random.Random(seed), model.config.encoder.vocab_size)
    chosen = dict(do_sample=True, top_k=20, top_p=0.9, temperature=0.8, max_new_tokens=12)
    chosen |= [{}, dict(num_return_sequences=3), dict(min_p=0.1), dict(num_beams=3, num_return_sequences=2)][seed % 4]
    assert torch.equal(*both(oracle, model, seed, inputs=ids, attention_mask=mask, **chosen))


def test_a_generator_makes_samples_repeatable(models):
    model, _ = models
    ids = torch.tensor([[5, 6, 7]])

    def draw(seed: int, beams: int) -> list[int]:
        options = dict(do_sample=True, temperature=3.0, max_new_tokens=10, num_beams=beams)
        return model.generate(ids, generator=torch.Generator().manual_seed(seed), **options)[0].tolist()

    for beams in (1, 3):
        assert draw(1, beams) == draw(1, beams) and len({tuple(draw(s, beams)) for s in range(5)}) > 1


@pytest.mark.parametrize("beams", [1, 3])
def test_batches_do_not_mix(models, beams):
    """Each source alone gives the tokens it gives in a batch, whatever finishes first."""
    model, _ = models
    ids, mask = batch(random.Random(4), model.config.encoder.vocab_size)
    whole = model.generate(ids, attention_mask=mask, num_beams=beams, max_new_tokens=20)
    for row in range(len(ids)):
        length = int(mask[row].sum())
        alone = model.generate(ids[row : row + 1, :length], num_beams=beams, max_new_tokens=20)[0]
        assert torch.equal(whole[row, : len(alone)], alone)
        assert not ((whole[row, len(alone) :] != 0) & (whole[row, len(alone) :] != 1)).any()


def test_precedence_of_options(models):
    model, oracle = models
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    own = dict(eos_token_id=None, pad_token_id=0, bos_token_id=2, decoder_start_token_id=2)
    kept = model.generation_config, oracle.generation_config
    try:
        for level in (dict(), dict(max_length=9), dict(max_length=9, num_beams=2)):
            model.generation_config = GenerationConfig(**own, **level)
            oracle.generation_config = transformers.GenerationConfig(**own, **level)
            for passed in (None, dict(num_beams=3), dict(max_length=7)):
                for call in (dict(), dict(max_new_tokens=4), dict(num_beams=1, max_length=5)):
                    results = [
                        one.generate(ids, generation_config=None if passed is None else kind(**passed), **call)
                        for one, kind in ((model, GenerationConfig), (oracle, transformers.GenerationConfig))
                    ]
                    assert torch.equal(*results), (level, passed, call)
    finally:
        model.generation_config, oracle.generation_config = kept


@pytest.mark.parametrize(
    "own, passed, call, length",
    [
        (dict(max_new_tokens=3), None, dict(max_length=8), 8),
        (dict(max_new_tokens=3), dict(max_length=6), {}, 6),
        (dict(max_new_tokens=3), dict(max_length=6), dict(max_new_tokens=9), 10),
        (dict(max_length=8), None, dict(max_new_tokens=3), 4),
        (dict(max_length=8, max_new_tokens=3), None, {}, 4),
        ({}, None, dict(max_length=8, max_new_tokens=3), 4),
    ],
)
def test_the_nearer_of_two_lengths_counts(models, monkeypatch, own, passed, call, length):
    """transformers takes `max_new_tokens` of whatever level; here a call says last how long its outputs are."""
    model, ids = models[0], torch.tensor([[5, 6, 7, 8, 9]])
    options = dict(eos_token_id=None, pad_token_id=0, decoder_start_token_id=2)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(**options, **own))
    config = None if passed is None else GenerationConfig(**passed)
    assert model.generate(ids, generation_config=config, **call).shape == (1, length)


def test_none_switches_an_option_off(models):
    """As in transformers: a keyword that is None beats the model's own configuration."""
    model, oracle = models
    ids, kept = torch.tensor([[5, 6, 7, 8, 9]]), (model.generation_config, oracle.generation_config)
    own = dict(eos_token_id=1, pad_token_id=0, decoder_start_token_id=2, max_length=30, repetition_penalty=5.0)
    own |= dict(suppress_tokens=[9], num_beams=2, top_k=1)
    try:
        model.generation_config = GenerationConfig(**own)
        oracle.generation_config = transformers.GenerationConfig(**own)
        for options in (
            dict(eos_token_id=None, pad_token_id=0),
            dict(repetition_penalty=None, suppress_tokens=None),
            dict(num_beams=1, do_sample=True, top_k=None),
        ):
            assert torch.equal(*both(oracle, model, 3, inputs=ids, **options)), options
        endless = dict(eos_token_id=None, guidance_scale=None)
        assert model.generate(ids, max_length=None, **endless).shape[1] == 30
        assert (
            resolve_generation_config(GenerationConfig.of_call(dict(top_k=None), None, model.generation_config)).top_k
            == 0
        )
    finally:
        model.generation_config, oracle.generation_config = kept


BAD_OPTIONS = {
    "unknown name": (dict(num_beam=4), ConfigError, "num_beam.*did you mean 'num_beams'"),
    "no beams": (dict(num_beams=0), ConfigError, "num_beams.*0"),
    "more outputs than beams": (dict(num_beams=2, num_return_sequences=3), ConfigError, "3 is more than num_beams 2"),
    "greedy n-best": (dict(num_return_sequences=2), ConfigError, "2 needs beams or sampling"),
    "temperature": (dict(do_sample=True, temperature=0.0), ConfigError, r"temperature.*0\.0"),
    "top_p": (dict(do_sample=True, top_p=1.5), ConfigError, r"top_p.*1\.5"),
    "early stopping": (dict(num_beams=2, early_stopping="soon"), ConfigError, "early_stopping.*'soon'"),
    "odd groups": (
        dict(num_beams=4, num_beam_groups=3),
        ConfigError,
        "num_beams 4 must be a multiple of num_beam_groups 3",
    ),
    "groups without beams": (
        dict(num_beam_groups=2),
        ConfigError,
        "num_beams 1 must be a multiple of num_beam_groups 2",
    ),
    "groups that sample": (
        dict(num_beams=4, num_beam_groups=2, do_sample=True),
        ConfigError,
        "num_beam_groups 2 needs do_sample=False",
    ),
    "penalty without groups": (dict(num_beams=4, diversity_penalty=1.0), ConfigError, "diversity_penalty 1.0 needs"),
    "negative penalty": (dict(diversity_penalty=-1.0), ConfigError, r"diversity_penalty.*from 0\.0.*-1\.0"),
    "typical": (dict(typical_p=0.0), ConfigError, r"typical_p must be above 0, got 0\.0"),
    "top_h": (dict(top_h=1.5), ConfigError, r"top_h.*1\.5"),
    "epsilon": (dict(epsilon_cutoff=1.0), ConfigError, r"epsilon_cutoff must be under 1, got 1\.0"),
    "eta": (dict(eta_cutoff=-0.1), ConfigError, r"eta_cutoff.*-0\.1"),
    "n-grams": (dict(encoder_no_repeat_ngram_size=-1), ConfigError, "encoder_no_repeat_ngram_size.*from 0.*-1"),
    "no bad words": (dict(bad_words_ids=[]), ConfigError, r"bad_words_ids must be a list of at least one.*\[\]"),
    "an empty bad word": (dict(bad_words_ids=[[]]), ConfigError, r"bad_words_ids.*\[\]"),
    "a flat bad word": (dict(bad_words_ids=[3]), ConfigError, "bad_words_ids.*3"),
    "no bias": (dict(sequence_bias={}), ConfigError, "sequence_bias.*{}"),
    "biases of no pairs": (dict(sequence_bias=[[[1], 2.0, 3]]), ConfigError, "sequence_bias must hold pairs"),
    "a biased text": (dict(sequence_bias={(1,): "x"}), ConfigError, "sequence_bias must be a number.*'x'"),
    "a bias outside": (dict(sequence_bias={(1, 999): 1.0}), ConfigError, "sequence_bias holds 999.* 0 to 63"),
    "nothing suppressed": (dict(suppress_tokens=[]), ConfigError, r"suppress_tokens.*\[\]"),
    "negative ids": (dict(begin_suppress_tokens=[-1]), ConfigError, "begin_suppress_tokens.*-1"),
    "forced and suppressed": (
        dict(forced_bos_token_id=5, suppress_tokens=[5, 6]),
        ConfigError,
        r"forced_bos_token_id \[5\] is among",
    ),
    "decay": (dict(exponential_decay_length_penalty=3), ConfigError, r"must be \(start, factor\), got 3"),
    "decay factor": (
        dict(exponential_decay_length_penalty=(3, 0.0)),
        ConfigError,
        "length_penalty must be a number from 1e-30 to",
    ),
    "time": (dict(max_time=-1.0), ConfigError, r"max_time.*-1\.0"),
    "stop text": (dict(stop_strings=[""]), ConfigError, r"stop_strings.*\[''\]"),
    "stop without tokenizer": (dict(stop_strings="x"), ConfigError, "stop_strings='x' needs tokenizer="),
    "criteria": (dict(stopping_criteria=len), ConfigError, "stopping_criteria must be a list of callables"),
    "guidance": (dict(guidance_scale=1.5), UnsupportedError, "guidance_scale=1.5"),
    "watermark": (dict(watermarking_config={}), UnsupportedError, "watermarking_config"),
    "contrastive": (dict(penalty_alpha=0.6), UnsupportedError, "penalty_alpha=0.6"),
    "dola": (dict(dola_layers="low"), UnsupportedError, "dola_layers='low'"),
    "constrained": (dict(force_words_ids=[[3]]), UnsupportedError, "force_words_ids"),
    "constraints": (dict(constraints=[1]), UnsupportedError, "constraints"),
    "assisted": (dict(assistant_model=torch.nn.Identity()), UnsupportedError, "assistant_model"),
    "lookup": (dict(prompt_lookup_num_tokens=3), UnsupportedError, "prompt_lookup_num_tokens=3"),
    "static cache": (dict(cache_implementation="static"), UnsupportedError, "cache_implementation='static'"),
    "low memory": (dict(low_memory=True), UnsupportedError, "low_memory=True"),
    "healing": (dict(token_healing=True), UnsupportedError, "token_healing=True"),
    "custom": (dict(custom_generate="x/y"), UnsupportedError, "custom_generate='x/y'"),
    "negative prompt": (dict(negative_prompt_ids=torch.ones(2)), UnsupportedError, "negative_prompt_ids"),
    "min above max": (dict(min_length=9, max_length=5), ConfigError, "min_length 9 is more than max_length 5"),
    "no room": (dict(max_length=1), ConfigError, "max_length 1 leaves no room"),
    "beyond the positions": (dict(max_length=1000), InputError, "max_length 1000 needs 999 decoder positions"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_named(models, case):
    chosen, error, message = BAD_OPTIONS[case]
    with pytest.raises(error, match=message):
        models[0].generate(torch.tensor([[5, 6]]), **chosen)


def test_files_that_ask_for_what_we_lack_are_refused(models):
    model, _ = models
    asked = GenerationConfig.from_dict(dict(penalty_alpha=0.5, transformers_version="5.0", num_beams=2))
    with pytest.raises(UnsupportedError, match="penalty_alpha=0.5"):
        model.generate(torch.tensor([[5, 6]]), generation_config=asked)


@pytest.mark.parametrize("seed", range(30))
def test_warping_keeps_the_right_tokens(seed):
    """Against the definitions, one token at a time."""
    r = random.Random(seed)
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed))
    top_k, top_p, min_p = r.choice([0, 1, 5, 80]), r.choice([0.3, 0.9, 1.0]), r.choice([None, 0.2])
    warped = warp_reference(scores, 0.7, top_k, top_p, min_p)
    for row, result in zip(scores / 0.7, warped):
        order = row.argsort(descending=True).tolist()
        kept = set(order[: top_k or None])
        masked = torch.full_like(row, -torch.inf)
        masked[list(kept)] = row[list(kept)]
        mass, nucleus = 0.0, set()
        for token in order:
            if mass >= top_p and nucleus:
                break
            nucleus.add(token)
            mass += float(masked.softmax(-1)[token])
        kept &= nucleus
        if min_p is not None:
            masked = torch.full_like(row, -torch.inf)
            masked[list(kept)] = row[list(kept)]
            share = masked.softmax(-1)
            kept = {t for t in kept if share[t] >= min_p * share.max()}
        assert set(result.isfinite().nonzero().flatten().tolist()) == kept


def test_text_to_text(tiny_checkpoint, models):
    """The README's few lines, on the checkpoint that the tests train."""
    tokenizer = BertGenerationTokenizer.from_pretrained(tiny_checkpoint)
    ids = tokenizer("the small dog runs", return_tensors="pt").input_ids
    assert tokenizer.decode(models[0].generate(ids)[0], skip_special_tokens=True).strip()


# ---------------------------------------------------------------------------------------------------------------------
# What the model is given


def test_ended_rows_are_dropped_unless_they_are_returned(models, monkeypatch):
    model, _ = models
    monkeypatch.setattr(encoder_decoder, "static_sequences", lambda *_: None)
    ids, mask = batch(random.Random(4), model.config.encoder.vocab_size)
    calls, select = [], Cache.select
    monkeypatch.setattr(Cache, "select", lambda self, *rows: calls.append(rows) or select(self, *rows))
    for beams in (1, 3):
        base = dict(num_beams=beams, max_new_tokens=25, attention_mask=mask)
        for more, left_out in (
            ({}, True),
            (dict(return_dict_in_generate=True, use_cache=False), True),
            (dict(return_dict_in_generate=True), False),
            (dict(return_dict_in_generate=True, use_cache=False, output_scores=True), False),
            (dict(return_dict_in_generate=True, use_cache=False, output_hidden_states=True), False),
            (dict(logits_processor=[lambda history, scores: scores]), False),
            (dict(stopping_criteria=[lambda history, scores: False]), False),
            (dict(no_repeat_ngram_size=9, max_time=99.0), True),
        ):
            calls.clear()
            model.generate(ids, **base, **more)
            assert bool(calls) is left_out, more


def test_nothing_is_computed_that_is_not_returned(models, monkeypatch):
    """Without processors beams go to the operator that finds the best log-probabilities by itself."""
    model, _ = models
    monkeypatch.setattr(encoder_decoder, "static_sequences", lambda *_: None)
    monkeypatch.setattr(ops, "select", None)
    model.generate(torch.tensor([[5, 6, 7]]), num_beams=3, max_new_tokens=5)
    with pytest.raises(TypeError):
        model.generate(torch.tensor([[5, 6, 7]]), num_beams=3, max_new_tokens=5, no_repeat_ngram_size=2)


# ---------------------------------------------------------------------------------------------------------------------
# Configurations

FULL = dict(
    max_new_tokens=9, min_length=2, max_time=3.0, stop_strings=["a"], num_beams=4, num_beam_groups=2,
    diversity_penalty=0.5, early_stopping="never", sequence_bias=[[[3], 1.5]], encoder_repetition_penalty=1.1,
    encoder_no_repeat_ngram_size=2, bad_words_ids=[[4, 5]], forced_bos_token_id=6, forced_eos_token_id=[1, 7],
    remove_invalid_values=True, exponential_decay_length_penalty=(3, 1.1), suppress_tokens=[8],
    begin_suppress_tokens=[9], top_h=0.5, typical_p=0.9, epsilon_cutoff=0.1, eta_cutoff=0.2, renormalize_logits=True,
    output_logits=True, output_attentions=True, output_hidden_states=True,
)  # fmt: skip


def test_files_are_read_again_here_and_by_transformers(tmp_path):
    GenerationConfig(**FULL).save_pretrained(tmp_path)
    read = GenerationConfig.from_pretrained(tmp_path)
    assert read == GenerationConfig(**FULL)
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert all(
        getattr(theirs, name) == getattr(read, name) or name == "exponential_decay_length_penalty" for name in FULL
    )
    theirs.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == read


def test_a_dict_of_biases_is_saved_as_a_list(tmp_path):
    GenerationConfig(sequence_bias={(3, 4): 1.0, (5,): -2}).save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).sequence_bias == [[[3, 4], 1.0], [[5], -2.0]]


def test_options_of_old_model_configurations_are_kept():
    """config.json of checkpoints older than generation_config.json, with all that transformers 4 wrote."""
    old = dict(
        max_length=20, min_length=0, num_beams=4, num_beam_groups=1, diversity_penalty=0.0, temperature=1.0, top_k=50,
        top_p=1.0, typical_p=1.0, repetition_penalty=1.0, length_penalty=0.8, no_repeat_ngram_size=3,
        encoder_no_repeat_ngram_size=0, bad_words_ids=None, num_return_sequences=1, output_scores=False,
        return_dict_in_generate=False, forced_bos_token_id=None, forced_eos_token_id=1, remove_invalid_values=False,
        exponential_decay_length_penalty=None, suppress_tokens=None, begin_suppress_tokens=None, early_stopping=True,
        do_sample=False,
    )  # fmt: skip
    half = dict(vocab_size=20, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
    values = dict(encoder=half, decoder=dict(half, is_decoder=True, add_cross_attention=True), **old)
    found = GenerationConfig.from_model_config(EncoderDecoderConfig.from_dict(values))
    assert {name: getattr(found, name) for name in old} == old
    assert resolve_generation_config(found).num_beams == 4
