"""Checks that need a CUDA device: `make gpu`. Every kernel in every dtype, models beside transformers, the engine.

The functions of engine_checks.py run small on the CPU in engine/test_equal_tokens.py.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bertgen.kernels.all_cases import CHECKS
from bertgen.kernels.checks import check_case, difference, outputs
from bertgen.kernels.tuning import INT4_DENSE_ROWS

from bertgen import EncoderDecoderModel, GenerationConfig, Int4Config, ops
from bertgen.config import EngineConfig
from bertgen.decoding import resolve_generation_config
from bertgen.engine import Engine, Request
from bertgen.model.static_decoder import StaticDecoder
from tests.support import engine_checks, int4_models, int4_products
from tests.support.engine_requests import CALLED, without_draws
from tests.support.large_tensors import LARGE, ROWS

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CASES = [
    pytest.param(check, case, dtype, id=f"{name}-{case.name}-{str(dtype)[6:]}")
    for name, check in CHECKS.items()
    for case in check.cases
    for dtype in DTYPES
]
REPEATS = 1000


@pytest.mark.parametrize(("check", "case", "dtype"), CASES)
def test_case(check, case, dtype):
    wrong = check_case(check, case, dtype, CUDA)
    assert wrong is None, wrong


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", int4_products.GROUPS)
@pytest.mark.parametrize("form", int4_products.FORMS)
def test_4_bit_weights_are_unpacked_bit_for_bit(form, group, dtype):
    for rows in (1, 16, 17, 33, 64, INT4_DENSE_ROWS + 1):
        assert int4_products.wrong(rows, form, group, dtype, CUDA) == 0, rows


@pytest.mark.parametrize("name", CHECKS)
def test_a_thousand_launches_give_the_same_bits(name):
    check = CHECKS[name]
    case = next(case for case in check.cases if case.core)
    first = outputs(check.triton, case, case.make(torch.bfloat16, CUDA))
    for _ in range(REPEATS):
        for a, b in zip(first, outputs(check.triton, case, case.make(torch.bfloat16, CUDA)), strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("name", LARGE)
def test_more_than_2_to_the_31_elements(name):
    large, small = LARGE[name](ROWS, CUDA, torch.bfloat16)
    exact = small.double()
    assert difference(large, small, exact) is None, difference(large, small, exact)


def sanitizer() -> str:
    """The path of compute-sanitizer; skips the test where it is missing."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        pytest.skip("compute-sanitizer is not installed")
    return tool


def test_memory_is_left_alone_that_is_not_a_kernels_own():
    """compute-sanitizer over the core cases: reads and writes out of bounds, which nothing else here would notice."""
    checks = [sys.executable, "-m", "bertgen", "info", "--check"]
    command = [sanitizer(), "--error-exitcode", "1", "--target-processes", "all", *checks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize("seed", range(20))
def test_models_equal_transformers(seed):
    from tests.support.reference_models import make_model_pair

    pair = make_model_pair(seed)
    ids, mask, labels = pair.batch()
    inputs = dict(input_ids=ids.to(CUDA), attention_mask=mask.to(CUDA), labels=labels.to(CUDA))
    read = (labels != -100).to(CUDA)[..., None]
    oracle, model = pair.oracle.to(CUDA), pair.model.to(CUDA)
    expected, got = oracle(**inputs), model(**inputs)
    assert float(((got.logits - expected.logits) * read).abs().max()) <= 5e-4
    got.loss.backward(), expected.loss.backward()
    options = dict(attention_mask=inputs["attention_mask"], max_new_tokens=8, num_beams=1 + seed % 3, eos_token_id=5)
    tokens = [m.generate(inputs["input_ids"], pad_token_id=0, **options) for m in (model, oracle)]
    assert torch.equal(*tokens)


def test_engine_gives_the_tokens_of_generate_here_and_on_the_cpu(tiny_checkpoint, record_property):
    record_property("count", engine_checks.gives_the_same_tokens(tiny_checkpoint, CUDA, 300))


def test_engine_draws_by_keys_alone(tiny_checkpoint, record_property):
    record_property("count", engine_checks.draws_by_keys_alone(tiny_checkpoint, CUDA, 200))


def test_engine_backs_off_wherever_memory_fails(tiny_checkpoint):
    engine_checks.backs_off(tiny_checkpoint, CUDA, range(1, 12), 60)


def test_engine_leaves_no_memory_behind(tiny_checkpoint):
    engine_checks.leaves_nothing(tiny_checkpoint, CUDA, 20)


def test_engine_holds_one_cache(tiny_checkpoint):
    engine_checks.holds_one_cache(tiny_checkpoint, CUDA)


def test_engine_in_too_little_memory(tiny_checkpoint):
    """Real shortage: less and less room beside the cache, until the sources cannot be encoded together any more.

    The cache is larger than that room, so it can be made again only where the old one has gone.
    """
    model, r = engine_checks.loaded(tiny_checkpoint, CUDA), random.Random(0)
    options = resolve_generation_config(GenerationConfig(max_length=12).over(model.generation_config))
    requests = [Request([r.randrange(5, 64) for _ in range(48)], options, number=i) for i in range(1024)]
    limits = EngineConfig(max_rows=1024, cache_bytes=1 << 28)
    expected = engine_checks.outputs(engine_checks.completed(Engine(model, limits), requests))
    total = torch.cuda.get_device_properties(CUDA).total_memory
    for room in (64, 32, 16, 8):
        engine = Engine(model, limits)
        torch.cuda.empty_cache()
        assert engine.cache.bytes > room << 20
        try:
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (room << 20)) / total)
            assert engine_checks.outputs(engine_checks.completed(engine, requests)) == expected
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert engine.statistics.pages_used == 0 and engine.cache.rows == 0
        if engine.statistics.restarts:
            return
    pytest.fail("all sources were encoded together in 8 MiB")


