"""Requests of all kinds for the engine, with the outputs of each one alone and their margin."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bertgen import EncoderDecoderModel, GenerationConfig
from bertgen.config import EngineConfig
from bertgen.decoding import resolve_generation_config
from bertgen.engine import Engine, Request
from tests.support.generate_comparison import RETURNED, random_search

CALLED = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
MARGIN = 1e-4  # larger than the differences of float32 sums between batches
DEAD = -1.0e8  # the score of a beam that has not begun
IMPOSSIBLE = -1.0e30  # the score of a forbidden token: -inf, or its replacement by `remove_invalid_values`


@dataclass(frozen=True)
class ExpectedRequest:
    """A request and its expected outputs.

    Attributes:
        ids: the source.
        options: options of `generate`.
        generation_config: the same options, resolved as the engine takes them.
        expected: the outputs of the request alone, each from after the start token to its end.
        margin: least difference of two scores whose order decides the outputs; infinite if it is not computed (beam
            groups, sampling).
    """

    ids: list[int]
    options: dict[str, Any]
    generation_config: GenerationConfig
    expected: list[list[int]]
    margin: float

    def request(self, number: int) -> Request:
        called = {name: self.options[name] for name in CALLED if name in self.options}
        if allowed := called.get("prefix_allowed_tokens_fn"):  # in `generate` its source is number 0
            called["prefix_allowed_tokens_fn"] = lambda _, tokens: allowed(0, tokens)
        return Request(self.ids, self.generation_config, number=number, scored=number % 3 == 0, **called)


def expect(model: EncoderDecoderModel, ids: list[int], options: dict[str, Any]) -> ExpectedRequest:
    """The request with the outputs of `model.generate`."""
    plain = {name: value for name, value in options.items() if name not in CALLED}
    generation_config = resolve_generation_config(GenerationConfig(**plain).over(model.generation_config))
    return ExpectedRequest(ids, options, generation_config, *outcome(model, ids, options, generation_config))


def outcome(
    model: Any, ids: list[int], options: dict[str, Any], generation_config: GenerationConfig
) -> tuple[list, float]:
    """Outputs of one source, and their margin; the model may be one of transformers."""
    more = dict(return_dict_in_generate=True, output_scores=True)
    output = model.generate(torch.tensor([ids], device=model.device), **options, **more)
    outputs = [cut(row[1:], generation_config.end_tokens) for row in output.sequences.tolist()]
    if generation_config.num_beam_groups > 1 or generation_config.do_sample:
        return outputs, math.inf
    scores = [step.double().cpu() for step in output.scores]
    if generation_config.num_beams == 1:
        return outputs, margin_of_greedy(scores)
    restated, margin = margin_of_beams(scores, generation_config)
    assert margin <= MARGIN or restated == outputs, (options, restated, outputs)
    return outputs, margin


def cut(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens until the first end token."""
    return next((tokens[: i + 1] for i, token in enumerate(tokens) if token in ends), tokens)


def margin_of_greedy(scores: Iterable[torch.Tensor]) -> float:
    """The margin of greedy search, from the processed scores of every step, [1, vocabulary]."""
    best = (step[0].topk(2).values.tolist() for step in scores)
    return min(apart(first, second) for first, second in best)


def margin_of_beams(scores: Sequence[torch.Tensor], options: GenerationConfig) -> tuple[list[list[int]], float]:
    """A second beam search over the processed scores of every step [beams, vocabulary]: outputs and their margin."""
    beams, ends, longest = options.num_beams, options.end_tokens, options.max_length - 1
    exponent, early, margin = options.length_penalty, options.early_stopping, math.inf
    going: list[tuple[float, list[int]]] = [(0.0, []), *[(-1.0e9, [])] * (beams - 1)]
    done: list[tuple[float, list[int]]] = []
    for length, table in enumerate(scores, 1):
        totals = table + torch.tensor([total for total, _ in going], dtype=torch.float64)[:, None]
        order = totals.flatten().sort(descending=True, stable=True)
        vocabulary = table.shape[1]
        ranked = [
            (total, [*going[index // vocabulary][1], index % vocabulary])
            for total, index in zip(order.values.tolist(), order.indices.tolist())
        ]
        over = [length == longest or tokens[-1] in ends for _, tokens in ranked]
        for rank in range(2 * beams):  # does an ended candidate count among the first?
            if over[rank]:
                across = (ranked[rank], ranked[beams]) if rank < beams else (ranked[beams - 1], ranked[rank])
                margin = min(margin, apart(across[0][0], across[1][0]))
        done += [(ranked[i][0] / length**exponent, ranked[i][1]) for i in range(beams) if over[i]]
        going = [candidate for candidate, ended in zip(ranked, over) if not ended][: beams + 1]
        if not going:
            break
        margin = min(margin, apart(going[beams - 1][0], going[beams][0]))
        going.pop()
        done.sort(key=lambda candidate: -candidate[0])
        if len(done) >= beams:
            if early is True:
                break
            horizon = longest if early == "never" and exponent > 0 else length
            hope, worst = going[0][0] / horizon**exponent, done[beams - 1][0]
            margin = min(margin, abs(hope - worst))
            if hope <= worst:
                break
    done.sort(key=lambda candidate: -candidate[0])
    count = options.num_return_sequences
    best = [score for score, _ in done[: count + 1]]
    margin = min([margin, *(apart(first, second) for first, second in itertools.pairwise(best))])
    return [tokens for _, tokens in done[:count]], margin


def apart(first: float, second: float) -> float:
    """By how much the first score is larger; 0 if it is impossible to tell."""
    if first > DEAD:
        return first - second
    return math.inf if second < IMPOSSIBLE < first else 0.0


def without_draws(r: random.Random, vocabulary: int, longest: int) -> dict[str, Any]:
    """Random options of greedy and beam search, with outputs that fit into so many positions."""
    while True:
        chosen = random_search(r, vocabulary)
        chosen = {name: value for name, value in chosen.items() if name not in (*RETURNED, "return_dict_in_generate")}
        if isinstance(chosen.get("forced_eos_token_id"), list):  # they have equal scores
            chosen["forced_eos_token_id"] = 1
        fits = chosen.get("max_length", 0) <= longest and chosen.get("max_new_tokens", 0) < longest
        if fits and not chosen.get("do_sample") and not (chosen["num_beams"] > 1 and "stopping_criteria" in chosen):
            return chosen


def arrivals(
    model: EncoderDecoderModel, wanted: Sequence[ExpectedRequest], seed: int, **limits: Any
) -> list[list[list[int]]]:
    """Submit the requests at random times and in random order; returns the outputs of each."""
    engine, r = Engine(model, EngineConfig(**limits)), random.Random(seed)
    done: list[Request] = []
    waiting = [one.request(number) for number, one in enumerate(wanted)]
    r.shuffle(waiting)
    while waiting or engine.busy:
        if waiting and r.random() < 0.5:
            engine.submit([waiting.pop() for _ in range(min(len(waiting), r.randint(1, 19)))], done.append)
        engine.step()
    for request in done:
        if request.error is not None:
            raise request.error
    assert len(done) == len(wanted) and engine.statistics.pages_used == engine.cache.rows == 0
    return [request.outputs for request in sorted(done, key=lambda request: request.number)]
