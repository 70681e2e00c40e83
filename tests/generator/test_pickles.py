"""A Generator as bytes: pickled, copied, in another process, with the same bytes in every run."""

import copy
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import threading

import pytest
import torch

from bertgen import CheckpointError, EncoderDecoderModel, GenerationConfig, Generator, pipeline
from bertgen.config import EngineConfig

TEXTS = ["one two three", "red dog", ""]


@pytest.fixture
def generator(tiny_checkpoint):
    return Generator(tiny_checkpoint, max_input_length=20, truncation=True, max_rows=8)


@pytest.fixture
def given(tiny_checkpoint, generator):
    """A Generator of a model object."""
    return Generator(EncoderDecoderModel.from_pretrained(tiny_checkpoint), generator.tokenizer)


def outputs(generator, texts=TEXTS, **options):
    return generator.generate(texts, num_beams=2, **options)


def test_one_that_was_loaded_is_loaded_again(generator):
    data = pickle.dumps(generator)
    assert generator.model.encoder.embeddings.word_embeddings.weight.detach().numpy().tobytes() not in data
    other = pickle.loads(data)
    assert outputs(other) == outputs(generator)
    assert other.model is not generator.model and other.tokenizer is not generator.tokenizer
    assert (other.max_input_length, other.truncation, other.engine.config) == (20, True, generator.engine.config)
    assert pickle.dumps(other) == data, "as deep as one likes"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(generator, protocol):
    assert outputs(pickle.loads(pickle.dumps(generator, protocol))) == outputs(generator)


def test_one_of_a_model_carries_the_model(given):
    other = pickle.loads(pickle.dumps(given))
    assert outputs(other) == outputs(given) and other.model is not given.model


def updated(model):
    with torch.no_grad():
        model.decoder.head.bias.add_(1.0)


def configured(model):
    model.config.decoder.layer_norm_eps = 1e-3


def halted(model):
    model.decoder.head.register_forward_hook(nothing)


def nothing(*args):
    pass


@pytest.mark.parametrize("change", [updated, configured, halted, torch.nn.Module.double])
def test_a_model_that_was_changed_is_carried(generator, change):
    before = pickle.dumps(generator)
    change(generator.model)
    other = pickle.loads(pickle.dumps(generator))
    assert len(pickle.dumps(generator)) > len(before)
    assert outputs(other, scores=True) == outputs(generator, scores=True)
    assert other.model.dtype == generator.model.dtype


def test_a_change_that_leaves_no_trace_is_found_when_it_is_loaded(generator):
    """`.data` does not change the version counters."""
    generator.model.decoder.head.bias.data.add_(1.0)
    with pytest.raises(CheckpointError, match="holds other weights than those of the Generator that was pickled"):
        pickle.loads(pickle.dumps(generator))


def test_the_models_own_options_come_along(generator):
    generator.model.generation_config = GenerationConfig(max_length=4, num_beams=3, eos_token_id=1, bos_token_id=2)
    assert pickle.loads(pickle.dumps(generator)).generate(TEXTS) == generator.generate(TEXTS)


def test_added_tokens_come_along(generator):
    generator.tokenizer.add_tokens(["<one>"])
    assert "<one>" in pickle.loads(pickle.dumps(generator)).tokenizer.get_vocab()


def test_a_place_with_other_weights_is_refused(generator, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    moved = Generator(tmp_path / "model")
    data = pickle.dumps(moved)
    with torch.no_grad():
        moved.model.decoder.head.bias.add_(1.0)
    moved.model.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="other weights"):
        pickle.loads(data)


def test_the_bytes_are_those_of_every_run(tiny_checkpoint, generator):
    """A cache that hashes them finds its entries again."""
    program = (
        "import hashlib, pickle, sys\nfrom bertgen import Generator\n"
        f"generator = Generator({str(tiny_checkpoint)!r}, max_input_length=20, truncation=True, max_rows=8)\n"
        "generator.generate(['one'])\n"
        "print(hashlib.sha256(pickle.dumps(generator)).hexdigest())\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    before = pickle.dumps(generator)
    outputs(generator)
    assert pickle.dumps(generator) == before, "having run changes nothing"


def test_a_relative_path_is_found_from_everywhere(tiny_checkpoint, monkeypatch, tmp_path):
    monkeypatch.chdir(tiny_checkpoint.parent)
    data = pickle.dumps(Generator(tiny_checkpoint.name))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(data).generate(["one"])


def test_copies_share_nothing_in_flight(generator):
    shallow, deep = copy.copy(generator), copy.deepcopy(generator)
    assert shallow.model is generator.model and deep.model is not generator.model
    assert shallow.engine is not generator.engine and deep.engine is not generator.engine
    assert outputs(shallow) == outputs(deep) == outputs(generator)
    with torch.no_grad():
        generator.model.decoder.head.bias[5] += 100.0
    assert outputs(shallow) == outputs(generator) != outputs(deep)
    assert pickle.loads(pickle.dumps(shallow)).generate(["one"]) == generator.generate(["one"])


def test_what_is_in_flight_stays_where_it_is(generator):
    ready, go = threading.Event(), threading.Event()

    def wait(tokens):
        ready.set()
        go.wait(60)

    future = generator.submit("one two three", on_tokens=wait)
    assert ready.wait(60)
    data = pickle.dumps(generator)
    go.set()
    assert not pickle.loads(data).engine.busy
    assert future.result(60).text == generator.generate(["one two three"])[0].text


def in_another_process(generator):
    return [output.text for output in generator.generate(TEXTS)]


@pytest.mark.parametrize("kind", ["generator", "given"])
def test_a_process_of_its_own(request, kind):
    generator = request.getfixturevalue(kind)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(in_another_process, (generator,)).get(300)
    assert found == in_another_process(generator)


def test_a_pipeline_too(tiny_checkpoint):
    ours = pipeline("translation", tiny_checkpoint, max_new_tokens=5)
    assert pickle.loads(pickle.dumps(ours))(TEXTS[:2]) == ours(TEXTS[:2])


def test_limits_come_along_as_they_were_given(tiny_checkpoint):
    generator = Generator(tiny_checkpoint, engine=EngineConfig(max_rows=3, refill=0.5), add_special_tokens=False)
    other = pickle.loads(pickle.dumps(generator))
    assert other.engine.config == generator.engine.config and other.special_tokens == generator.special_tokens
