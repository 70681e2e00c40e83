"""Config: configurations are read, changed and written as in transformers."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
import transformers

from bertgen import BertConfig, BertGenerationConfig, EncoderDecoderConfig, RobertaConfig, UnsupportedError

SIZES = dict(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)

KINDS = (BertGenerationConfig, BertConfig, RobertaConfig)


def configurations():
    for kind in KINDS:
        yield kind(**SIZES, hidden_act="relu", finetuning_task="x")
    half = BertConfig(**SIZES)
    yield EncoderDecoderConfig.from_encoder_decoder_configs(half, copy.deepcopy(half), pad_token_id=0)


@pytest.mark.parametrize("config", list(configurations()), ids=lambda config: type(config).__name__)
def test_configurations_are_written_and_read_in_every_form(config, tmp_path):
    kind = type(config)
    assert kind.from_dict(json.loads(config.to_json_string())) == config
    assert kind.from_dict(json.loads(config.to_json_string(use_diff=False))).to_dict() == config.to_dict()
    assert "layer_norm_eps" not in config.to_diff_dict() and "model_type" in config.to_diff_dict()
    config.to_json_file(tmp_path / "one.json", use_diff=False)
    assert kind.from_json_file(tmp_path / "one.json").to_dict() == config.to_dict()
    config.save_pretrained(tmp_path / "a" / "b")
    assert kind.from_pretrained(tmp_path / "a" / "b").to_dict() == config.to_dict()
    values, unused = kind.get_config_dict(tmp_path / "a" / "b", revision="main", foo=2)
    assert values == config.to_dict() and unused == {"foo": 2}
    with pytest.raises(UnsupportedError, match="push_to_hub"):
        config.save_pretrained(tmp_path, push_to_hub=True)
    for one in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert one == config and one.extra == config.extra
    theirs = getattr(transformers, kind.__name__).from_pretrained(tmp_path / "a" / "b")
    assert kind.from_dict(theirs.to_diff_dict()) == config


def test_keys_without_effect_can_be_read_back():
    config = BertConfig(**SIZES, name_or_path="here", torch_dtype=torch.float16)
    theirs = transformers.BertConfig(**SIZES, name_or_path="here", torch_dtype=torch.float16)
    for name in ("name_or_path", "dtype", "architectures", "use_return_dict", "return_dict", "problem_type"):
        assert getattr(config, name) == getattr(theirs, name), name
    assert config.to_dict()["dtype"] == theirs.to_dict()["dtype"] == "float16"
    with pytest.raises(AttributeError, match="no option 'num_heads'"):
        _ = config.num_heads
    assert not hasattr(config, "foo")


def test_an_option_wins_over_the_key_of_the_file():
    values = {**SIZES, "torch_dtype": "float32", "gradient_checkpointing": False, "name_or_path": "there"}
    config = BertConfig.from_dict(values, dtype="bfloat16", gradient_checkpointing=True, name_or_path="here")
    assert (config.dtype, config.gradient_checkpointing, config.name_or_path) == (torch.bfloat16, True, "here")
    assert BertConfig.from_dict(values).torch_dtype == torch.float32
