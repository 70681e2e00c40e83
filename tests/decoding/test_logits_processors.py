"""Each processor alone, on random scores, against transformers' class of that name; what `build` makes of options."""

from __future__ import annotations

import random
import warnings
from functools import partial

import pytest
import torch
from bertgen.kernels.select import select_reference, warp_reference
from transformers.generation import logits_process as oracle

from bertgen import ConfigError, GenerationConfig, InputError
from bertgen.decoding import logits_processors as ours
from bertgen.decoding import resolve_generation_config

VOCABULARY = 40
END = [1, 7]


def case(seed: int, rows: int = 6) -> tuple[random.Random, torch.Tensor, torch.Tensor]:
    """A random generator, a history that repeats itself, and scores some of which are -inf."""
    r, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    history = torch.randint(0, 9, (rows, r.randint(1, 12)), generator=generator)
    scores = 3 * torch.randn(rows, VOCABULARY, generator=generator)
    if seed % 2:
        scores[torch.rand(scores.shape, generator=generator) < 0.1] = -torch.inf
    return r, history, scores


def encoder_ids(seed: int) -> torch.Tensor:
    return torch.randint(0, 9, (3, 8), generator=torch.Generator().manual_seed(seed))


def ids(*tokens: int) -> torch.Tensor:
    return torch.tensor(tokens)


BIASES = {(3,): 2.5, (4, 5): -1.0, (8, 5): 0.5, (1, 2, 5): -3.0, (6, 6, 6, 6): 9.0, (2,): float("-inf")}


def pairs(r: random.Random, seed: int, length: int):
    """(ours, transformers') of one kind per seed."""
    size, at = r.randint(1, 4), r.choice([length, length + 1])
    factor, start = r.choice([0.5, 1.3]), r.randint(0, 4)
    source = encoder_ids(seed)
    end = torch.tensor(END)
    allowed = lambda source, tokens: [(source + int(tokens[-1])) % VOCABULARY, 5, *END]  # noqa: E731
    return {
        "sequence_bias": (
            ours.SequenceBias("sequence_bias", BIASES, VOCABULARY, torch.device("cpu")),
            oracle.SequenceBiasLogitsProcessor(BIASES),
        ),
        "bad_words_ids": (
            ours.build_logits_processors(settled(bad_words_ids=[[3], [4, 5], [1], [2, 2]]), VOCABULARY, source[:, :1]),
            oracle.NoBadWordsLogitsProcessor([[3], [4, 5], [1], [2, 2]], END),
        ),
        "encoder_repetition": (
            partial(ours.penalize_repetition, penalty=1 / factor, tokens=source),
            oracle.EncoderRepetitionPenaltyLogitsProcessor(factor, source),
        ),
        "repetition": (
            ours.RepetitionPenalty(factor),
            oracle.RepetitionPenaltyLogitsProcessor(factor),
        ),
        "repetition behind padding": (
            ours.RepetitionPenalty(factor, ids(0, 2, 1)),
            oracle.RepetitionPenaltyLogitsProcessor(factor, ids(0, 2, 1).repeat_interleave(2)),
        ),
        "ngrams": (ours.NoRepeatNgram(size), oracle.NoRepeatNGramLogitsProcessor(size)),
        "encoder ngrams": (
            partial(ours.block_ngrams, size=size, tokens=source),
            oracle.EncoderNoRepeatNGramLogitsProcessor(size, source),
        ),
        "min_length": (
            ours.Suppress(end, VOCABULARY, last=at),
            oracle.MinLengthLogitsProcessor(at, end),
        ),
        "allowed": (
            partial(ours.allow, allowed=allowed, beams=2),
            oracle.PrefixConstrainedLogitsProcessor(allowed, 2),
        ),
        "forced_bos": (ours.Force(ids(7), VOCABULARY, 1), oracle.ForcedBOSTokenLogitsProcessor(7)),
        "forced_eos": (
            ours.Force(end, VOCABULARY, at),
            oracle.ForcedEOSTokenLogitsProcessor(at + 1, end),
        ),
        "remove_invalid": (ours.RemoveInvalid(), oracle.InfNanRemoveLogitsProcessor()),
        "decay": (
            ours.ExponentialDecay(end, start + 1, factor),
            oracle.ExponentialDecayLengthPenalty((start, factor), end, 1),
        ),
        "suppress": (ours.Suppress(ids(3, 9), VOCABULARY), oracle.SuppressTokensLogitsProcessor([3, 9])),
        "begin_suppress": (
            ours.Suppress(ids(3, 9), VOCABULARY, first=at, last=at + 1),
            oracle.SuppressTokensAtBeginLogitsProcessor([3, 9], at),
        ),
    }


