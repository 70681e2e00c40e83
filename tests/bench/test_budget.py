"""The budget of a step: its kernels are those of a step, and its sums those of the constants."""

from __future__ import annotations

import collections

import pytest
import torch
from bertgen.bench.workload import END, PAD, SIZES, START, Size, build
from torch.utils._python_dispatch import TorchDispatchMode

from bertgen import ops
from bertgen.bench import budget
from bertgen.cache.cache import Cache
from bertgen.config import GenerationConfig
from bertgen.decoding import resolve_generation_config
from bertgen.engine import Request
from bertgen.engine.search_group import SearchGroup
from bertgen.model.batch_decoder import BatchDecoder
from bertgen.model.static_decoder import StaticDecoder
from tests.support import recorded_step
from tests.support.static_workloads import layers_one_by_one

LARGE = SIZES["large"]


class Counts(TorchDispatchMode):
    """How often each operator of torch is called."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_the_kernels_are_those_of_a_step():
    size = Size(hidden=32, layers=3, intermediate=48, heads=2, vocabulary=50)
    model = build(size)
    cache = Cache(
        3, 2, 16, torch.float32, torch.device("cpu"), rows=2, positions=8, source_positions=8, source_slots=32
    )
    admissions = [cache.admit(1, 8, source, 5) for source in range(2)]
    cache.begin_sources(admissions)
    before = ops.set_backend("reference")
    try:
        with torch.inference_mode():
            model.decoder.body.encoder.write_sources(cache, torch.randn(10, 32))
            cache.join(admissions)
            with Counts() as mode:
                BatchDecoder(model, cache).step(torch.full((2, 1), START))
    finally:
        ops.set_backend(before)
    told = collections.Counter()
    for kernel in budget.kernels(size, budget.Case(2, 1, 5, 0), 4):
        told[kernel.kind] += kernel.count
    assert mode.counts["linear"] == told["product"] == 8 * 3 + 1
    assert mode.counts["scaled_dot_product_attention"] == told["attention"] == 2 * 3
    assert mode.counts["layer_norm"] == told["norm"] == 3 * 3 + 1
    assert mode.counts["gelu"] == told["activation"] == 3
    assert mode.counts["embedding"] + 1 == told["embedding"] == 3  # and their sum


OF_LAYERS = ("linear", "linears", "decode_attention", "cross_decode_attention", "add_layer_norm", "embedding")


@pytest.mark.parametrize(("beams", "extra"), [(1, 3), (4, 6)])
def test_the_launches_of_the_search_are_those_of_a_static_step(beams, extra):
    """An operation of a recorded step is a launch; top_log_probs, topk and `where` of a number have `extra` ones."""
    model = build(Size(hidden=32, layers=3, intermediate=48, heads=2, vocabulary=50))
    cpu = torch.device("cpu")
    cache = Cache(3, 2, 16, torch.float32, cpu, rows=8, positions=20, source_positions=8, source_slots=64)
    options = GenerationConfig(
        max_new_tokens=10, num_beams=beams, bos_token_id=START, pad_token_id=PAD, eos_token_id=END
    )
    request = Request([5, 6, 7], resolve_generation_config(options))
    with layers_one_by_one(), torch.inference_mode():
        decoder = StaticDecoder(model.decoder, cache, [(SearchGroup(request, model).search, 2)], 20, 8)
        admission = cache.admit(beams, 12, 0, 3)
        cache.begin_sources([admission])
        model.decoder.body.encoder.write_sources(cache, torch.randn(3, 32))
        decoder.join(0, [0], [admission], torch.full((1, 1), START), [request])
        decoder.cache.prepare(4)
        recorded_step.two_steps(decoder)
        tensors = recorded_step.device_tensors(decoder).values()
        recording = recorded_step.RecordedStep(lambda: recorded_step.two_steps(decoder), tensors)
    names = [name_of(function) for function, *_ in recording._nodes]
    layers = sum(name in OF_LAYERS for name in names) / 2 + 1  # and the sum of the embeddings
    launches = len(names) / 2 - layers + extra
    assert launches == budget.SEARCH["beams" if beams > 1 else "greedy"]


def name_of(function):
    """Of an operator of torch, or of bertgen's."""
    return function.args[0].name if hasattr(function, "args") else function.overloadpacket.__name__


def test_the_limit_is_that_of_the_bytes():
    """By hand: 14 h^2 in each of 24 layers and the head, 2 bytes each; 98,304 bytes of keys and values a token."""
    weights, each = 2 * (24 * 14 * 1024**2 + 50358 * 1024), 2 * 2 * 24 * 1024
    assert each == 98304
    alone = budget.limit(LARGE, budget.Case(1, 1, 512, 256))
    assert alone == pytest.approx((weights + each * 768) / 4.3e12) and 204e-6 < alone < 206e-6
    beams = budget.limit(LARGE, budget.Case(64, 4, 512, 128))
    assert beams == pytest.approx((weights + each * (256 * 128 + 64 * 512)) / 4.3e12)


def test_a_product_takes_its_bytes_or_its_tiles():
    one, many = (budget.budget(LARGE, budget.Case(n, 1, 512, 128)) for n in (1, 256))
    assert one.products == pytest.approx(188e-6, rel=0.01)
    assert many.products > 2 * 256 * 403.9e6 / budget.FLOPS
    assert many.launches == one.launches and one.fixed == one.launches * budget.FIXED
    for case in budget.cases(512, 128):
        told = budget.budget(LARGE, case)
        assert told.step > told.limit > 0
        assert told.step == pytest.approx(told.fixed + told.products + told.attention + told.rest)


def test_attention_reads_a_source_once_for_all_beams():
    def cross(case):
        return next(k for k in budget.kernels(LARGE, case, 2) if k.name == "cross-attention").moved

    beams, rows = cross(budget.Case(64, 4, 512, 128)), cross(budget.Case(256, 1, 512, 128))
    assert 3.9 < rows / beams < 4.0
    assert beams == 2 * 2 * 1024 * (64 * 512 + 256)


def test_the_command(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["budget", "--size", "smoke", "--kernels"])
    budget.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| rows | launches") and [line.split("|")[1].strip() for line in lines[2:7]] == [
        "1, greedy", "8, greedy", "64, greedy", "256, greedy", "64 x 4 beams"
    ]  # fmt: skip
    assert all(line.endswith("| not measured |") for line in lines[2:7])
    assert "self-attention: 2 launches" in "\n".join(lines)
