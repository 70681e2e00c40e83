"""Tensor processors: `rows` computes what a call with each row alone computes, and no row depends on another."""

from __future__ import annotations

import random

import pytest
import torch

from bertgen import ConfigError
from bertgen.decoding.tensor_processors import (
    ANY_LENGTH,
    ExponentialDecay,
    Force,
    NoRepeatNgram,
    Normalize,
    RemoveInvalid,
    RepetitionPenalty,
    SequenceBias,
    Suppress,
    TensorProcessor,
    check_ids,
)
from tests.support.host_reads import no_host_reads

VOCABULARY, WIDTH = 30, 12


def ids(*tokens: int) -> torch.Tensor:
    return torch.tensor(tokens)


def bias(r: random.Random) -> SequenceBias:
    pairs = {
        tuple(r.choices(range(6), k=r.choice([1, 1, 2, 2, 3, 5]))): r.choice([-torch.inf, 0.3, -0.7, 1 / 3])
        for _ in range(r.randint(1, 12))
    }
    return SequenceBias("sequence_bias", pairs, VOCABULARY, torch.device("cpu"))


KINDS = {
    "bias": bias,
    "repetition": lambda r: RepetitionPenalty(r.choice([0.7, 1.3, 5.0])),
    "ngram": lambda r: NoRepeatNgram(r.randint(1, 4)),
    "suppress": lambda r: Suppress(ids(3, 9, 3), VOCABULARY),
    "suppress below": lambda r: Suppress(ids(3, 9), VOCABULARY, last=r.randint(0, WIDTH)),
    "suppress at": lambda r: Suppress(ids(1), VOCABULARY, first=5, last=6),
    "force": lambda r: Force(ids(4, 7), VOCABULARY, r.randint(1, WIDTH)),
    "decay": lambda r: ExponentialDecay(ids(1, 7), r.randint(0, 6), r.choice([0.3, 0.97, 1.0001, 1.3, 1e20])),
    "finite": lambda r: RemoveInvalid(),
    "normalize": lambda r: Normalize(),
}


def case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Histories that repeat themselves, with any ids behind their ends, their lengths, and scores, some of them odd."""
    generator = torch.Generator().manual_seed(seed)
    histories = torch.randint(0, 5, (9, WIDTH), generator=generator)
    lengths = torch.randint(1, WIDTH + 1, (9,), generator=generator)
    scores = 3 * torch.randn(9, VOCABULARY, generator=generator)
    for value in (-torch.inf, torch.inf, torch.nan):
        if seed % 3:
            scores[torch.rand(scores.shape, generator=generator) < 0.05] = value
    return histories, lengths, scores


def same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(got.nan_to_num(7e30), expected.nan_to_num(7e30)) and torch.equal(got.isnan(), expected.isnan())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_different_lengths_are_processed_as_alone(kind):
    changed = 0
    for seed in range(40):
        processor = KINDS[kind](random.Random(seed))
        processor.prepare(WIDTH)
        histories, lengths, scores = case(seed)
        kept = scores.clone()
        with no_host_reads():
            got = processor.rows(histories, lengths, scores)
        assert same(scores, kept), "the scores given are not changed"
        for row, length in enumerate(lengths.tolist()):
            alone = processor(histories[row : row + 1, :length], scores[row : row + 1])
            assert same(got[row : row + 1], alone), (seed, row)
            changed += not same(alone, scores[row : row + 1])
    assert changed


def test_codes_say_what_is_computed():
    biases = {(3,): 2.5, (4, 5): -1.0, (1, 2, 5): -3.0, (8,): 1.0, (8, 5): 0.5}
    built = SequenceBias("sequence_bias", biases, VOCABULARY, torch.device("cpu"))
    assert built.code == ("bias", (5, 1, 3, 1, 8, 2, 4, 5, 2, 8, 5, 3, 1, 2, 5), (2.5, 1.0, -1.0, 0.5, -3.0))
    assert RepetitionPenalty(1.5).code == ("repetition", (), (1.5,))
    assert RepetitionPenalty(1.5, ids(0, 1)).code is None
    assert NoRepeatNgram(3).code == ("ngram", (3,), ())
    assert Suppress(ids(3, 9), VOCABULARY, last=4).code == ("suppress", (0, 4, 3, 9), ())
    assert Suppress(ids(3), VOCABULARY).code == ("suppress", (0, ANY_LENGTH, 3), ())
    assert Force(ids(3, 9), VOCABULARY, 4).code == ("force", (4, 3, 9), ())
    assert ExponentialDecay(ids(1), 3, 1.5).code == ("decay", (3, 1), (1.5,))
    assert RemoveInvalid().code == ("finite", (), ()) and Normalize().code == ("normalize", (), ())


def test_what_was_prepared_stays_where_it_is():
    decay = ExponentialDecay(ids(1), 3, 1.5)
    decay.prepare(20)
    kept = decay.growths
    decay.prepare(7)
    assert decay.growths is kept and len(kept) == 21


def test_ids_outside_the_vocabulary_are_named():
    with pytest.raises(ConfigError, match=r"some_ids holds 40; the ids of the decoder go from 0 to 39"):
        check_ids("some_ids", [3, 40], 40)
    assert all(isinstance(make(random.Random(0)), TensorProcessor) for make in KINDS.values())
