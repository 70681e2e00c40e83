"""The accelerated classes: made by a constructor, loaded, saved, copied."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch
from transformers import EncoderDecoderModel

import bertgen
from tests.support.dropin_models import KINDS, batch, distance, make_model


def test_the_class_of_an_accelerated_model_constructs_and_loads_models(tmp_path, calls):
    model, (inputs, labels) = bertgen.accelerate(make_model()), batch()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(*(m.generate(**inputs, max_new_tokens=9) for m in (model, loaded)))
    assert bertgen.explain(loaded).models[""] == "EncoderDecoderModel"
    made = type(model)(model.config)
    assert made(**inputs, labels=labels).loss.isfinite() and calls == ["generation"] * 2 + ["forward"]
    assert type(bertgen.restore(type(model)(model.config))) is EncoderDecoderModel


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_by_plain_transformers(kind, tmp_path):
    model = bertgen.accelerate(make_model(kind))
    inputs, labels = batch(pad=model.config.pad_token_id)
    with torch.inference_mode():
        expected = model(**inputs, decoder_input_ids=labels.clamp(min=0)).logits
        tokens = model.generate(**inputs, max_new_tokens=9, num_beams=2)  # lets query, key and value share a storage
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["EncoderDecoderModel"]
    plain = EncoderDecoderModel.from_pretrained(tmp_path)
    assert type(plain) is EncoderDecoderModel
    assert distance(plain(**inputs, decoder_input_ids=labels.clamp(min=0)).logits.detach(), expected.clone()) <= 1e-4
    assert torch.equal(plain.generate(**inputs, max_new_tokens=9, num_beams=2), tokens)


@pytest.mark.parametrize("how", ["pickle", "torch.save", "deepcopy"])
def test_copies_are_accelerated(how, calls):
    model, (inputs, labels) = bertgen.accelerate(make_model(), generate=False), batch()
    expected = model(**inputs, labels=labels)
    if how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif how == "deepcopy":
        other = copy.deepcopy(model)
    else:
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert type(other) is type(model) and other._bertgen.generate is False
    del calls[:]
    assert torch.equal(other(**inputs, labels=labels).loss, expected.loss) and calls == ["forward"]
    with torch.no_grad():  # the copy has its own weights
        other.decoder.lm_head.bias.add_(torch.arange(99.0))
    assert torch.equal(model(**inputs, labels=labels).loss, expected.loss)
    assert not torch.equal(other(**inputs, labels=labels).loss, expected.loss)
