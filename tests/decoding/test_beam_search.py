"""Beam search under constraints that allow fewer outputs than it is asked for: those that are allowed, each once."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from bertgen import AutoTokenizer, EncoderDecoderModel, Generator
from tests.support.reference_models import make_model_pair

END = 1
EARLY = [False, True, "never"]
IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])


@pytest.fixture(scope="module")
def twins():
    return make_model_pair(0)


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    return EncoderDecoderModel.from_pretrained(tiny_checkpoint), AutoTokenizer.from_pretrained(tiny_checkpoint)


def tree(outputs: list[list[int]]):
    """What allows these outputs and no others."""

    def allowed(source: int, tokens: torch.Tensor) -> list[int]:
        begun = tokens.tolist()[1:]
        return sorted({one[len(begun)] for one in outputs if one[: len(begun)] == begun and len(one) > len(begun)}) or [
            END
        ]

    return allowed


def random_outputs(r: random.Random) -> list[list[int]]:
    found = {tuple(r.choices(range(5, 9), k=r.randint(0, 5))) for _ in range(r.randint(1, 3))}
    return [[*tokens, END] for tokens in found]


def rows_of(sequences: torch.Tensor) -> list[list[int]]:
    """Tokens of each row up to its end, without the start token."""
    return [row[1 : row.index(END, 1) + 1] if END in row[1:] else row[1:] for row in sequences.tolist()]


def search(model, **options):
    special = dict(eos_token_id=END, pad_token_id=0, decoder_start_token_id=2)
    returned = dict(return_dict_in_generate=True, output_scores=True)
    return model.generate(IDS, num_beams=4, num_return_sequences=4, max_new_tokens=8, **special, **returned, **options)


@pytest.mark.parametrize("early", EARLY)
@pytest.mark.parametrize("seed", range(10))
def test_all_that_is_allowed_comes_first_and_once(twins, seed, early):
    outputs = random_outputs(random.Random(seed))
    options = dict(prefix_allowed_tokens_fn=tree(outputs), early_stopping=early)
    got, expected = search(twins.model, **options), search(twins.oracle, **options)
    assert got.sequences.shape[0] == 8
    rows, theirs = rows_of(got.sequences), rows_of(expected.sequences)
    for source in range(0, 8, 4):
        scores = got.sequences_scores[source : source + 4].tolist()
        found = [row for row, score in zip(rows[source:], scores) if score > -math.inf]
        assert sorted(found) == sorted(outputs) and scores == sorted(scores, reverse=True)
        assert scores[len(found) :] == [-math.inf] * (4 - len(found))
        empty = got.sequences[source : source + 4][len(found) :]
        assert (empty[:, 0] == 2).all() and (empty[:, 1:] == END).all() and min(scores[: len(found)]) > -100
        assert (got.beam_indices[source : source + 4][len(found) :] == -1).all()
        for row, score in zip(theirs[source : source + 4], expected.sequences_scores[source : source + 4].tolist()):
            if score > -1e6:  # what transformers finds of them
                assert row in found and abs(score - scores[found.index(row)]) <= 1e-4


@pytest.mark.parametrize("forbidden", [-math.inf, -1e9, float(torch.finfo(torch.float32).min)])
def test_however_it_is_forbidden(twins, forbidden):
    """By processors, of which many use a large negative number."""
    outputs = [[5, 6, END], [7, END]]
    allowed = tree(outputs)

    def processor(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        result = torch.full_like(scores, forbidden)
        for row, history in enumerate(tokens):
            may = allowed(0, history)
            result[row, may] = scores[row, may]
        return result

    got = search(twins.model, logits_processor=[processor])
    assert sorted(rows_of(got.sequences)[:2]) == outputs
    assert (got.sequences_scores.view(2, 4).isinf() == torch.tensor([False, False, True, True])).all()


def test_bad_words(twins):
    vocabulary = twins.model.config.decoder.vocab_size
    bad = [[token] for token in range(vocabulary) if token not in (5, 6)]
    got = twins.model.generate(
        IDS, num_beams=6, num_return_sequences=6, max_new_tokens=2, bad_words_ids=bad,
        suppress_tokens=[END], eos_token_id=END, pad_token_id=0, decoder_start_token_id=2, return_dict_in_generate=True,
    )  # fmt: skip
    everything = sorted(map(list, itertools.product((5, 6), repeat=2)))
    for source in range(0, 12, 6):
        assert sorted(got.sequences[source : source + 4, 1:].tolist()) == everything
        assert got.sequences_scores[source + 4 : source + 6].isinf().all()


def test_groups_of_beams(twins):
    outputs = [[5, 6, END], [7, END]]
    got = search(twins.model, prefix_allowed_tokens_fn=tree(outputs), num_beam_groups=2, diversity_penalty=0.5)
    for source in range(0, 8, 4):
        rows = rows_of(got.sequences[source : source + 4])
        assert {tuple(row) for row in rows[:2]} <= {tuple(row) for row in outputs}


def test_beams_that_are_drawn(twins):
    outputs = [[5, 6, END], [7, END], [7, 8, END]]
    torch.manual_seed(0)
    got = search(twins.model, prefix_allowed_tokens_fn=tree(outputs), do_sample=True, top_k=0)
    for source in range(0, 8, 4):
        real = got.sequences_scores[source : source + 4] > -math.inf
        found = [row for row, one in zip(rows_of(got.sequences[source : source + 4]), real.tolist()) if one]
        assert found and all(row in outputs for row in found) and len({tuple(row) for row in found}) == len(found)


def test_nothing_is_allowed(twins):
    vocabulary = twins.model.config.decoder.vocab_size
    got = search(twins.model, suppress_tokens=list(range(vocabulary)))
    assert got.sequences_scores.isinf().all() and (got.sequences[:, 1:] == END).all()


@pytest.mark.parametrize("early", EARLY)
def test_a_generator_has_as_few_alternatives(tiny, early):
    model, tokenizer = tiny
    outputs = [[*row, END] for row in tokenizer.encode_batch(["eins zwei", "rot", "drei vier blau"])]
    options = dict(num_beams=5, num_return_sequences=5, prefix_allowed_tokens_fn=tree(outputs), early_stopping=early)
    texts = ["one two", "red", "dog", "ten black dog"]
    answers = Generator(model, tokenizer).generate(texts, **options)
    for text, answer in zip(texts, answers):
        both = [answer, *answer.alternatives]
        assert sorted(list(one.token_ids) for one in both) == sorted(outputs)
        assert {one.text for one in both} == {"eins zwei", "rot", "drei vier blau"}
        ids = torch.tensor([tokenizer.encode(text)])
        alone = model.generate(ids, return_dict_in_generate=True, output_scores=True, **options)
        assert rows_of(alone.sequences)[:3] == [list(one.token_ids) for one in both]
        assert torch.tensor([one.score for one in both]).allclose(alone.sequences_scores[:3], atol=1e-4)
    unbound = Generator(model, tokenizer).generate(texts, num_beams=5, num_return_sequences=5)
    assert all(len(answer.alternatives) == 4 for answer in unbound)


def test_a_generator_that_may_say_nothing_says_nothing(tiny):
    model, tokenizer = tiny
    nothing = list(range(model.config.decoder.vocab_size))
    (answer,) = Generator(model, tokenizer).generate(["one"], num_beams=3, suppress_tokens=nothing)
    assert (answer.text, answer.token_ids, answer.score, answer.alternatives) == ("", (), -math.inf, ())