def settled(**options) -> GenerationConfig:
    base = GenerationConfig(bos_token_id=2, eos_token_id=END, pad_token_id=0, top_k=0, max_length=20)
    return resolve_generation_config(GenerationConfig(**options).over(base))


def agree(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    assert torch.equal(got.isfinite(), expected.isfinite()) and torch.equal(got == torch.inf, expected == torch.inf)
    assert (got - expected).nan_to_num(0).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", list(pairs(random.Random(0), 0, 1)))
def test_processors_equal_transformers(kind):
    for seed in range(30):
        r, history, scores = case(seed)
        mine, theirs = pairs(r, seed, history.shape[1])[kind]
        kept = scores.clone()
        got = mine(history, scores)
        assert torch.equal(scores, kept), "the scores given are not changed"
        agree(got, theirs(history, scores.clone()))


def test_only_a_source_that_is_stuck_with_all_its_beams_gets_its_allowed_tokens_anyway():
    scores = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(1))
    scores[[0, 2, 3], 4] = scores[[2, 3], 5] = -torch.inf  # of the second source no beam may go on, of the first one
    history, allowed = torch.full((6, 1), 2), lambda source, tokens: [4, 5] if source else [4]
    expected = oracle.PrefixConstrainedLogitsProcessor(allowed, 2)(history, scores.clone())
    agree(ours.allow(history, scores, allowed=allowed, beams=2), expected)
    assert expected[:4].isfinite().sum(1).tolist() == [0, 1, 2, 2]


def test_invalid_values():
    scores = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1.0]])
    agree(ours.RemoveInvalid()(ids(1)[None], scores), oracle.InfNanRemoveLogitsProcessor()(ids(1)[None], scores))


WARPS = {
    "temperature": ([0.3, 1.7], oracle.TemperatureLogitsWarper),
    "top_h": ([0.1, 0.5, 1.0], oracle.TopHLogitsWarper),
    "top_k": ([1, 3, 39, 80], oracle.TopKLogitsWarper),
    "top_p": ([0.0, 0.3, 0.95], oracle.TopPLogitsWarper),
    "min_p": ([0.0, 0.05, 0.9, 1.0], oracle.MinPLogitsWarper),
    "typical_p": ([0.05, 0.5, 0.95], oracle.TypicalLogitsWarper),
    "epsilon_cutoff": ([0.01, 0.2, 0.9], oracle.EpsilonLogitsWarper),
    "eta_cutoff": ([0.01, 0.2, 0.9], oracle.EtaLogitsWarper),
}


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("name", WARPS)
def test_each_limit_equals_transformers(name, keep):
    values, kind = WARPS[name]
    for seed in range(20):
        _, history, scores = case(seed)
        for value in values:
            more = {} if name in ("temperature", "top_h") else {"min_tokens_to_keep": keep}
            got = warp_reference(scores, **{name: value}, keep=keep)
            assert torch.equal(got, kind(value, **more)(history, scores.clone())), (seed, value)


@pytest.mark.parametrize("seed", range(20))
def test_limits_come_in_transformers_order(seed):
    r, history, scores = case(seed)
    chosen = {name: r.choice(values) for name, (values, _) in WARPS.items()}
    expected = scores
    for name, value in chosen.items():
        expected = WARPS[name][1](value)(history, expected)
    assert torch.equal(warp_reference(scores, **chosen), expected)


def test_limits_over_a_large_vocabulary():
    """top_h looks at no more than 100 tokens."""
    scores = torch.randn(4, 1000, generator=torch.Generator().manual_seed(1))
    history = torch.zeros(4, 1, dtype=torch.long)
    assert torch.equal(warp_reference(scores, top_h=0.9), oracle.TopHLogitsWarper(0.9)(history, scores.clone()))


