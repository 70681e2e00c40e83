"""Fused processors: one call of `ops.process` computes what its processors compute one after another."""

from __future__ import annotations

import random

import torch

from bertgen.decoding.fused_processors import FusedProcessors, fuse
from bertgen.decoding.tensor_processors import NoRepeatNgram, RemoveInvalid, RepetitionPenalty, Suppress

from .test_tensor_processors import KINDS, VOCABULARY, WIDTH, case, ids, same

CPU = torch.device("cpu")


def test_any_processors_give_the_same_fused():
    fewer, kinds = 0, [*KINDS, "repetition", "ngram", "suppress", "suppress below"]
    for seed in range(300):
        r = random.Random(seed)
        processors = [KINDS[r.choice(kinds)](r) for _ in range(r.randint(0, 7))]
        histories, lengths, scores = case(seed)
        kept, expected = scores.clone(), scores
        for processor in processors:
            processor.prepare(WIDTH)
            expected = processor.rows(histories, lengths, expected)
        fused = fuse(processors, len(scores), CPU)
        got = scores
        for processor in fused:
            got = processor.rows(histories, lengths, got)
        assert same(got, expected) and same(scores, kept), seed
        fewer += len(fused) < len(processors)
    assert fewer > 60


def test_what_process_cannot_do_stays_in_its_place():
    below, at, always = (Suppress(ids(3), VOCABULARY, *limits) for limits in ((0, 4), (5, 6), ()))
    penalty, ngrams, finite = RepetitionPenalty(2.0), NoRepeatNgram(2), RemoveInvalid()

    def shape(*processors):
        return [type(p).__name__ for p in fuse(processors, 2, CPU)]

    assert shape(penalty, ngrams, below, always) == ["FusedProcessors"]
    assert shape(penalty, finite, ngrams) == ["FusedProcessors", "RemoveInvalid", "FusedProcessors"]
    assert shape(always, below) == shape(below, below) == ["FusedProcessors"] * 2
    assert shape(ngrams, at) == ["FusedProcessors", "Suppress"] and shape() == []
    assert FusedProcessors(3, CPU).min_lengths is None
