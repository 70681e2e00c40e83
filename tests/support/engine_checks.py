"""Checks of the engine on any device: small ones on the CPU in the test suite, on CUDA with `make gpu`."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bertgen import AutoTokenizer, EncoderDecoderModel, GenerationConfig, Generator
from bertgen.config import EngineConfig
from bertgen.decoding import resolve_generation_config
from bertgen.engine import Engine, Request
from tests.support.checkpoints import POSITIONS, sentence
from tests.support.engine_requests import CALLED, ExpectedRequest, arrivals, expect, without_draws

MARGIN = 1e-3  # the products of two devices round differently
DRAWS: list[dict[str, Any]] = [
    dict(do_sample=True, temperature=2.0),
    dict(do_sample=True, num_return_sequences=3, top_k=5),
    dict(do_sample=True, top_p=0.9, temperature=1.5, repetition_penalty=1.2, no_repeat_ngram_size=2),
    dict(do_sample=True, num_beams=3, num_return_sequences=2, temperature=1.5),
]


def loaded(checkpoint: Path, device: torch.device) -> EncoderDecoderModel:
    """The model in float32."""
    return EncoderDecoderModel.from_pretrained(checkpoint).float().to(device).eval()


def sources(checkpoint: Path, count: int, r: random.Random) -> list[list[int]]:
    return AutoTokenizer.from_pretrained(checkpoint).encode_batch([sentence(r) for _ in range(count)])


def favoured(history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A custom logits processor."""
    token = torch.arange(scores.shape[1], device=scores.device)
    return scores + 0.7 * (token % 5 == history.shape[1] % 5)


