"""The engine gives the tokens of transformers and of `model.generate`, whichever requests run together."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bertgen import AutoTokenizer, EncoderDecoderModel
from tests.support import engine_checks
from tests.support.checkpoints import POSITIONS, sentence
from tests.support.engine_requests import MARGIN, ExpectedRequest, arrivals, expect, outcome, without_draws
from tests.support.fake_cuda_device import graphs_on_a_cpu
from tests.support.reference_models import make_model_pair

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers")

CPU = torch.device("cpu")
LIMITS: list[dict[str, Any]] = [
    {},
    {"max_rows": 9, "refill": 0, "encode_tokens": 20},
    {"max_rows": 40, "encode_tokens": 50},
    {"max_rows": 6},  # one request of the widest at a time
]


def of_the_trained(checkpoint: Path, count: int, seed: int) -> Iterator[tuple[Any, Any, list]]:
    """(model, transformers' twin, sources and options): texts that the model can translate."""
    model, tokenizer = EncoderDecoderModel.from_pretrained(checkpoint).eval(), AutoTokenizer.from_pretrained(checkpoint)
    oracle = transformers.EncoderDecoderModel.from_pretrained(checkpoint, attn_implementation="eager").eval()
    r = random.Random(seed)
    calls = []
    for number in range(count):
        ids = tokenizer.encode_batch([sentence(r)])[0]
        options = without_draws(r, len(tokenizer), POSITIONS)
        if number % 12 == 0:  # transformers has none of these
            groups = r.choice([2, 3])
            options = dict(num_beams=2 * groups, num_beam_groups=groups, diversity_penalty=0.7)
            options |= dict(num_return_sequences=r.randint(1, 2 * groups), max_length=r.randint(5, 30))
        calls.append((ids, options))
    yield model, oracle, calls


def of_random_pairs(seeds: range, count: int) -> Iterator[tuple[Any, Any, list]]:
    """The same of models of all kinds, shapes and widths, `count` requests for each."""
    for seed in seeds:
        twins = make_model_pair(seed)
        r, encoder, decoder = twins.random, twins.model.config.encoder, twins.model.config.decoder
        calls = []
        for _ in range(count):
            ids = [r.randrange(3, encoder.vocab_size) for _ in range(r.randint(1, min(14, encoder.max_tokens)))]
            options = without_draws(r, decoder.vocab_size, min(decoder.max_tokens, 20))
            options.setdefault("eos_token_id", [1, *r.sample(range(3, decoder.vocab_size), 3)])
            if encoder.vocab_size > decoder.vocab_size:  # which both libraries refuse
                options = {name: value for name, value in options.items() if not name.startswith("encoder_")}
            calls.append((ids, options))
        yield twins.model, twins.oracle, calls


def compared(groups: list[Iterator[tuple[Any, Any, list]]], orders: int) -> str:
    """Run every request with transformers, `model.generate` and engines of all limits; returns a summary."""
    total, narrow, turned = 0, 0, 0
    for group in groups:
        for model, oracle, calls in group:
            wanted: list[ExpectedRequest] = []
            margins: list[float] = []
            told: list[list[list[list[int]]]] = [[]]  # by transformers, then by each engine
            for ids, options in calls:
                wanted.append(expect(model, ids, options))
                outputs, margin = wanted[-1].expected, math.inf
                if "num_beam_groups" not in options:
                    outputs, margin = outcome(oracle, ids, options, wanted[-1].generation_config)
                told[0].append(outputs)
                margins.append(min(margin, wanted[-1].margin))
            for number, limits in enumerate(LIMITS * orders):
                rows = {"max_rows": max(limits["max_rows"], 6)} if "max_rows" in limits else {}
                told.append(arrivals(model, wanted, number, **{**limits, **rows}))
            for place, (one, margin) in enumerate(zip(wanted, margins)):
                differs = any(outputs[place] != one.expected for outputs in told)
                assert not differs or margin <= MARGIN, (margin, one.options, one.expected, [o[place] for o in told])
                narrow += margin <= MARGIN
                turned += differs
            total += len(wanted)
    assert narrow <= max(2, total // 50), f"{narrow} of {total} requests have a margin up to {MARGIN}"
    runs = len(LIMITS) * orders
    return f"{total} requests in {runs} engines and transformers: {narrow} of a margin up to {MARGIN}, {turned} differ"


def test_sixty_requests(tiny_checkpoint, record_property):
    groups = [of_the_trained(tiny_checkpoint, 48, 1), of_random_pairs(range(3), 4)]
    record_property("count", compared(groups, 1))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_five_hundred_requests(tiny_checkpoint, record_property):
    groups = [of_the_trained(tiny_checkpoint, 400, 0), of_random_pairs(range(100, 110), 10)]
    record_property("count", compared(groups, 2))


# What `make gpu` runs on CUDA, small and on the CPU


def test_all_kinds_of_requests_on_this_device(tiny_checkpoint, record_property):
    record_property("count", engine_checks.gives_the_same_tokens(tiny_checkpoint, CPU, 12))
    record_property("count", engine_checks.draws_by_keys_alone(tiny_checkpoint, CPU, 12))


def test_memory_that_fails_on_this_device(tiny_checkpoint):
    engine_checks.backs_off(tiny_checkpoint, CPU, (2,), 8)


def test_nothing_is_left_on_this_device(tiny_checkpoint):
    engine_checks.leaves_nothing(tiny_checkpoint, CPU, 1)


def test_one_cache_at_a_time_on_this_device(tiny_checkpoint):
    engine_checks.holds_one_cache(tiny_checkpoint, CPU)


def test_graphs_change_nothing_on_this_device(tiny_checkpoint, record_property):
    """With replays that run from Python, and flags that are late."""
    model = engine_checks.loaded(tiny_checkpoint, CPU)
    requests = [*engine_checks.calls(tiny_checkpoint, 24, 6)]
    with graphs_on_a_cpu() as devices:
        record_property("count", engine_checks.graphs_change_nothing(model, requests, MARGIN, 0.1))
    assert "capture" in devices[0].told


def test_captures_that_fail_change_nothing_on_this_device(tiny_checkpoint, record_property):
    model = engine_checks.loaded(tiny_checkpoint, CPU)
    requests = [*engine_checks.calls(tiny_checkpoint, 8, 7)]
    with graphs_on_a_cpu(fails=True) as devices:
        record_property("count", engine_checks.graphs_change_nothing(model, requests, MARGIN, 0.1))
    assert devices[0].told.count("capture") == 1


def test_graphs_survive_on_this_device(tiny_checkpoint, record_property):
    model = engine_checks.loaded(tiny_checkpoint, CPU)
    sources = engine_checks.sources(tiny_checkpoint, 12, random.Random(8))
    with graphs_on_a_cpu():
        record_property("count", engine_checks.graphs_survive(model, sources, 1.0))
