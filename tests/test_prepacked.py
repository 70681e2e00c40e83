"""Packed weights: the same products, never stale ones, and nothing held longer than said."""

from __future__ import annotations

import copy
import gc
import math
import os
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from bertgen.kernels.linear import PACKED_ROWS, can_pack, linear_packed, linear_reference, pack_weight, packed_bytes

from bertgen import EncoderDecoderConfig, EncoderDecoderModel, GenerationConfig, ops, prepacked
from bertgen.config import EngineConfig
from bertgen.engine import Engine, Request
from bertgen.prepacked import PATIENCE, Prepacked
from bertgen.search import settle

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN operators that pack")

NEW = 2 * PATIENCE  # tokens: the fewest for which a call packs
IDS = torch.tensor([[5, 6, 7], [8, 9, 0]])


def make() -> EncoderDecoderModel:
    half = dict(
        vocab_size=520, hidden_size=512, num_hidden_layers=1, num_attention_heads=8, intermediate_size=512,
        initializer_range=0.05, max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    decoder = dict(half, is_decoder=True, add_cross_attention=True)
    torch.manual_seed(0)
    config = EncoderDecoderConfig(encoder=half, decoder=decoder, pad_token_id=0, decoder_start_token_id=2)
    return EncoderDecoderModel(config).eval()


@pytest.fixture(scope="module")
def made():
    return make().state_dict()


@pytest.fixture
def model(made):
    model = make()
    model.load_state_dict(made)
    return model


@pytest.fixture
def packings(monkeypatch):
    """Weak references to all that is packed in the test."""
    found = []

    def pack(weight):
        packed = pack_weight(weight)
        found.append(weakref.ref(packed))
        return packed

    monkeypatch.setattr(prepacked, "pack_weight", pack)
    return found


def generate(model, cache=None, new=NEW, ids=IDS):
    """The scores of every step [steps, rows, vocabulary], in a cache that the caller has, or in the call's own."""
    call = dict(max_new_tokens=new, min_new_tokens=new, return_dict_in_generate=True, output_scores=True)
    if cache is None:
        return torch.stack(model.generate(ids, **call).scores)
    with cache:
        return torch.stack(model.generate(ids, **call).scores)


def distance(a, b):
    both = a.isfinite() & b.isfinite()
    assert torch.equal(a.isfinite(), b.isfinite())
    return float((a - b)[both].abs().max())


def fresh(model):
    """What a new model with the same weights generates with nothing packed."""
    other = make()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    return generate(other, Prepacked(enabled=False))


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 64, 129])
@pytest.mark.parametrize("shape", [(1024, 256), (768, 768), (257, 1031)])
def test_packed_products_round_like_the_reference(rows, shape):
    """The bounds are those of oneDNN with the weight as it lies."""
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, shape[1]), torch.randn(shape) / math.sqrt(shape[1]), torch.randn(shape[0])
    with torch.no_grad():
        exact = x.double() @ weight.double().T + bias.double()
        packed = pack_weight(torch.cat((weight, weight))[shape[0] :])  # a slice, as fused projections are
        assert packed is not None and packed_bytes(packed) >= weight.nbytes
        ours, plain = linear_packed(x, packed, bias), linear_reference(x, weight, bias)
        assert bool((ours - exact).abs().mean() <= 2.5 * (plain - exact).abs().mean())
        assert bool((ours - exact).abs().max() <= 1e-5)
        gelu = linear_packed(x, packed, None, "gelu") - torch.nn.functional.gelu(exact - bias.double())
        assert bool(gelu.abs().max() <= 1e-5)


def test_a_call_packs_once_it_pays_and_leaves_nothing_behind(model, packings):
    expected = generate(model, Prepacked(enabled=False))
    short = generate(model, new=NEW - 1)
    assert not packings and distance(short, expected[:-1]) <= 1e-4
    assert distance(generate(model), expected) <= 1e-4
    # One layer: three projections in one, those of source states (used once) not at all, then output twice, the query
    # of cross-attention, two of the feed-forward block, and the head.
    assert len(packings) == 7
    gc.collect()
    assert not any(reference() is not None for reference in packings)
    assert not prepacked._active.stack
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert distance(generate(again), expected) <= 1e-4