def calls(checkpoint: Path, count: int, seed: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Sources and options without draws: greedy, beams, groups of beams, processors of all kinds."""
    r = random.Random(seed)
    for number, ids in enumerate(sources(checkpoint, count, r)):
        options = {name: value for name, value in without_draws(r, 64, POSITIONS).items() if name not in CALLED}
        if number % 10 == 0:
            options = dict(num_beams=4, num_beam_groups=2, diversity_penalty=0.7, num_return_sequences=r.randint(1, 4))
        elif number % 10 == 1:
            options["logits_processor"] = [favoured]
        yield ids, options


def gives_the_same_tokens(checkpoint: Path, device: torch.device, count: int) -> str:
    """The engine on the device, and `model.generate` there and on the CPU: equal outputs for requests of all kinds."""
    here, reference = loaded(checkpoint, device), loaded(checkpoint, torch.device("cpu"))
    wanted = [expect(here, ids, options) for ids, options in calls(checkpoint, count, 1)]
    expected = [expect(reference, one.ids, one.options) for one in wanted]
    found = [arrivals(here, wanted, 1, **limits) for limits in ({}, dict(max_rows=7, refill=0, encode_tokens=30))]
    narrow = 0
    for place, (one, other) in enumerate(zip(wanted, expected, strict=True)):
        if min(one.margin, other.margin) <= MARGIN:
            narrow += 1
            continue
        assert one.expected == other.expected, (one.options, one.margin)
        for outputs in found:
            assert outputs[place] == other.expected, (one.options, one.margin)
    assert narrow <= count / 10, narrow
    return f"{count} requests on {device}: {narrow} of a margin up to {MARGIN}, which were not compared"


def graphs_change_nothing(
    model: EncoderDecoderModel, requests: Sequence[tuple[list[int], dict[str, Any]]], margin: float, share: float
) -> str:
    """Equal tokens of requests without draws with graphs and without, and of `model.generate`.

    Args:
        margin: outputs that depend on a smaller difference of scores are not compared.
        share: of the requests, at most, of such a margin.
    """
    wanted = [expect(model, ids, options) for ids, options in requests]
    limits = EngineConfig(max_rows=64, cache_bytes=1 << 26)
    found, steps = [], []
    for setting in ("1", "0"):
        with mock.patch.dict(os.environ, BERTGEN_GRAPHS=setting):
            engine = Engine(model, limits)
            done = completed(engine, [one.request(number) for number, one in enumerate(wanted)])
            found.append(outputs(done))
            steps.append(engine.statistics.static_steps)
            assert engine.statistics.pages_used == 0
    assert steps[0] > 0 and steps[1] == 0, steps
    narrow = 0
    for one, with_graphs, without in zip(wanted, *found, strict=True):
        if one.margin <= margin:
            narrow += 1
            continue
        assert with_graphs == without == one.expected, (one.options, one.margin)
    assert narrow <= share * len(wanted), narrow
    return f"{len(wanted)} requests, {steps[0]} static steps: {narrow} of a margin up to {margin}, not compared"


def graphs_survive(model: EncoderDecoderModel, sources: Sequence[list[int]], seconds: float) -> str:
    """Random requests enter, are cancelled and end for so long: outputs stay those of the first time, pages return."""
    r, kinds = random.Random(7), [dict(num_beams=1), dict(num_beams=4), dict(do_sample=True, top_k=5)]
    resolved = [resolve_generation_config(GenerationConfig(**kind).over(model.generation_config)) for kind in kinds]
    engine = Engine(model, EngineConfig(max_rows=64, cache_bytes=1 << 26))
    known: dict[tuple[int, int], list[list[int]]] = {}
    count, cancelled, end = 0, 0, time.monotonic() + seconds
    while count == 0 or time.monotonic() < end:
        places = [(r.randrange(len(sources)), r.randrange(len(resolved))) for _ in range(r.randint(1, 40))]
        requests = [Request(sources[i], resolved[k], number=i, seed=3) for i, k in places]
        submitted = engine.submit(requests, lambda _: None)
        for _ in range(r.randint(0, 6)):
            engine.step()
        gone = set(r.sample(submitted, r.randint(0, len(submitted) // 4)))
        engine.cancel(gone)
        for _ in range(20_000):
            if not engine.busy:
                break
            engine.step()
        assert not engine.busy
        for place, request in zip(places, submitted):
            if request in gone and request.outputs is None:
                cancelled += 1
                continue
            assert request.error is None, request.error
            assert request.outputs == known.setdefault(place, request.outputs or []), place
            count += 1
        assert engine.statistics.pages_used == 0 and engine.statistics.running == 0
    return f"{count} requests, {cancelled} cancelled, {engine.statistics.static_steps} static steps"


def draws_by_keys_alone(checkpoint: Path, device: torch.device, count: int) -> str:
    """Samples do not depend on the batch, and rarely on the device: a number may be at the limit of two tokens."""
    here, reference = loaded(checkpoint, device), loaded(checkpoint, torch.device("cpu"))
    r = random.Random(2)
    kinds = [resolve_generation_config(GenerationConfig(**kind).over(here.generation_config)) for kind in DRAWS]
    wanted = [ExpectedRequest(ids, {}, r.choice(kinds), [], 0.0) for ids in sources(checkpoint, count, r)]
    together, narrow = (arrivals(here, wanted, seed, **limits) for seed, limits in enumerate(({}, dict(max_rows=5))))
    on_cpu = arrivals(reference, wanted, 2)
    assert together == narrow
    for place in range(0, count, max(1, count // 12)):
        (request,) = completed(Engine(here), [wanted[place].request(place)])
        assert request.outputs == together[place]
    differing = sum(a != b for a, b in zip(together, on_cpu))
    assert differing <= count / 50, f"{differing} of {count} samples are others on the CPU"
    assert sum(a != b for a, b in itertools.pairwise(together)) > count / 2
    return f"{count} samples on {device}: {differing} are others on the CPU"


def completed(engine: Engine, requests: Sequence[Request], steps: int = 20_000) -> list[Request]:
    """New requests of the same options, done after not too many steps, in the same order."""
    done: list[Request] = []
    submitted = engine.submit([dataclasses.replace(request) for request in requests], done.append)
    for _ in range(steps):
        if not engine.busy:
            assert set(done) == set(submitted)
            return submitted
        engine.step()
    raise AssertionError(f"{len(done)} of {len(submitted)} requests are done after {steps} steps")


def outputs(requests: Sequence[Request]) -> list[list[list[int]]]:
    for request in requests:
        if request.error is not None:
            raise request.error
    return [request.outputs or [] for request in requests]


@contextlib.contextmanager
def failing(model: EncoderDecoderModel, fails: Callable[[], bool], where: str) -> Iterator[None]:
    """An allocation fails in the encoder's or the decoder's part of a step: it asks for more memory than there is."""
    holder: Any = model if where == "encoded" else model.decoder.head
    name = "encoded" if where == "encoded" else "forward"
    former = getattr(holder, name)

    def call(*arguments: Any) -> Any:
        if fails():
            torch.empty(1 << 50, dtype=torch.uint8, device=model.device)
        return former(*arguments)

    setattr(holder, name, call)
    try:
        yield
    finally:
        delattr(holder, name)


def backs_off(checkpoint: Path, device: torch.device, failures: Sequence[int], count: int) -> None:
    """Memory fails at any call: all outputs are the same, nothing is leaked, and the idle engine allows all rows."""
    model = loaded(checkpoint, device)
    requests = [expect(model, *call).request(number) for number, call in enumerate(calls(checkpoint, count, 3))]
    kinds = [resolve_generation_config(GenerationConfig(**kind).over(model.generation_config)) for kind in DRAWS]
    r = random.Random(4)
    requests += [Request(ids, r.choice(kinds), number=count + i) for i, ids in enumerate(sources(checkpoint, count, r))]
    limits = EngineConfig(max_rows=24, cache_bytes=1 << 24)
    expected = outputs(completed(Engine(model, limits), requests))
    for where in ("encoded", "decoded"):
        for failure in failures:
            engine, calls_so_far = Engine(model, limits), iter(range(1, 1 << 30))
            with failing(model, lambda: next(calls_so_far) == failure, where):  # noqa: B023
                assert outputs(completed(engine, requests)) == expected
                assert engine.statistics.restarts == 1, (where, failure)
                assert engine.statistics.pages_used == 0 and engine.scheduler.row_limit == 24
                assert outputs(completed(engine, requests[:3])) == expected[:3]


def allocated(device: torch.device) -> int:
    """Bytes of all live tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    kinds = (torch.Tensor, torch.nn.Parameter)
    storages = [x.untyped_storage() for x in gc.get_objects() if type(x) in kinds and x.layout is torch.strided]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def leaves_nothing(checkpoint: Path, device: torch.device, rounds: int) -> None:
    """After `close` the allocated memory is that of before, however the calls ended."""
    model, r = loaded(checkpoint, device), random.Random(5)
    texts = [sentence(r) for _ in range(12)]

    def everything(generator: Generator) -> None:
        for kind in (dict(num_beams=4), dict(num_beams=4, num_beam_groups=2, diversity_penalty=0.5), *DRAWS[1:]):
            generator.generate(texts, seed=1, **kind)
        stream = generator.stream(texts, num_beams=2)
        next(stream)
        stream.close()
        fail = iter([False, True] + [False] * 100_000)
        with failing(generator.model, lambda: next(fail), "decoded"):
            generator.generate(texts)
        generator.score(texts, texts)
        generator.close()

    gc.collect()  # Generators of other tests, whose threads end soon after
    limits = EngineConfig(max_rows=64, cache_bytes=1 << 24)
    everything(Generator(model, checkpoint, engine=limits))  # memory that a device allocates once: workspaces, kernels
    before = allocated(device)
    generator = Generator(model, checkpoint, engine=limits)
    for _ in range(rounds):
        everything(generator)
        assert abs(allocated(device) - before) <= 1 << 12
    generator.generate(texts)
    assert allocated(device) - before > 1 << 14, "the memory in use is counted"
    generator.close()
    assert abs(allocated(device) - before) <= 1 << 12


def holds_one_cache(checkpoint: Path, device: torch.device) -> None:
    """After a failed allocation the old cache is freed before the new one is made."""
    model = loaded(checkpoint, device)
    requests = [
        Request(ids, resolve_generation_config(model.generation_config), number=i)
        for i, ids in enumerate([[5, 6, 7], [8, 9]])
    ]
    completed(Engine(model), requests)
    before = allocated(device)
    engine = Engine(model, EngineConfig(max_rows=24, cache_bytes=1 << 24))
    new_cache, held = engine._new_cache, []

    def counting() -> Any:
        held.append(allocated(device) - before)
        return new_cache()

    engine._new_cache = counting
    fail = iter([False, True] + [False] * 100_000)
    with failing(model, lambda: next(fail), "decoded"):
        completed(engine, requests)
    assert len(held) == 2 and max(held) <= 1 << 12, f"bytes that were held when a cache was made: {held}"
