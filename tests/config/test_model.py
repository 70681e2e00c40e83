"""Configurations of models: options are changed, and a file makes a configuration of its kind only."""

from __future__ import annotations

import pytest

from bertgen import BertConfig, ConfigError, EncoderDecoderConfig, RobertaConfig

SIZES = dict(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def test_update_of_a_model_configuration():
    config = BertConfig(**SIZES)
    config.update({"hidden_size": 64, "tokenizer_class": "X"})
    assert config.hidden_size == 64 and config.tokenizer_class == "X"
    with pytest.raises(ConfigError, match="hidden_sizes"):
        config.update({"hidden_sizes": 64})
    with pytest.raises(ConfigError, match="hidden_size must be an integer"):
        config.update({"hidden_size": "64"})


def test_the_content_of_a_file_makes_a_configuration():
    for config in (BertConfig(hidden_size=64), EncoderDecoderConfig(encoder={}, decoder={"is_decoder": True})):
        assert type(config)(**config.to_dict()) == config
    with pytest.raises(ConfigError, match="model_type of this class must be 'bert', got 'roberta'"):
        BertConfig(**RobertaConfig().to_dict())