def test_select():
    scores = torch.tensor([[1.0, 5.0, 5.0, 0.0], [2.0, 1.0, 0.0, 3.0]])
    assert select_reference(scores).tolist() == [[1], [3]]
    assert select_reference(scores[1:], 3).tolist() == [[3, 0, 1]]
    drawn = torch.stack([select_reference(scores, 4, True, torch.Generator().manual_seed(s)) for s in range(50)])
    assert torch.equal(drawn.sort(-1).values, torch.arange(4).expand_as(drawn)), "nothing is drawn twice"
    first = [select_reference(scores, 1, True, torch.Generator().manual_seed(s))[1, 0].item() for s in range(400)]
    assert abs(first.count(3) / 400 - float(scores[1].softmax(0)[3])) < 0.08


PREFIX = torch.full((3, 1), 2)


def test_no_option_no_processor():
    assert not ours.build_logits_processors(settled(), VOCABULARY, PREFIX)
    assert not ours.build_logits_processors(settled(min_length=1, bad_words_ids=[[1]]), VOCABULARY, PREFIX)


def test_all_options_come_in_transformers_order():
    source = encoder_ids(3)
    first, second = (lambda history, scores: scores + 1), (lambda history, scores: scores * 2)
    allowed = lambda source, tokens: range(VOCABULARY - source)  # noqa: E731
    options = settled(
        sequence_bias=[[[3], 1.5], [[4, 5], 2.0]], encoder_repetition_penalty=1.5, repetition_penalty=1.2,
        no_repeat_ngram_size=3, encoder_no_repeat_ngram_size=2, bad_words_ids=[[8, 8], [30]], min_new_tokens=3,
        remove_invalid_values=True, exponential_decay_length_penalty=(2, 1.1), suppress_tokens=[12],
        begin_suppress_tokens=[13], do_sample=True, temperature=0.7, top_p=0.9, renormalize_logits=True,
    )  # fmt: skip
    chain = ours.build_logits_processors(
        options, VOCABULARY, PREFIX, source_ids=source, allowed=allowed, custom=[first, second]
    )
    end = torch.tensor(END)
    expected_chain = [
        oracle.SequenceBiasLogitsProcessor({(3,): 1.5, (4, 5): 2.0}),
        oracle.EncoderRepetitionPenaltyLogitsProcessor(1.5, source),
        oracle.RepetitionPenaltyLogitsProcessor(1.2),
        oracle.NoRepeatNGramLogitsProcessor(3),
        oracle.EncoderNoRepeatNGramLogitsProcessor(2, source),
        oracle.NoBadWordsLogitsProcessor([[8, 8], [30]], END),
        oracle.MinLengthLogitsProcessor(4, end),
        oracle.PrefixConstrainedLogitsProcessor(allowed, 1),
        oracle.InfNanRemoveLogitsProcessor(),
        oracle.ExponentialDecayLengthPenalty((2, 1.1), end, 1),
        oracle.SuppressTokensLogitsProcessor([12]),
        oracle.SuppressTokensAtBeginLogitsProcessor([13], 1),
        first,
        second,
        oracle.TemperatureLogitsWarper(0.7),
        oracle.TopPLogitsWarper(0.9),
        oracle.LogitNormalization(),
    ]
    for seed in range(20):
        _, history, scores = case(seed)
        expected = scores
        for process in expected_chain:
            expected = process(history, expected)
        usable = ~expected.isnan().any(1)  # where an end grows beyond all numbers transformers has nan
        agree(chain(history, scores)[usable], expected[usable])


def test_begin_suppress_tokens_act_after_a_forced_first_token():
    chain = ours.build_logits_processors(settled(forced_bos_token_id=5, begin_suppress_tokens=[9]), VOCABULARY, PREFIX)
    scores = torch.zeros(3, VOCABULARY)
    none = ours.build_logits_processors(
        settled(forced_bos_token_id=5, begin_suppress_tokens=[9]), VOCABULARY, PREFIX[:, :0]
    )
    assert not none(PREFIX[:, :0], scores)[:, 9].isneginf().any() and none(PREFIX, scores).isfinite().sum() == 3
    none = ours.build_logits_processors(settled(begin_suppress_tokens=[9]), VOCABULARY, PREFIX[:, :0])
    assert none(PREFIX[:, :0], scores)[:, 9].isneginf().all()
    assert chain(PREFIX, scores).isfinite().sum() == 3
    assert chain(PREFIX.repeat(1, 2), scores)[:, 9].isneginf().all()
    assert not chain(PREFIX.repeat(1, 3), scores)[:, 9].isneginf().any()


