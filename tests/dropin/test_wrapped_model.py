"""The wrapped model: the same parameters, in step with the original."""

from __future__ import annotations

import pytest
import torch
from transformers import EncoderDecoderModel

import bertgen
from bertgen.dropin.wrapped_model import AlteredError, WrappedModel
from tests.support.dropin_models import batch, distance, make_both, make_model


def test_an_accelerated_model_has_the_same_modules_and_parameters():
    model = make_model()
    before = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    keys, modules = list(model.state_dict()), [id(m) for m in model.modules()]
    assert bertgen.accelerate(model) is model and bertgen.accelerate(model) is model  # once more changes nothing
    assert isinstance(model, EncoderDecoderModel) and type(model).__name__ == "EncoderDecoderModel"
    assert list(model.state_dict()) == keys and [id(m) for m in model.modules()] == modules
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == before
    inputs, labels = batch()
    bytes_before = sum(t.untyped_storage().nbytes() for t in _storages(model))
    with torch.no_grad():
        model(**inputs, decoder_input_ids=labels.clamp(min=0))
        model.generate(**inputs, max_new_tokens=4)
    assert {name: id(p) for name, p in model.named_parameters()} == {name: i for name, (i, _) in before.items()}
    assert sum(t.untyped_storage().nbytes() for t in _storages(model)) == bytes_before  # no second copy
    wrapped = model._bertgen.wrapped_model.model
    assert {id(p) for p in wrapped.parameters()} <= {id(p) for p in model.parameters()}


def _storages(model):
    return {p.untyped_storage().data_ptr(): p for p in model.parameters()}.values()


def test_later_changes_act(calls):
    """Dtype, weights, vocabulary, dropout and special ids of a model that is already accelerated."""
    theirs, ours = make_both()
    inputs, labels = batch()
    ours(**inputs, labels=labels)
    for model in (theirs, ours):
        model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items()}, assign=True)
        model.tie_weights()
        model.decoder.resize_token_embeddings(120, mean_resizing=False)
        with torch.no_grad():
            model.decoder.bert.embeddings.word_embeddings.weight[99:] = 0.1
        model.config.decoder_start_token_id = 110
        model.double()
    expected, got = (model(**inputs, labels=labels) for model in (theirs, ours))
    assert got.logits.shape[-1] == 120 and got.logits.dtype == torch.float64
    assert distance(got.loss, expected.loss) <= 1e-8 and calls == ["forward"] * 2
    ours.train()
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    assert distance(ours(**inputs, labels=labels).loss, expected.loss) > 1e-3
    ours.eval()
    assert distance(ours(**inputs, labels=labels).loss, expected.loss) <= 1e-8


def test_modes_dropout_and_special_ids_are_synchronized():
    model = make_model()
    wrapped = WrappedModel(model)
    assert not wrapped.has_active_dropout
    model.train()
    model.decoder.bert.encoder.layer[0].output.dropout.p = 0.25
    model.config.decoder_start_token_id = 7
    wrapped.sync()
    assert wrapped.model.training and wrapped.has_active_dropout and wrapped.model.config.decoder_start_token_id == 7
    model.eval()
    wrapped.sync()
    assert not wrapped.model.training and not wrapped.has_active_dropout


@pytest.mark.parametrize("name", ["module", "configuration"])
def test_a_replaced_module_or_option_makes_it_out_of_date(name):
    model = make_model()
    wrapped = WrappedModel(model)
    assert wrapped.is_current
    if name == "module":
        model.encoder.encoder.layer[0].output.dense = torch.nn.Linear(48, 32)
    else:
        model.decoder.config.layer_norm_eps = 0.5
    assert not wrapped.is_current


def test_original_modules_are_those_of_the_model_by_path():
    model = make_model("bert", decoder_kind="roberta")
    wrapped = WrappedModel(model)
    paths = dict(wrapped.original_modules)
    assert {id(module) for module in paths.values()} <= {id(module) for module in model.modules()}
    assert all(model.get_submodule(path) is module for path, module in paths.items())
    assert wrapped.half("encoder.encoder.layer.0")[0] is model.encoder
    assert wrapped.half("decoder.cls")[0] is model.decoder


def test_altered_and_unsupported_models_are_distinguished():
    model = make_model()
    del model.encoder.encoder.layer[1]
    with pytest.raises(AlteredError, match="encoder.encoder.layer has 1 layers, its configuration 2"):
        WrappedModel(model)
    with pytest.raises(bertgen.UnsupportedError, match="a Linear cannot be accelerated") as error:
        linear = torch.nn.Linear(2, 2)
        linear.config = None
        WrappedModel(linear)
    assert not isinstance(error.value, AlteredError)