def int4_requests(count: int) -> list[tuple[list[int], dict[str, Any]]]:
    """Requests for the model of int4_models.py, without draws."""
    r = random.Random(10)
    options = [{k: v for k, v in without_draws(r, 80, 20).items() if k not in CALLED} for _ in range(count)]
    return [([r.randrange(3, 80) for _ in range(r.randint(2, 20))], one) for one in options]


@pytest.fixture(params=["float32", "float16", "bfloat16", "int4"])
def graphed(request, tiny_checkpoint, tmp_path):
    """A model, requests for it, and the margin below which outputs are not compared."""
    if request.param == "int4":
        int4_models.make_float_model().save_pretrained(tmp_path)
        config = Int4Config(group_size=32)
        model = EncoderDecoderModel.from_pretrained(tmp_path, quantization_config=config).to(CUDA).eval()
        return model, int4_requests, 1e-3
    model = engine_checks.loaded(tiny_checkpoint, CUDA).to(getattr(torch, request.param))
    margin = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1.5e-1}[request.param]
    return model, lambda count: [*engine_checks.calls(tiny_checkpoint, count, 6)], margin


@pytest.mark.timeout(1200)
def test_graphs_change_nothing(graphed, record_property):
    model, requests, margin = graphed
    share = 0.1 if margin <= 1e-3 else 0.5
    record_property("count", engine_checks.graphs_change_nothing(model, requests(500), margin, share))


@pytest.mark.timeout(1200)
def test_graphs_survive_ten_minutes(tiny_checkpoint, record_property):
    model = engine_checks.loaded(tiny_checkpoint, CUDA)
    sources = engine_checks.sources(tiny_checkpoint, 200, random.Random(8))
    before = torch.cuda.memory_reserved()
    record_property("count", engine_checks.graphs_survive(model, sources, 600))
    assert torch.cuda.memory_reserved() - before < 1 << 30


def test_a_step_that_cannot_be_captured(tiny_checkpoint, monkeypatch, caplog):
    """It reads a value while it is captured: steps run one by one, and the process is as before."""
    step = StaticDecoder.step

    def reads(decoder: StaticDecoder) -> None:
        if torch.cuda.is_current_stream_capturing():
            decoder.over.any().item()
        step(decoder)

    monkeypatch.setattr(StaticDecoder, "step", reads)
    stream = torch.cuda.current_stream()
    model = engine_checks.loaded(tiny_checkpoint, CUDA)
    with caplog.at_level("WARNING", "bertgen"):
        engine_checks.graphs_change_nothing(model, [*engine_checks.calls(tiny_checkpoint, 30, 6)], 1e-3, 0.1)
    assert sum("captured as a CUDA graph" in record.getMessage() for record in caplog.records) == 1
    assert torch.cuda.current_stream() == stream
    assert torch.randn(3, device=CUDA).isfinite().all(), "the generator does not record any more"
    monkeypatch.undo()
    engine_checks.graphs_change_nothing(model, [*engine_checks.calls(tiny_checkpoint, 10, 6)], 1e-3, 0.1)


SANITIZED = """
import sys, torch
from pathlib import Path
from tests.support import engine_checks
checkpoint = Path(sys.argv[1])
model = engine_checks.loaded(checkpoint, torch.device("cuda"))
print(engine_checks.graphs_change_nothing(model, [*engine_checks.calls(checkpoint, 8, 9)], 1e-3, 1.0))
"""


@pytest.mark.timeout(1500)
def test_steps_as_graphs_leave_memory_alone_that_is_not_theirs(tiny_checkpoint):
    """compute-sanitizer over the steps of a small model, with graphs and without."""
    command = [sanitizer(), "--error-exitcode", "1", "--target-processes", "all", sys.executable, "-c", SANITIZED]
    done = subprocess.run([*command, str(tiny_checkpoint)], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "static steps" in done.stdout


def test_the_kernels_are_what_runs():
    """Otherwise every test here would check the reference only."""
    told = dict(ops.explain("cuda"))
    assert all(told[name].startswith("triton") for name in ("attention", "add_layer_norm", "decode_attention"))
    r = random.Random(0)
    x = torch.randn(r.randint(3, 9), 64, device=CUDA)
    before = ops.set_backend("triton")
    try:
        ops.add_layer_norm(x, None, x, torch.ones(64, device=CUDA), torch.zeros(64, device=CUDA), 1e-12)
    finally:
        ops.set_backend(before)
