"""The search alone, over a made-up decoder: diverse groups of beams against their definition, what ends a search."""

from __future__ import annotations

import random

import pytest
import torch

from bertgen import GenerationConfig
from bertgen.decoding import new_search, resolve_generation_config, run_search
from tests.support.table_decoder import END, START, VOCABULARY, Table, rows, searched


def restated(table: Table, source: int, options: dict) -> list[tuple[float, list[int]]]:
    """Diverse beam search of one source, hypothesis by hypothesis: (score, tokens) of all finished, best first."""
    groups, beams = options["num_beam_groups"], options["num_beams"] // options["num_beam_groups"]
    exponent, early, longest = options["length_penalty"], options["early_stopping"], options["max_length"]
    going = {g: [(0.0, [START])] for g in range(groups)}
    done: dict[int, list] = {g: [] for g in range(groups)}
    for length in range(1, longest):
        chosen = torch.zeros(VOCABULARY)
        for group in list(going):
            candidates = []
            for total, tokens in going[group]:
                scores = table.of(source, tokens).log_softmax(-1) - options["diversity_penalty"] * chosen
                candidates += [(total + float(score), [*tokens, t]) for t, score in enumerate(scores)]
            candidates = sorted(candidates, reverse=True)[: 2 * beams]
            ended = [tokens[-1] == END or length + 1 == longest for _, tokens in candidates]
            for (total, tokens), ends in list(zip(candidates, ended))[:beams]:
                if ends:
                    done[group].append((total / length**exponent, tokens))
            done[group] = sorted(done[group], reverse=True)[:beams]
            going[group] = [c for c, ends in zip(candidates, ended) if not ends][:beams]
            for _, tokens in [c for c in candidates if c[1][-1] != END][:beams]:
                chosen[tokens[-1]] += 1
        for group in list(going):
            full = len(done[group]) == beams
            horizon = longest - 1 if early == "never" and exponent > 0 else length
            best = going[group][0][0] / horizon**exponent if going[group] else -torch.inf
            if not going[group] or (full and (early is True or best <= done[group][-1][0])):
                del going[group]
    return sorted((c for group in done.values() for c in group), key=lambda c: -c[0])


@pytest.mark.parametrize("seed", range(60))
def test_groups_of_beams_are_diverse_beam_search(seed):
    r = random.Random(seed)
    groups, sources = r.choice([1, 2, 3]), r.randint(1, 3)
    options = dict(
        num_beam_groups=groups, num_beams=groups * r.choice([1, 2, 3]) if groups > 1 else r.choice([2, 4]),
        diversity_penalty=r.choice([0.0, 0.4, 3.0]) if groups > 1 else 0.0, max_length=r.choice([4, 9, 15]),
        length_penalty=r.choice([0.0, 0.7, 1.0, -0.5]), early_stopping=r.choice([True, False, "never"]),
    )  # fmt: skip
    count = options["num_return_sequences"] = r.randint(1, options["num_beams"])
    output, table = searched(seed, sources, **options, output_scores=r.random() < 0.5)
    scores = output.sequences_scores.view(sources, count)
    for source, found in enumerate(rows(output, sources)):
        expected = restated(table, source, options)[:count]
        assert (scores[source] - torch.tensor([score for score, _ in expected])).abs().max() < 1e-4
        if len({round(score, 4) for score, _ in expected}) == count:  # hypotheses of one score may change places
            assert found == [tokens for _, tokens in expected]


@pytest.mark.parametrize("seed", range(10))
def test_groups_without_penalty_are_separate_searches(seed):
    options = dict(max_length=9, early_stopping=[True, False, "never"][seed % 3])
    one, _ = searched(seed, 2, num_beams=2, num_return_sequences=2, **options)
    three, _ = searched(seed, 2, num_beams=6, num_beam_groups=3, num_return_sequences=6, **options)
    for single, several in zip(rows(one, 2), rows(three, 2)):
        assert several == [hypothesis for hypothesis in single for _ in range(3)]


def test_a_penalty_makes_outputs_differ():
    options = dict(max_length=9, num_beams=6, num_beam_groups=3, num_return_sequences=3)
    for seed in range(5):
        same, _ = searched(seed, 1, **options)
        varied, _ = searched(seed, 1, diversity_penalty=5.0, **options)
        first = [{tuple(row[:2]) for row in rows(output, 1)[0]} for output in (same, varied)]
        assert len(first[0]) == 1 and len(first[1]) > 1


@pytest.mark.parametrize("groups", [1, 2])
def test_scores_and_rows_retrace_the_outputs(groups):
    """Each token's score in the row it came from adds up to the output's score, diversity penalty included."""
    options = dict(max_length=8, num_beams=4, num_beam_groups=groups, num_return_sequences=4, length_penalty=0.0)
    options["diversity_penalty"] = 0.7 * (groups > 1)
    output, _ = searched(4, 2, output_scores=True, output_logits=True, **options)
    for tokens, source_rows, score in zip(output.sequences, output.beam_indices, output.sequences_scores):
        steps = [(step, int(row)) for step, row in enumerate(source_rows) if row >= 0]
        total = sum(float(output.scores[step][row, tokens[step + 1]]) for step, row in steps)
        assert abs(total - float(score)) < 1e-4
    assert all(logits.shape == scores.shape for logits, scores in zip(output.logits, output.scores))


def test_a_search_ends_with_its_length():
    """In every search a row without an end token has the maximum length."""
    for options in (dict(), dict(num_beams=3), dict(do_sample=True), dict(do_sample=True, num_beams=2)):
        base = GenerationConfig(bos_token_id=START, pad_token_id=0, max_length=6, **options)
        settled = resolve_generation_config(base)
        output = run_search(Table(1, 2, settled.num_beams), new_search(torch.full((2, 1), START), settled))
        assert output.sequences.shape == (2, 6)
