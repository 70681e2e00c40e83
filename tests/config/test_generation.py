"""GenerationConfig against transformers: options are read, merged, validated and written."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers

from bertgen import (
    ConfigError,
    EncoderDecoderModel,
    GenerationConfig,
    UnsupportedError,
)


def test_generation_options_are_replaced_while_they_are_read(tmp_path):
    options = dict(num_beams=3, max_length=9, do_sample=True, temperature=0.7)
    for kind in (GenerationConfig, transformers.GenerationConfig):
        folder = tmp_path / kind.__module__
        kind(**options).save_pretrained(folder)
        kind(num_beams=2).save_pretrained(folder, "other.json")
        assert kind.from_pretrained(folder, temperature=0.5).temperature == 0.5
        assert kind.from_pretrained(folder, "other.json").num_beams == 2
        config, unused = kind.from_pretrained(folder, top_k=7, foo=1, return_unused_kwargs=True)
        assert (config.top_k, config.num_beams) == (7, 3)
        if kind is GenerationConfig:  # transformers documents it, and returns nothing
            assert unused == {"foo": 1}
    with pytest.raises(ConfigError, match="temperatur"):
        GenerationConfig.from_pretrained(folder, temperatur=0.7)
    with pytest.raises(UnsupportedError, match="push_to_hub"):
        GenerationConfig().save_pretrained(tmp_path, push_to_hub=True)


def test_update_of_generation_options_equals_transformers():
    for options in (dict(num_beams=4, foo=1), dict(defaults_only=True, num_beams=4, top_k=9)):
        one, other = (kind(num_beams=2, max_length=5) for kind in (GenerationConfig, transformers.GenerationConfig))
        assert one.update(**options) == other.update(**options)
        assert (one.num_beams, one.max_length, one.top_k) == (other.num_beams, other.max_length, other.top_k)
    one = GenerationConfig()
    assert one.update(allow_custom_entries=True, foo=1) == {} and one.to_dict()["foo"] == 1


def test_generation_options_as_text_equal_transformers(tmp_path):
    options = dict(num_beams=4, length_penalty=0.6, eos_token_id=[1, 2], bad_words_ids=[[3]], do_sample=False)
    one, other = GenerationConfig(**options), transformers.GenerationConfig(**options)
    text = json.loads(other.to_json_string(ignore_metadata=True))
    assert json.loads(one.to_json_string()) == one.to_diff_dict() == {n: v for n, v in text.items() if n in options}
    one.to_json_file(tmp_path / "g.json")
    assert GenerationConfig.from_json_file(tmp_path / "g.json") == one


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(do_sample=True),
        dict(num_beams=2),
        dict(num_beams=2, do_sample=True),
        dict(num_beams=4, num_beam_groups=2),
    ],
)
def test_the_mode_of_generation_equals_transformers(options):
    theirs = transformers.GenerationConfig(**options).get_generation_mode()
    assert GenerationConfig(**options).get_generation_mode() == theirs


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=0.7), dict(top_k=3), dict(top_p=0.5), dict(min_p=0.1), dict(typical_p=0.3), dict(top_h=0.4),
        dict(epsilon_cutoff=0.1), dict(eta_cutoff=0.1), dict(length_penalty=2.0), dict(early_stopping=True),
        dict(num_return_sequences=2), dict(num_beams=2, num_return_sequences=3), dict(do_sample=True, temperature=0.7),
        dict(num_beams=3, num_return_sequences=3, early_stopping=True), dict(top_k=50, top_p=1.0, length_penalty=1.0),
        dict(do_sample=True, num_beams=2, num_return_sequences=3), dict(do_sample=True, num_return_sequences=3),
    ],
)  # fmt: skip
def test_validation_equals_transformers(options, caplog):
    outcomes = []
    for kind in (GenerationConfig, transformers.GenerationConfig):
        try:
            config = kind(**options)
            outcome = ["fine"]
            config.validate(strict=True)
        except ValueError:
            outcome = ["refused"]
        outcomes.append(outcome)
    assert outcomes[0] == outcomes[1]
    if "num_return_sequences" not in options:
        with caplog.at_level(logging.WARNING, logger="bertgen"):
            GenerationConfig(**options).validate()
        assert ("will have no effect" in caplog.text) == (outcomes[0] == ["refused"])


@pytest.mark.parametrize("name", ["prefix", "torch_dtype", "gradient_checkpointing", "attn_implementation"])
def test_options_of_models_are_no_options_of_generation(name, tiny_checkpoint):
    with pytest.raises(ConfigError, match=name):
        GenerationConfig(**{name: True})
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    with pytest.raises(ConfigError, match=name):
        model.generate(torch.tensor([[5, 6]]), **{name: True})
    assert GenerationConfig(transformers_version="5").to_dict() == {"transformers_version": "5"}


def test_options_that_bertgen_does_not_have_read_as_none():
    assert GenerationConfig().guidance_scale is None and transformers.GenerationConfig().guidance_scale is None
    assert GenerationConfig.from_dict({"guidance_scale": 2.0}).guidance_scale == 2.0
    with pytest.raises(UnsupportedError, match="guidance_scale=2.0"):
        GenerationConfig.from_dict({"guidance_scale": 2.0}).validate()


def test_only_an_option_is_proposed_for_an_unknown_name():
    with pytest.raises(ConfigError, match="^GenerationConfig has no option 'num_bems'; did you mean 'num_beams'\\?$"):
        GenerationConfig(num_bems=3)
    with pytest.raises(ConfigError, match="^GenerationConfig has no option 'INERT'$"):  # a constant of the class
        GenerationConfig(INERT=3)


def test_a_model_generates_as_a_configuration_of_any_form_says(tiny_checkpoint):
    ids = dict(decoder_start_token_id=2, eos_token_id=1, pad_token_id=0)
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    for value in (ids, GenerationConfig(**ids), transformers.GenerationConfig(**ids)):
        model.generation_config = value
        assert isinstance(model.generation_config, GenerationConfig)
        loaded = EncoderDecoderModel.from_pretrained(tiny_checkpoint, generation_config=value)
        assert model.generation_config.eos_token_id == loaded.generation_config.eos_token_id == 1
    for wrong in ("demo", 5, None, GenerationConfig):
        with pytest.raises(ConfigError, match="generation_config must be a GenerationConfig or a dict"):
            model.generation_config = wrong
    assert model.generation_config.eos_token_id == 1
