"""`accelerate`, `restore` and `explain`: the models they accept, and what they do not change."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import EncoderDecoderModel

import bertgen
import bertgen.modules
from bertgen.dropin.models import ACCELERATED
from tests.support.dropin_models import SIZES, START, batch, distance, make_both, make_model


def test_a_wrapped_constructor_does_not_cause_a_fallback(monkeypatch, calls):
    """No call runs a constructor. deepspeed's zero.Init wraps those of all modules."""
    for cls in (EncoderDecoderModel, transformers.BertGenerationEncoder, transformers.BertGenerationDecoder):
        make = cls.__init__
        monkeypatch.setattr(cls, "__init__", lambda self, *args, make=make, **options: make(self, *args, **options))
    model, (inputs, _) = bertgen.accelerate(make_model()), batch()
    model.generate(**inputs, max_new_tokens=3)
    assert calls == ["generation"] and not model._bertgen.fallbacks


def test_joined_halves_do_not_cause_a_fallback(calls):
    """They get a copy of their configuration, which is not the object that their layers have."""
    apart = make_model()
    model = EncoderDecoderModel(encoder=apart.encoder, decoder=apart.decoder).eval()
    model.config.decoder_start_token_id, model.config.pad_token_id = START, 0
    inputs, labels = batch()
    bertgen.accelerate(model)(**inputs, labels=labels)
    assert calls == ["forward"] and not model._bertgen.fallbacks


@pytest.mark.parametrize("name", ["BertGenerationEncoder", "BertGenerationDecoder"])
def test_halves_on_their_own(name, calls):
    def build():
        torch.manual_seed(0)
        config = transformers.BertGenerationConfig(**SIZES, is_decoder=name.endswith("Decoder"))
        return getattr(transformers, name)(config).eval()

    theirs, ours = build(), bertgen.accelerate(build())
    inputs, _ = batch()
    left = {key: t.flip(1) for key, t in inputs.items()}
    for part in (inputs, left):
        a, b = (model(**part)[0][part["attention_mask"].bool()] for model in (theirs, ours))
        assert distance(a, b) <= 1e-5
    if name.endswith("Decoder"):
        assert torch.equal(*(model.generate(**left, max_new_tokens=9, num_beams=2) for model in (theirs, ours)))
        assert distance(*(model(**inputs, logits_to_keep=2).logits for model in (theirs, ours))) <= 1e-5
        assert distance(*(model(**inputs, labels=inputs["input_ids"]).loss for model in (theirs, ours))) <= 1e-5
        assert "generation" in calls
    assert not ours._bertgen.fallbacks and "forward" in calls


def test_nothing_of_transformers_is_changed():
    before = {cls: (cls.forward, cls.generate if hasattr(cls, "generate") else None) for cls in ACCELERATED}
    other = make_model()
    ours = bertgen.accelerate(make_model())
    inputs, labels = batch()
    ours(**inputs, labels=labels)
    assert all(cls.forward is f and getattr(cls, "generate", None) is g for cls, (f, g) in before.items())
    assert type(other) is EncoderDecoderModel and type(other.encoder) is transformers.BertGenerationEncoder


def test_restore():
    model, (inputs, labels) = make_model(), batch()
    expected = model(**inputs, labels=labels).logits
    bertgen.restore(bertgen.accelerate(model))
    assert type(model) is EncoderDecoderModel and type(model.decoder.bert) is transformers.BertGenerationEncoder
    assert not hasattr(model, "_bertgen")
    assert torch.equal(model(**inputs, labels=labels).logits, expected)
    assert bertgen.restore(model) is model


def test_a_parametrized_layer():
    theirs, ours = make_both()
    for model in (theirs, ours):
        torch.nn.utils.parametrizations.weight_norm(model.encoder.encoder.layer[0].output.dense)
    inputs, labels = batch()
    expected, got = (model(**inputs, labels=labels).loss for model in (theirs, ours))
    assert distance(got, expected) <= 1e-4 and not ours._bertgen.fallbacks


