"""`generate` as on a CUDA device: kept decoders give the tokens of the decode loop, are bounded, and are given back."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch

from bertgen import EncoderDecoderModel
from bertgen.model import encoder_decoder, kept_decoders
from bertgen.model.kept_decoders import _KEPT, LIMIT, Shape
from tests.support.fake_cuda_device import generation_graphs_on_a_cpu
from tests.support.static_runs import make_groups, make_model
from tests.support.static_workloads import layers_one_by_one

OPTIONS = dict(max_length=14, eos_token_id=1)


@pytest.fixture(autouse=True)
def layers():
    with layers_one_by_one():
        yield


def batch(model, seed, count=3, length=6):
    r = random.Random(seed)
    lengths = [r.randint(1, length) for _ in range(count)]
    width, vocabulary = max(lengths), model.config.encoder.vocab_size
    ids = torch.tensor([[r.randrange(3, vocabulary) for _ in range(n)] + [0] * (width - n) for n in lengths])
    return dict(input_ids=ids, attention_mask=(torch.arange(width) < torch.tensor(lengths)[:, None]).long())


def plain(model, monkeypatch, **call):
    with monkeypatch.context() as patch:
        patch.setattr(encoder_decoder, "static_sequences", lambda *_: None)
        return model.generate(**call)


def captures(devices):
    return sum(device.told.count("capture") for device in devices)


@pytest.fixture
def model():
    return make_model(random.Random(5))


@pytest.mark.parametrize("seed", range(12))
def test_equal_tokens_in_every_call(seed, monkeypatch):
    r = random.Random(seed)
    model = make_model(r)
    sets = [options for options, _, _ in make_groups(r, model, 2, 24)]
    sets = [{**options, "do_sample": False} for options in sets if not options.get("do_sample")] or [OPTIONS]
    with generation_graphs_on_a_cpu() as devices:
        for number in range(8):
            call = batch(model, number, r.randint(1, 5)) | r.choice(sets)
            assert torch.equal(model.generate(**call), plain(model, monkeypatch, **call)), call
    assert 1 <= captures(devices) <= 8 and "replay" in devices[0].told


def test_the_second_call_of_a_shape_captures_and_later_ones_replay(model):
    with generation_graphs_on_a_cpu() as devices:
        model.generate(**batch(model, 0), **OPTIONS)
        assert captures(devices) == 0 and len(_KEPT[model.decoder]) == 0
        for seed in range(1, 5):
            model.generate(**batch(model, seed), **OPTIONS)
            assert captures(devices) == 1 and len(_KEPT[model.decoder]) == 1
        model.generate(**batch(model, 5, 4), **OPTIONS, max_new_tokens=None)
        assert captures(devices) == 1, "4 sources are of the shape of 3"
        for other in (dict(max_length=13), dict(max_length=3)):
            model.generate(**batch(model, 6), **(OPTIONS | other))
            assert captures(devices) == 1, "the length is no part of the shape"
        for other in (dict(num_beams=2), dict(eos_token_id=2), dict(repetition_penalty=1.5)):
            for _ in range(2):
                model.generate(**batch(model, 6), **(OPTIONS | other))
        assert captures(devices) == 4 and len(devices) == 1


def test_shapes():
    of = lambda *sources, length=20: Shape.of(sources, 2, length, 100)  # noqa: E731
    assert of(5, 6, 7) == Shape(4, 2, 64, 64)
    assert of(65) == Shape(1, 2, 64, 128)
    assert of(5, length=65) == Shape(1, 2, 100, 64) and of(5, length=101).positions == 101


def test_the_number_of_decoders_is_bounded(model, monkeypatch):
    monkeypatch.setattr(kept_decoders, "LIMIT", 2)
    with generation_graphs_on_a_cpu() as devices:
        for end in (1, 2, 3):
            for _ in range(2):
                model.generate(**batch(model, 0), max_length=9, eos_token_id=end)
            assert len(_KEPT[model.decoder]) == min(end, 2)
        assert len(_KEPT[model.decoder]._graphs._held) == 2 and captures(devices) == 3
        for end, made in ((3, 3), (2, 3), (1, 4), (2, 4)):  # the first was dropped, then 3
            model.generate(**batch(model, 0), max_length=9, eos_token_id=end)
            assert captures(devices) == made, end
    assert LIMIT == 8


def test_the_memory_of_decoders_is_bounded(model, monkeypatch):
    size = Shape(4, 1, 41, 64).bytes(model.decoder)
    with generation_graphs_on_a_cpu(free=25 * size) as devices:
        for end in (1, 2, 3):
            for _ in range(2):
                model.generate(**batch(model, 0), max_length=9, eos_token_id=end)
            devices[0].free = 25 * size - len(_KEPT[model.decoder]) * size
        assert len(_KEPT[model.decoder]) == 2
        real = sum(one.cache.bytes for one, _ in _KEPT[model.decoder]._kept.values())
        assert size <= real <= 3 * size
        devices[0].free = 0
        call = batch(model, 0, 5) | dict(max_length=9, eos_token_id=3)
        for _ in range(3):
            assert torch.equal(model.generate(**call), plain(model, monkeypatch, **call))
        assert captures(devices) == 3 and len(_KEPT[model.decoder]) == 2, "too large: asked once"


def test_a_capture_that_fails_is_the_last(model, monkeypatch):
    with generation_graphs_on_a_cpu(fails=1) as devices:
        for seed in range(4):
            call = batch(model, seed) | OPTIONS
            assert torch.equal(model.generate(**call), plain(model, monkeypatch, **call))
        assert captures(devices) == 1 and len(_KEPT[model.decoder]) == 0


CHANGES = {
    "data": lambda m: setattr(next(m.decoder.parameters()), "data", next(m.decoder.parameters()).clone()),
    "a parameter": lambda m: setattr(
        m.decoder.body.encoder.layer[0].output.LayerNorm, "bias", torch.nn.Parameter(torch.ones(64))
    ),
    "eps": lambda m: setattr(m.decoder.body.encoder.layer[0].output.LayerNorm, "eps", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_model_that_changes_is_captured_again(change, model, monkeypatch):
    with generation_graphs_on_a_cpu() as devices:
        for seed in range(3):
            model.generate(**batch(model, seed), **OPTIONS)
        former = weakref.ref(_KEPT[model.decoder])
        CHANGES[change](model)
        for seed in range(3):
            call = batch(model, seed) | OPTIONS
            assert torch.equal(model.generate(**call), plain(model, monkeypatch, **call))
        gc.collect()
        assert former() is None and captures(devices) == 2 and len(devices) == 2


@torch.no_grad()
def test_contents_that_change_are_read_by_the_replay(model, monkeypatch):
    with generation_graphs_on_a_cpu() as devices:
        for _ in range(3):
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            call = batch(model, 0) | OPTIONS
            assert torch.equal(model.generate(**call), plain(model, monkeypatch, **call))
        assert captures(devices) == 1


def test_hooks_and_training_take_the_decode_loop(model, monkeypatch):
    seen = []
    layer = model.decoder.body.encoder.layer[0]
    with generation_graphs_on_a_cpu() as devices:
        for _ in range(3):
            model.generate(**batch(model, 0), **OPTIONS)
        replays = devices[0].told.count("replay")
        with layer.register_forward_hook(lambda *_: seen.append(1)):
            model.generate(**batch(model, 0), **OPTIONS)
        assert len(seen) > 1
        model.train()
        model.generate(**batch(model, 0), **OPTIONS)
        assert devices[0].told.count("replay") == replays
        model.eval()
        model.generate(**batch(model, 0), **OPTIONS)
        assert devices[0].told.count("replay") > replays and captures(devices) == 1


def test_memory_goes_with_the_model():
    model = make_model(random.Random(5))
    with generation_graphs_on_a_cpu() as devices:
        for _ in range(2):
            model.generate(**batch(model, 0), **OPTIONS)
        parts = [weakref.ref(model.decoder), weakref.ref(_KEPT[model.decoder])]
        parts += [weakref.ref(one.cache) for one, _ in _KEPT[model.decoder]._kept.values()]
        assert len(parts) == 3
        count = len(_KEPT)
        del model
        devices.clear()
        gc.collect()
        assert [part() for part in parts] == [None] * 3 and len(_KEPT) < count


def test_a_call_without_graphs_gives_memory_back(model, monkeypatch):
    with generation_graphs_on_a_cpu():
        for _ in range(2):
            model.generate(**batch(model, 0), **OPTIONS)
        cache = weakref.ref(next(iter(_KEPT[model.decoder]._kept.values()))[0].cache)
        monkeypatch.setenv("BERTGEN_GRAPHS", "0")
        model.generate(**batch(model, 0), **OPTIONS)
        gc.collect()
        assert cache() is None and model.decoder not in _KEPT


def test_nothing_is_copied_or_saved_with_the_model(model):
    with generation_graphs_on_a_cpu():
        before = pickle.dumps(model.state_dict()), set(vars(model)), set(vars(model.decoder))
        for _ in range(2):
            model.generate(**batch(model, 0), **OPTIONS)
        assert (pickle.dumps(model.state_dict()), set(vars(model)), set(vars(model.decoder))) == before
        other = copy.deepcopy(model)
        assert other.decoder not in _KEPT and isinstance(other, EncoderDecoderModel)


def test_one_thread_at_a_time_uses_what_is_kept(model, monkeypatch):
    """Another one takes the decode loop, and waits for nothing."""
    call, taken = batch(model, 0) | OPTIONS, threading.Event()
    expected = plain(model, monkeypatch, **call)
    with generation_graphs_on_a_cpu() as devices:
        for _ in range(2):
            model.generate(**call)
        state = SimpleNamespace(inside=threading.Event(), results=[])
        run = kept_decoders.KeptDecoder.results

        def slow(*arguments):
            state.inside.set()
            assert taken.wait(60)
            return run(*arguments)

        monkeypatch.setattr(kept_decoders.KeptDecoder, "results", slow)
        thread = threading.Thread(target=lambda: state.results.append(model.generate(**call)))
        thread.start()
        assert state.inside.wait(60)
        replays = devices[0].told.count("replay")
        state.results.append(model.generate(**call))
        assert devices[0].told.count("replay") == replays
        taken.set()
        thread.join()
        assert all(torch.equal(one, expected) for one in state.results) and len(state.results) == 2
        assert devices[0].told.count("replay") > replays


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("wrong"), torch.OutOfMemoryError("no memory")])
def test_a_call_that_fails_drops_all(model, monkeypatch, error):
    call = batch(model, 0) | OPTIONS
    expected = plain(model, monkeypatch, **call)
    with generation_graphs_on_a_cpu() as devices:
        for _ in range(2):
            model.generate(**call)
        kept = _KEPT[model.decoder]
        steps = next(iter(kept._kept.values()))[0].steps
        monkeypatch.setattr(type(steps), "flags", lambda self: (_ for _ in ()).throw(error))
        if isinstance(error, torch.OutOfMemoryError):
            assert torch.equal(model.generate(**call), expected)
        else:
            with pytest.raises(type(error)):
                model.generate(**call)
        assert len(kept) == 0 and devices[0].told[-1] == "synchronize"
        monkeypatch.undo()
        for _ in range(2):
            assert torch.equal(model.generate(**call), expected)


def test_a_late_flag_of_an_earlier_call_ends_no_call(model, monkeypatch):
    """Between two calls all units are over, which the first flags of the second call tell."""
    long = batch(model, 1) | dict(eos_token_id=None)
    with generation_graphs_on_a_cpu():
        for length in (30, 30, 30, 22, 30):
            call = long | dict(max_length=length)
            assert torch.equal(model.generate(**call), plain(model, monkeypatch, **call))
