"""Running a model leaves its parameters at their addresses: code that shares, views or saves their memory sees them."""

from __future__ import annotations

import copy
import pickle

import accelerate
import huggingface_hub
import pytest
import safetensors.torch
import torch
import torch.distributed.optim
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import bertgen
from bertgen import EncoderDecoderModel, Generator
from tests.support.small_pairs import IDS, MASK, own, own_in_4_bits, theirs, theirs_in_4_bits

MODELS = {
    "own": lambda folder: own(),
    "own, 4 bits": own_in_4_bits,
    "accelerated": lambda folder: bertgen.accelerate(theirs()),
    "accelerated bert": lambda folder: bertgen.accelerate(theirs("bert")),
    "accelerated into 4 bits": lambda folder: bertgen.accelerate(theirs(), quantization="int4"),
    "accelerated, loaded in 4 bits": theirs_in_4_bits,
}
FLOATS = ["own", "accelerated", "accelerated bert"]


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    return MODELS[request.param](tmp_path / "checkpoint")


def run(model):
    """Everything by which a model runs without gradients; many rows and few."""
    many = IDS.repeat(60, 1)
    with torch.no_grad():
        logits = model(IDS, attention_mask=MASK, decoder_input_ids=IDS).logits
        model(many, attention_mask=MASK.repeat(60, 1), labels=many)
    with torch.inference_mode():
        model(IDS, decoder_input_ids=IDS)
    for options in (dict(), dict(num_beams=3), dict(do_sample=True)):
        model.generate(IDS, attention_mask=MASK, max_new_tokens=4, **options)
    return logits


def places(model):
    """Where each tensor lies, in what it lies, and how often it was written."""
    return {
        name: (
            id(t), t.data_ptr(), t.untyped_storage().data_ptr(), t.untyped_storage().nbytes(), t.storage_offset(),
            t.shape, t.stride(), t.dtype, t.is_shared(), t._version,
        )
        for name, t in model.state_dict(keep_vars=True).items()
    }  # fmt: skip


def test_a_parameter_is_where_it_was(model):
    views = {name: p.data for name, p in model.named_parameters()}
    before, values = places(model), copy.deepcopy(model.state_dict())
    run(model)
    assert places(model) == before
    assert all(torch.equal(t, values[name]) for name, t in model.state_dict().items())
    for name, p in model.named_parameters():
        views[name].zero_()
        assert p.count_nonzero() == 0, name


def test_a_generator_leaves_them_too(tiny_checkpoint):
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    before = places(model)
    with Generator(model, tokenizer=bertgen.AutoTokenizer.from_pretrained(tiny_checkpoint)) as generator:
        list(generator.generate(["one two", "red dog"], num_beams=2))
        generator.submit("three").result()
    assert places(model) == before


def test_parameters_in_one_flat_buffer(model):
    """As optimizers keep them that update or send all at once."""
    parameters = [p for p in dict.fromkeys(model.parameters()) if p.is_floating_point()]
    flat = torch.cat([p.data.flatten() for p in parameters])
    for p, piece in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.data = piece.view(p.shape)
    expected = run(model)
    flat.mul_(1.5)
    changed = run(model)
    assert (changed - expected).abs().max() > 0.1
    flat.div_(1.5)
    assert (run(model) - expected).abs().max() < 1e-4
    base = flat.untyped_storage().data_ptr()
    assert all(p.untyped_storage().data_ptr() == base for p in parameters)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("share", ["copy", "pickle", "parametrize", "functional_call"])
def test_what_users_do_to_models_after_they_ran(name, share, tmp_path):
    model = MODELS[name](tmp_path)
    expected = run(model)
    if share == "copy":
        other = copy.deepcopy(model)
    elif share == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif share == "parametrize":

        class Twice(nn.Module):
            def forward(self, weight):
                return 2 * weight

        layer = model.get_submodule("decoder.bert.encoder.layer.0.attention.self").query
        with torch.no_grad():
            layer.weight.div_(2)
        nn.utils.parametrize.register_parametrization(layer, "weight", Twice())
        other = model
    else:
        given = (IDS,), dict(attention_mask=MASK, decoder_input_ids=IDS)
        weights = {key: t * 1.5 for key, t in model.state_dict().items()}
        with torch.no_grad():
            got = torch.func.functional_call(model, weights, *given, tie_weights=False).logits
        model.load_state_dict(weights)
        assert (run(model) - got).abs().max() < 1e-4 < (got - expected).abs().max()
        return
    assert (run(other) - expected).abs().max() < 1e-5


