"""Which layers a format quantizes, and how quantized weights of a checkpoint become layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bertgen import CheckpointError, ConfigError, Int4Config
from bertgen.layers.linear import Int4Linear
from bertgen.model.int4_layers import install_int4_layers, layers_to_quantize, quantize_weight
from tests.support.tiny_models import tiny


def test_layers_that_a_format_quantizes():
    model = tiny()
    names = layers_to_quantize(model, Int4Config(group_size=32))
    assert names and not any("lm_head" in name or "embeddings" in name for name in names)
    assert all(type(model.get_submodule(name)) is nn.Linear for name in names)
    with_head = layers_to_quantize(model, Int4Config(group_size=32, head=True))
    assert set(with_head) - set(names) == {"decoder.lm_head.decoder"}
    skipped = layers_to_quantize(model, Int4Config(group_size=32, skip=["decoder", "query"]))
    assert skipped == [name for name in names if not name.startswith("decoder.") and ".query" not in name]
    with pytest.raises(ConfigError, match="skip has 'layer.99'"):
        layers_to_quantize(model, Int4Config(skip=["layer.99"]))


def test_quantized_weights_become_layers():
    config = Int4Config(group_size=32)
    model = nn.Sequential(nn.Linear(32, 6), nn.Linear(6, 2))
    parts = quantize_weight("0.weight", model[0].weight.detach(), config)
    assert set(parts) == {"packed", "scale"}
    state = {f"0.{part}": tensor for part, tensor in parts.items()} | {"1.weight": torch.zeros(2, 6)}
    with pytest.raises(CheckpointError, match="0 is quantized, but config.json has no quantization_config"):
        install_int4_layers(model, "folder", dict(state), None)
    with pytest.raises(CheckpointError, match="0.scale is missing beside 0.packed"):
        install_int4_layers(model, "folder", {"0.packed": parts["packed"]}, config)
    install_int4_layers(model, "folder", state, config)
    assert isinstance(model[0], Int4Linear) and type(model[1]) is nn.Linear and set(state) == {"1.weight"}
