"""`pipeline`: calls and results of transformers 4."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch

from bertgen import BackendError, CheckpointError, ConfigError, InputError, UnsupportedError, pipeline
from bertgen.engine import Engine


@pytest.fixture
def batches(generator, monkeypatch):
    """How many texts the engine is given at a time."""
    seen, submit = [], Engine.submit

    def watched(self, requests, on_done):
        seen.append(len(requests))
        return submit(self, requests, on_done)

    monkeypatch.setattr(Engine, "submit", watched)
    return seen


def test_pipeline_gives_results_as_transformers_4_did(tiny_checkpoint):
    pipe = pipeline("text2text-generation", model=tiny_checkpoint)
    assert pipe("one two") == [{"generated_text": "eins zwei"}]
    assert pipe(["one two"]) == [{"generated_text": "eins zwei"}]
    assert pipe(["one", "", "two"], batch_size=2) == [{"generated_text": text} for text in ("eins", "", "zwei")]
    two = pipe("white", num_beams=4, num_return_sequences=2)
    assert two == [{"generated_text": "weiß"}, {"generated_text": "hell"}]
    assert pipe(["white", "one"], num_beams=4, num_return_sequences=2)[0] == two
    assert pipe([]) == []


def test_pipeline_options_of_construction_and_call(generator, batches):
    pipe = pipeline(model=generator.model, tokenizer=generator.tokenizer, num_beams=4, batch_size=2)
    assert len(pipe("white", num_return_sequences=2)) == 2 and len(batches) == 1
    pipe(["one"] * 5)
    assert batches[1:] == [2, 2, 1]
    with pytest.raises(ConfigError, match="greedy"):
        pipe("white", num_beams=1, num_return_sequences=2)
    with pytest.raises(ConfigError, match="device_map"):
        pipeline(model=generator.model, tokenizer=generator.tokenizer, device_map="auto")
    with pytest.raises(ConfigError, match="needs a model"):
        pipeline("text2text-generation")


def test_ids_in_place_of_texts(generator):
    pipe = pipeline("translation", model=generator.model, tokenizer=generator.tokenizer)
    model, tokenizer = generator.model, generator.tokenizer
    expected = model.generate(tokenizer("one two", return_tensors="pt").input_ids, num_beams=2, num_return_sequences=2)
    for options in (dict(return_tensors=True), dict(return_type=0), dict(return_text=False)):
        results = pipe("one two", num_beams=2, num_return_sequences=2, **options)
        assert [list(one) for one in results] == [["translation_token_ids"]] * 2
        for one, row in zip(results, expected, strict=True):
            ids = one["translation_token_ids"]
            assert (
                ids.dtype == torch.int64
                and torch.equal(ids, row[: len(ids)])
                and set(row[len(ids) :].tolist()) <= {0, 1}
            )
    for options in (dict(return_tensors=False), dict(return_type=1), dict(return_text=True), {}):
        assert pipe("one two", **options) == [{"translation_text": "eins zwei"}]
    with pytest.raises(ConfigError, match="return_type must be 0"):
        pipe("one", return_type=2)
    assert pipeline(model=model, tokenizer=tokenizer, return_tensors=True)("one")[0].keys() == {"generated_token_ids"}


def test_a_stop_sequence_ends_outputs_with_its_first_token(generator):
    pipe, tokenizer = pipeline(model=generator.model, tokenizer=generator.tokenizer), generator.tokenizer
    text = pipe("one two three")[0]["generated_text"]
    first = tokenizer.convert_ids_to_tokens(tokenizer.encode(text)[1])
    ids = tokenizer.encode(first.replace("\u2581", " "), add_special_tokens=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = pipe("one two three", stop_sequence=first.replace("\u2581", " "), return_tensors=True)
    assert results[0]["generated_token_ids"][-1] == ids[0] and text.startswith(
        tokenizer.decode(results[0]["generated_token_ids"]).removeprefix("<s>").strip()
    )
    assert bool(caught) == (len(ids) > 1)
    with pytest.warns(UserWarning, match="the first one ends outputs, as in transformers"):
        pipe("one", stop_sequence="eins zwei drei")
    with pytest.raises(ConfigError, match="stop_sequence='' has no tokens"):
        pipe("one", stop_sequence="")


def test_arguments_of_loading_and_what_changes_nothing(tiny_checkpoint):
    options = dict(
        use_fast=True, framework="pt", trust_remote_code=True, num_workers=2, model_kwargs={"use_safetensors": True}
    )
    pipe = pipeline("summarization", tiny_checkpoint, **options)
    assert pipe("one", num_workers=1) == [{"summary_text": "eins"}] and pipe.task == "summarization"
    assert pipe.device == torch.device("cpu")
    with pytest.raises(UnsupportedError, match="framework='tf'"):
        pipeline(model=tiny_checkpoint, framework="tf")


def test_pipeline_truncation(generator):
    pipe = pipeline(model=generator.model, tokenizer=generator.tokenizer)
    with pytest.raises(InputError, match="the limit is 48"):
        pipe("one " * 60)
    assert pipe("one " * 60, truncation=True)[0]["generated_text"].startswith("eins")


def test_pipeline_of_another_task(tiny_checkpoint):
    with pytest.raises(UnsupportedError, match="'fill-mask' is not one of text2text-generation, summ"):
        pipeline("fill-mask", model=tiny_checkpoint)


def test_pipeline_dtype_and_device(tiny_checkpoint):
    assert pipeline(model=tiny_checkpoint, torch_dtype=torch.float16).model.dtype == torch.float16
    assert pipeline(model=tiny_checkpoint, dtype="bfloat16", device=-1).model.dtype == torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match=r"'cuda:0' does not exist: this machine has 0 CUDA devices"):
            pipeline(task="text2text-generation", model=str(tiny_checkpoint), dtype=torch.float16, device=0)


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("summarization", "summary_text"),
        ("translation", "translation_text"),
        ("translation_en_to_de", "translation_text"),
    ],
)
def test_other_tasks_name_their_results(generator, task, key):
    pipe = pipeline(task, model=generator.model, tokenizer=generator.tokenizer)
    assert pipe("one two") == [{key: "eins zwei"}]
    assert pipe(["one", "two"]) == [{key: "eins"}, {key: "zwei"}]
    with pytest.raises(InputError, match="texts must be a list of texts, .* got b'one'"):
        pipe(b"one")


def test_options_of_a_task_in_the_configuration(tiny_checkpoint, tmp_path):
    """config.json of a model may have options, and a prefix of the texts, for each task."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    tasks = {"translation_en_to_de": {"num_beams": 4, "num_return_sequences": 2, "prefix": "one "}}
    (folder / "config.json").write_text(json.dumps(config | {"task_specific_params": tasks}))
    pipe = pipeline("translation_en_to_de", model=folder)
    assert pipe("white") == [{"translation_text": "eins weiß"}, {"translation_text": "eins hell"}]
    assert pipe("white", num_return_sequences=1, prefix="") == [{"translation_text": "weiß"}]
    assert pipeline("translation", model=folder)("white") == [{"translation_text": "weiß"}]


@pytest.mark.parametrize("value", [5, [1], {"summarization": 5}])
def test_invalid_options_of_a_task(tiny_checkpoint, tmp_path, value):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "task_specific_params": value}))
    with pytest.raises(CheckpointError, match="task_specific_params must be a dict of the options of each task"):
        pipeline("summarization", tmp_path / "model")