@pytest.mark.parametrize("format", ["int4", "nf4"])
def test_four_bits(format, tmp_path):
    inputs, labels = batch()
    plain = make_model()
    plain.save_pretrained(tmp_path / "plain")
    config = bertgen.Int4Config(format, group_size=32, skip=["output"])
    expected = bertgen.EncoderDecoderModel.from_pretrained(tmp_path / "plain", quantization_config=config)
    model = bertgen.accelerate(plain, quantization=config)
    with torch.no_grad():
        a, b = (m(**inputs, decoder_input_ids=labels.clamp(min=0)).logits for m in (model, expected))
    assert distance(a, b) <= 1e-5
    model.save_pretrained(tmp_path / "small")
    again = bertgen.EncoderDecoderModel.from_pretrained(tmp_path / "small")
    with torch.no_grad():
        assert distance(again(**inputs, decoder_input_ids=labels.clamp(min=0)).logits, b) <= 1e-5
    with pytest.raises(bertgen.UnsupportedError, match="quantized already"):
        bertgen.accelerate(model, quantization=config)
    assert bertgen.accelerate(model) is model  # once more keeps that in mind
    bertgen.restore(model)
    assert type(model.encoder.encoder.layer[0].attention.self.query) is torch.nn.Linear
    with torch.no_grad():
        assert distance(model(**inputs, decoder_input_ids=labels.clamp(min=0)).logits, b) <= 1e-4


def test_a_model_that_transformers_loaded_in_four_bits(tmp_path, calls):
    bertgen.register_with_transformers()
    inputs, labels = batch()
    make_model().save_pretrained(tmp_path)
    config = bertgen.Int4Config(group_size=32, skip=["output"])
    theirs, ours = (EncoderDecoderModel.from_pretrained(tmp_path, quantization_config=config) for _ in range(2))
    bertgen.accelerate(ours)
    assert distance(*(model(**inputs, labels=labels).loss for model in (theirs, ours))) <= 1e-4
    tokens = [model.generate(**inputs, max_new_tokens=9, num_beams=2) for model in (theirs, ours)]
    assert torch.equal(*tokens) and calls == ["forward", "generation"]
    bertgen.restore(ours)  # these 4 bits are not accelerate's to undo
    assert type(ours.encoder.encoder.layer[0].attention.self.query) is bertgen.modules.Int4Linear


def test_explain():
    model, (inputs, labels) = bertgen.accelerate(make_model()), batch()
    model(**inputs, labels=labels, output_attentions=True)
    report = bertgen.explain(model)
    assert report.models[""] == "EncoderDecoderModel" and report.models["decoder.bert"] == "BertGenerationEncoder"
    assert report.detours[""] == {"forward: output_attentions is requested": 1} and not report.obstacles
    assert "attention" in dict(
        report.operators
    ) and "1 calls ran transformers' own code, forward: output_attentions" in str(report)
    model.encoder.encoder.layer[0].register_forward_hook(lambda *_: None)
    assert "BertGenerationLayer has a hook or an overridden method" in bertgen.explain(model).obstacles[""]
    assert str(bertgen.explain(bertgen.restore(model))) == "nothing is accelerated"


def test_unsupported_models_and_options_are_refused():
    with pytest.raises(bertgen.UnsupportedError, match="nothing in a Linear can be accelerated; models that can: Bert"):
        bertgen.accelerate(torch.nn.Linear(2, 2))
    odd = make_model()
    foreign = transformers.DistilBertConfig(dim=32, n_heads=4, n_layers=1, vocab_size=99)
    odd.encoder = transformers.DistilBertModel(foreign)
    odd.config.encoder = odd.encoder.config
    with pytest.raises(bertgen.UnsupportedError, match="the encoder is a DistilBertModel"):
        bertgen.accelerate(odd)
    assert type(odd.decoder) is transformers.BertGenerationDecoder  # nothing was changed
    with pytest.raises(bertgen.BackendError, match="tpu"):
        bertgen.accelerate(make_model(), backend="tpu")
    with pytest.raises(bertgen.ConfigError, match="int3"):
        bertgen.accelerate(make_model(), quantization="int3")
    model = bertgen.accelerate(make_model())
    with pytest.raises(bertgen.InputError, match="41 tokens, but the model has 40 positions"):
        model(input_ids=torch.full((1, 41), 5), decoder_input_ids=torch.full((1, 2), 5))
    with pytest.raises(bertgen.InputError, match="holds 99"):
        model(input_ids=torch.full((1, 4), 99), decoder_input_ids=torch.full((1, 2), 5))