def in_hub_format(model, folder):
    huggingface_hub.save_torch_model(model, folder)
    return safetensors.torch.load_file(folder / "model.safetensors")


def state_in_hub_format(model, folder):
    huggingface_hub.save_torch_state_dict(model.state_dict(), folder, max_shard_size="100KB")
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= safetensors.torch.load_file(file)
    return found


def by_safetensors(model, folder):
    safetensors.torch.save_model(model, folder / "model.safetensors")
    return safetensors.torch.load_file(folder / "model.safetensors")


def by_accelerate(model, folder):
    accelerate.Accelerator(cpu=True).save_model(model, folder)
    return safetensors.torch.load_file(folder / "model.safetensors")


def as_a_state_of_accelerate(model, folder):
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.prepare(model)
    accelerator.save_state(folder)
    return safetensors.torch.load_file(folder / "model.safetensors")


def by_torch(model, folder):
    torch.save(model.state_dict(), folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=True)


def by_its_own_method(model, folder):
    model.save_pretrained(folder)
    return safetensors.torch.load_file(folder / "model.safetensors")


SAVERS = [
    by_torch, by_safetensors, in_hub_format, state_in_hub_format, by_accelerate, as_a_state_of_accelerate,
    by_its_own_method,
]  # fmt: skip


@pytest.mark.parametrize("save", SAVERS, ids=lambda save: save.__name__)
def test_a_file_saved_after_running_is_that_saved_before(model, save, tmp_path):
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    before = save(model, tmp_path / "before")
    run(model)
    after = save(model, tmp_path / "after")
    assert before.keys() == after.keys() and all(torch.equal(t, after[name]) for name, t in before.items())
    held = {t.data_ptr(): name for name, t in model.state_dict().items()}  # of tied weights one name is enough
    assert {t.data_ptr() for name, t in model.state_dict().items() if name in after} == held.keys()


def look(queue, answers, model):
    """What a process sees of a model that it was given, now and later."""
    weight = model.decoder.bert.encoder.layer[1].attention.self.value.weight
    answers.put(weight.sum().item())
    queue.get(timeout=60)
    answers.put(weight.sum().item())


@pytest.mark.parametrize("name", ["own", "accelerated"])
def test_a_process_sees_the_updates_of_parameters_in_shared_memory(name, tmp_path):
    model = MODELS[name](tmp_path).share_memory()
    context = torch.multiprocessing.get_context("fork")
    queue, answers = context.Queue(), context.Queue()
    run(model)
    child = context.Process(target=look, args=(queue, answers, model), daemon=True)
    child.start()
    weight = model.decoder.bert.encoder.layer[1].attention.self.value.weight
    assert answers.get(timeout=120) == pytest.approx(weight.sum().item(), abs=1e-4)
    run(model)
    with torch.no_grad():
        weight.fill_(2.0)
    run(model)
    queue.put("look again")
    assert answers.get(timeout=60) == 2.0 * weight.numel()
    child.join(60)
    assert all(p.is_shared() for p in model.parameters())


def train(rank, folder, evaluates):
    """Two updates by a sharded optimizer, whose views are those in which it sends parameters to the other rank."""
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous-{evaluates}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    for name in FLOATS[:2]:
        model = DistributedDataParallel(MODELS[name](None))
        optimizer = torch.distributed.optim.ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=torch.optim.SGD, lr=0.1, parameters_as_bucket_view=True
        )
        for step in range(2):
            if evaluates:
                run(model.module.eval())
            labels = (IDS + step + rank) % 60
            model(IDS, attention_mask=MASK, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.save(model.module.state_dict(), f"{folder}/{name}-{rank}-{evaluates}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_evaluating_between_updates_of_a_sharded_optimizer_changes_nothing(tmp_path):
    for evaluates in (True, False):
        torch.multiprocessing.start_processes(train, (str(tmp_path), evaluates), nprocs=2, start_method="fork")
    for name in FLOATS[:2]:
        first, *others = (
            torch.load(tmp_path / f"{name}-{rank}-{evaluates}.pt") for rank in (0, 1) for evaluates in (True, False)
        )
        assert not torch.equal(first["decoder.lm_head.bias"], torch.zeros(60))
        for other in others:
            assert all(torch.equal(t, other[key]) for key, t in first.items())
