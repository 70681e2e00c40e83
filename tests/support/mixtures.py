"""Requests of all kinds for the engine, and what each of them gives alone, with the margin by which it does."""

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
from tests.support.searches import RETURNED, random_search

CALLED = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
MARGIN = 1e-4  # float32 sums differ with the batch, and this is more than they do
DEAD = -1.0e8  # of a beam that has not begun
IMPOSSIBLE = -1.0e30  # of a token that must not come: minus infinity, or what `remove_invalid_values` makes of it


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        ids: of its source.
        options: of `generate`; `settled`: as the engine takes them.
        expected: what generating for it alone gave, each output from behind the start token to its end.
        margin: least distance of two scores, the order of which decided what is in the outputs; infinite where nobody
            has worked it out (groups of beams, draws).
    """

    ids: list[int]
    options: dict[str, Any]
    settled: GenerationConfig
    expected: list[list[int]]
    margin: float

    def request(self, number: int) -> Request:
        called = {name: self.options[name] for name in CALLED if name in self.options}
        if allowed := called.get("prefix_allowed_tokens_fn"):  # to which `generate` says that its source is the first
            called["prefix_allowed_tokens_fn"] = lambda _, tokens: allowed(0, tokens)
        return Request(self.ids, self.settled, number=number, scored=number % 3 == 0, **called)


def asked(model: EncoderDecoderModel, ids: list[int], options: dict[str, Any]) -> Asked:
    """With what `model.generate` makes of it."""
    plain = {name: value for name, value in options.items() if name not in CALLED}
    settled = resolve_generation_config(GenerationConfig(**plain).over(model.generation_config))
    return Asked(ids, options, settled, *outcome(model, ids, options, settled))


def outcome(model: Any, ids: list[int], options: dict[str, Any], settled: GenerationConfig) -> tuple[list, float]:
    """Outputs of one source, and their margin; the model may be transformers'."""
    more = dict(return_dict_in_generate=True, output_scores=True)
    found = model.generate(torch.tensor([ids], device=model.device), **options, **more)
    outputs = [cut(row[1:], settled.end_tokens) for row in found.sequences.tolist()]
    if settled.num_beam_groups > 1 or settled.do_sample:
        return outputs, math.inf
    scores = [step.double().cpu() for step in found.scores]
    if settled.num_beams == 1:
        return outputs, margin_of_greedy(scores)
    restated, margin = margin_of_beams(scores, settled)
    assert margin <= MARGIN or restated == outputs, (options, restated, outputs)
    return outputs, margin


def cut(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Without what lies behind the end."""
    return next((tokens[: i + 1] for i, token in enumerate(tokens) if token in ends), tokens)


def margin_of_greedy(scores: Iterable[torch.Tensor]) -> float:
    """From the processed scores of every step, [1, vocabulary]."""
    best = (step[0].topk(2).values.tolist() for step in scores)
    return min(apart(first, second) for first, second in best)


def margin_of_beams(scores: Sequence[torch.Tensor], options: GenerationConfig) -> tuple[list[list[int]], float]:
    """Beam search restated, from the processed scores of every step [beams, vocabulary]: outputs and their margin."""
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
        for rank in range(2 * beams):  # among the first, does what has ended count or not?
            if over[rank]:
                across = (ranked[rank], ranked[beams]) if rank < beams else (ranked[beams - 1], ranked[rank])
                margin = min(margin, apart(across[0][0], across[1][0]))
        done += [(ranked[i][0] / length**exponent, ranked[i][1]) for i in range(beams) if over[i]]
        going = [candidate for candidate, ended in zip(ranked, over) if not ended][: beams + 1]
        if not going:
            break
        margin = min(margin, apart(going[beams - 1][0], going[beams][0]))
        going.pop()
        done.sort(key=lambda found: -found[0])
        if len(done) >= beams:
            if early is True:
                break
            horizon = longest if early == "never" and exponent > 0 else length
            hope, worst = going[0][0] / horizon**exponent, done[beams - 1][0]
            margin = min(margin, abs(hope - worst))
            if hope <= worst:
                break
    done.sort(key=lambda found: -found[0])
    count = options.num_return_sequences
    found = [score for score, _ in done[: count + 1]]
    margin = min([margin, *(apart(first, second) for first, second in itertools.pairwise(found))])
    return [tokens for _, tokens in done[:count]], margin


def apart(first: float, second: float) -> float:
    """By how much the first is larger; of two that are both impossible nobody can tell."""
    if first > DEAD:
        return first - second
    return math.inf if second < IMPOSSIBLE < first else 0.0


def without_draws(r: random.Random, vocabulary: int, longest: int) -> dict[str, Any]:
    """Random options of greedy and beam search, of outputs that fit into so many positions."""
    while True:
        chosen = random_search(r, vocabulary)
        chosen = {name: value for name, value in chosen.items() if name not in (*RETURNED, "return_dict_in_generate")}
        if isinstance(chosen.get("forced_eos_token_id"), list):  # one is as good as the other
            chosen["forced_eos_token_id"] = 1
        fits = chosen.get("max_length", 0) <= longest and chosen.get("max_new_tokens", 0) < longest
        if fits and not chosen.get("do_sample") and not (chosen["num_beams"] > 1 and "stopping_criteria" in chosen):
            return chosen


def arrivals(model: EncoderDecoderModel, wanted: Sequence[Asked], seed: int, **limits: Any) -> list[list[list[int]]]:
    """Submits at random times and in random order; the outputs of each."""
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