def step(model):
    """One update of fused AdamW, which does not count as a new version of a parameter."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    model(IDS, decoder_input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    model.zero_grad()
    model.eval()


def load(model):
    model.load_state_dict(other_weights(model))


def assign(model):
    model.load_state_dict(other_weights(model), assign=True)
    model.tie_weights()


def other_weights(model):
    torch.manual_seed(1)
    return {name: torch.randn_like(value) * 0.05 for name, value in model.state_dict().items()}


def move(model):
    """There and back again: other addresses, half of the digits."""
    model.bfloat16().float()


def vector(model):
    values = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.nn.utils.vector_to_parameters(values * 1.1, model.parameters())


@torch.inference_mode()
def in_inference_mode(model):
    for parameter in model.parameters():
        parameter.mul_(1.1)


def data(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.1)


def one_value(model):
    with torch.no_grad():
        weight_of(model)[3, 5] += 50.0


def one_row_of_data(model):
    weight_of(model).data[300] = 3 * torch.randn(512)


def one_column_of_numpy(model):
    weight_of(model).detach().numpy()[:, 300] = 3.0


def weight_of(model):
    return model.decoder.bert.encoder.layer[0].intermediate.dense.weight


def value_projection(model):
    """The last part of a fused weight, whose view has no version."""
    with torch.no_grad():
        model.decoder.bert.encoder.layer[0].attention.self.value.weight[3, 5] += 50.0


CHANGES = [
    step, load, assign, move, vector, in_inference_mode, data, one_value, value_projection, one_row_of_data,
    one_column_of_numpy,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("long_lived", [True, False])
def test_generating_after_a_change_is_generating_with_a_fresh_model(model, change, long_lived):
    cache = Prepacked() if long_lived else None
    generate(model, cache)
    before = generate(model, cache)
    held = 0 if cache is None else cache.bytes
    change(model)
    after = generate(model, cache)
    assert distance(after, fresh(model)) <= 1e-4
    assert distance(after, before) > 1e-3
    if cache is not None:
        assert cache.bytes == held > 0, "stale packings are dropped, not only passed over"


def test_without_renewing_a_change_would_be_missed(model, monkeypatch):
    """Else the tests above would prove nothing."""
    cache = Prepacked()
    generate(model, cache)
    monkeypatch.setattr(cache, "renew", lambda model: None)
    step(model)
    assert distance(generate(model, cache), fresh(model)) > 1e-3


def engine_scores(engine):
    """Log-probabilities of what an engine generates."""
    options = settle(GenerationConfig(max_new_tokens=NEW, min_new_tokens=NEW).over(engine.model.generation_config))
    tickets = engine.submit([Request(ids, options, scored=True) for ids in ([5, 6, 7], [8, 9])], lambda ticket: None)
    while engine.busy:
        engine.step()
    return torch.tensor([ticket.scores[0] for ticket in tickets])


@pytest.mark.parametrize("change", [step, load, in_inference_mode, one_row_of_data], ids=lambda change: change.__name__)
def test_an_engine_sees_a_change_once_it_is_idle(model, change):
    engine = Engine(model)
    before = engine_scores(engine)
    held = engine.statistics.prepacked_bytes
    change(model)
    after = engine_scores(engine)
    assert distance(after, engine_scores(Engine(model, EngineConfig(prepack=False)))) <= 1e-4
    assert distance(after, before) > 1e-3 and engine.statistics.prepacked_bytes == held > 0


def test_an_unchanged_model_keeps_its_packings(model, packings):
    cache = Prepacked()
    generate(model, cache)
    count = len(packings)
    generate(model, cache)
    assert len(packings) == count > 0 and all(reference() is not None for reference in packings)
    generate(make(), cache)  # another model
    assert len(packings) == 2 * count and sum(reference() is not None for reference in packings) == count


def test_training_mode_and_clear_drop_everything(model):
    cache = Prepacked()
    for drop in (lambda: cache.renew(model.train()), cache.clear):
        generate(model.eval(), cache)
        assert cache.bytes > 0
        drop()
        assert cache.bytes == 0


def test_an_address_is_not_taken_for_another_weight():
    x = torch.randn(4, 512)
    cache = Prepacked()
    with torch.no_grad(), cache:
        for _ in range(20):
            weight = torch.randn(512, 512)
            assert distance(ops.linear(x, weight), x @ weight.T) <= 1e-3
            del weight


def test_a_weight_changed_between_two_products():
    x, weight = torch.randn(4, 512), torch.randn(512, 512)
    with torch.no_grad(), Prepacked() as cache:
        ops.linear(x, weight)
        weight[7, 9] += 100.0
        assert distance(ops.linear(x, weight), x @ weight.T) <= 1e-3
        assert cache.bytes == 2 * weight.nbytes


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux")
def test_the_memory_declared_is_what_is_held():
    x, weight = torch.randn(4, 1024), torch.randn(10240, 1024)
    cache = Prepacked()
    with torch.no_grad(), cache:
        ops.linear(x, torch.randn(512, 1024))
        small, before = cache.bytes, resident()
        ops.linear(x, weight)
        assert cache.bytes - small == weight.nbytes
        assert abs(resident() - before - weight.nbytes) <= 0.1 * weight.nbytes
        cache.clear()
        assert abs(resident() - before) <= 0.1 * weight.nbytes and cache.bytes == 0


def test_switched_off_nothing_is_held(model, packings, monkeypatch):
    cache = Prepacked(enabled=False)
    generate(model, cache)
    monkeypatch.setenv("BERTGEN_PREPACK", "0")
    generate(model)
    generate(model, Prepacked())
    assert not packings and cache.bytes == 0 and not cache._entries
    assert "BERTGEN_PREPACK=0" in prepacked.explained()
    monkeypatch.delenv("BERTGEN_PREPACK")
    assert f"{PACKED_ROWS[0]} to {PACKED_ROWS[-1]} rows" in prepacked.explained()


def test_info_says_what_is_in_force():
    for value, words in (("0", "not prepacked: BERTGEN_PREPACK=0"), ("1", "prepacked while decoding")):
        done = subprocess.run(
            [sys.executable, "-c", "from bertgen import ops; print(dict(ops.explain())['linear'])"],
            env={**os.environ, "BERTGEN_PREPACK": value}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert words in done.stdout


def test_it_is_consulted_only_where_a_packing_fits(monkeypatch):
    x, weight = torch.randn(4, 512), torch.randn(512, 512)
    with Prepacked() as cache:
        assert ops.linear(x, weight.requires_grad_()).requires_grad
        weight = weight.detach()
        with torch.no_grad():
            ops.linear(x.bfloat16(), weight.bfloat16())
            ops.linear(x[:, :8].contiguous(), weight[:, :8].contiguous())
            ops.linear(x[:1], weight)
            ops.linear(torch.randn(PACKED_ROWS[-1] + 1, 512), weight)
            torch.compile(ops.linear, backend="eager", fullgraph=True)(x, weight)
            ops.set_backend("reference")
            try:
                ops.linear(x, weight)
            finally:
                ops.set_backend("auto")
            assert not cache._entries
            ops.linear(x, weight)
            assert cache.bytes == weight.nbytes


def test_a_weight_that_cannot_be_packed_is_taken_as_it_lies(monkeypatch):
    asked = []
    monkeypatch.setattr(prepacked, "pack_weight", asked.append)  # returns None
    x, weight = torch.randn(4, 512), torch.randn(512, 512)
    with torch.no_grad(), Prepacked() as cache:
        for _ in range(3):
            assert distance(ops.linear(x, weight), x @ weight.T) <= 1e-3
        assert len(asked) == 1 and cache.bytes == 0


def test_operators_that_are_missing_or_refuse(monkeypatch):
    from bertgen.kernels import linear

    weight = torch.randn(512, 512)

    class Refusing:
        _linear_pointwise = _nbytes = None

        @staticmethod
        def _reorder_linear_weight(weight, rows):
            raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(linear.torch.ops, "mkldnn", Refusing)
    assert can_pack() and pack_weight(weight) is None
    monkeypatch.delattr(Refusing, "_nbytes")
    assert pack_weight(weight) is None and not Prepacked(enabled=True).enabled
    assert "lacks the operators" in prepacked.explained()


def test_caches_nest_and_a_copy_begins_with_nothing():
    x, weight = torch.randn(4, 512), torch.randn(512, 512)
    outer, inner = Prepacked(), Prepacked()
    with torch.no_grad(), outer:
        with Prepacked(enabled=False):
            ops.linear(x, weight)
        with inner, inner:
            ops.linear(x, weight)
        assert inner.bytes == weight.nbytes and outer.bytes == 0
        with pytest.raises(ZeroDivisionError), inner:
            raise ZeroDivisionError
        ops.linear(x, weight)
    assert outer.bytes == weight.nbytes and not prepacked._active.stack
    again = copy.deepcopy(outer), pickle.loads(pickle.dumps(outer))
    assert [cache.bytes for cache in again] == [0, 0] and outer.bytes == weight.nbytes


def test_each_thread_has_its_own_cache(model, monkeypatch):
    expected = generate(model, Prepacked(enabled=False))
    users: dict[int, set[int]] = {}  # of each cache, its threads
    caches, original = [], Prepacked.packing

    def packing(self, weight):
        caches.append(self)
        users.setdefault(id(self), set()).add(threading.get_ident())
        return original(self, weight)

    monkeypatch.setattr(Prepacked, "packing", packing)
    scores, barrier = [], threading.Barrier(2)

    def run():
        barrier.wait()
        scores.append(generate(model))

    threads = [threading.Thread(target=run) for _ in range(2)]
    with Prepacked() as mine:  # of this thread, so of no other
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(users) == 2 and all(len(threads) == 1 for threads in users.values()) and mine.bytes == 0
    assert [distance(found, expected) <= 1e-4 for found in scores] == [True, True]