@pytest.mark.parametrize("end, keep", [(END, 3), (1, 2), (None, 2)])
def test_beams_that_sample_keep_a_token_that_goes_on(end, keep):
    base = GenerationConfig(bos_token_id=2, max_length=9, num_beams=2, do_sample=True, top_k=1, eos_token_id=end)
    _, history, scores = case(2)
    assert (
        ours.build_logits_processors(resolve_generation_config(base), VOCABULARY, PREFIX)(history, scores)
        .isfinite()
        .sum(1)
        .tolist()
        == [keep] * 6
    )


def test_what_forces_all_rows_to_stay():
    source = encoder_ids(1)
    masked = torch.tensor([[0], [1], [1]]).bool()
    keep = (lambda history, scores: scores,)
    for options, more, expected in (
        (dict(no_repeat_ngram_size=2, repetition_penalty=1.1, bad_words_ids=[[3]]), {}, False),
        (dict(repetition_penalty=1.1), dict(prefix_mask=masked), True),
        (dict(encoder_no_repeat_ngram_size=2), dict(source_ids=source), True),
        (dict(encoder_repetition_penalty=2.0), dict(source_ids=source), True),
        ({}, dict(allowed=lambda source, tokens: [1]), True),
        ({}, dict(custom=list(keep)), True),
    ):
        assert ours.build_logits_processors(settled(**options), VOCABULARY, PREFIX, **more).by_row is expected, options


BAD = {
    "bias outside": (dict(sequence_bias={(40,): 1.0}), "sequence_bias holds 40; .* 0 to 39"),
    "bad word outside": (dict(bad_words_ids=[[1, 41]]), "bad_words_ids holds 41"),
    "forced start outside": (dict(forced_bos_token_id=44), "forced_bos_token_id holds 44"),
    "forced end outside": (dict(forced_eos_token_id=[1, 45]), "forced_eos_token_id holds 45"),
    "suppressed outside": (dict(suppress_tokens=[46]), "suppress_tokens holds 46"),
    "suppressed first outside": (dict(begin_suppress_tokens=[2, 47]), "begin_suppress_tokens holds 47"),
}


@pytest.mark.parametrize("name", BAD)
def test_ids_outside_the_vocabulary_are_named(name):
    options, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        ours.build_logits_processors(settled(**options), VOCABULARY, PREFIX)


def test_what_cannot_work_is_refused():
    source = encoder_ids(1)
    source[0, 0] = 99
    with pytest.raises(ConfigError, match="no_repeat_ngram_size.*input holds 99.*vocabulary of 40"):
        ours.build_logits_processors(settled(encoder_no_repeat_ngram_size=2), VOCABULARY, PREFIX, source_ids=source)
    no_end = resolve_generation_config(GenerationConfig(bos_token_id=2, exponential_decay_length_penalty=(1, 2.0)))
    with pytest.raises(ConfigError, match="exponential_decay_length_penalty needs eos_token_id"):
        ours.build_logits_processors(no_end, VOCABULARY, PREFIX)
    for custom in (print, [3], "no"):
        with pytest.raises(ConfigError, match="logits_processor must be a list of callables"):
            ours.build_logits_processors(settled(), VOCABULARY, PREFIX, custom=custom)
    for named in ([], [40]):
        with pytest.raises(InputError, match=r"prefix_allowed_tokens_fn\(0, \[2\]\) is.*0 to 39"):
            ours.allow(PREFIX, torch.zeros(3, VOCABULARY), allowed=lambda s, t, n=named: n, beams=1)


def test_options_of_the_input_warn_where_there_are_no_ids():
    for name, value in (("encoder_repetition_penalty", 1.5), ("encoder_no_repeat_ngram_size", 2)):
        with pytest.warns(UserWarning, match=f"{name} needs input_ids"):
            assert not ours.build_logits_processors(settled(**{name: value}), VOCABULARY, PREFIX)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.build_logits_processors(settled(), VOCABULARY, PREFIX)
