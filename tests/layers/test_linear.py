"""Int4Linear, and layers of both kinds as their blocks call them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bertgen import InputError, Int4Config
from bertgen.layers.attention import project
from bertgen.layers.linear import Int4Linear, apply
from tests.support.int4_models import each_kind


@pytest.mark.parametrize("rows", [1, 5, 200])
@each_kind
def test_a_projection_is_the_same_alone_and_beside_others(config, rows):
    """Bit for bit, whatever is computed in the same call."""
    layers = [Int4Linear.from_linear(nn.Linear(64, 64), config) for _ in range(3)]
    others = [
        Int4Linear.from_linear(nn.Linear(64, 64, bias=False), config),
        Int4Linear.from_linear(nn.Linear(64, 64), Int4Config("nf4" if config.format != "nf4" else "int4")),
        Int4Linear.from_linear(nn.Linear(64, 96), config),
        nn.Linear(64, 64),
    ]
    x = torch.randn(rows, 64)
    with torch.inference_mode():
        for parts in (layers, layers[:2], *([*layers[:2], other] for other in others)):
            assert all(torch.equal(y, apply(layer, x)) for y, layer in zip(project(x, *parts), parts, strict=True))


@pytest.mark.parametrize("rows", [3, 200])
def test_unpacked_blocks_cross_weights(monkeypatch, rows):
    monkeypatch.setattr("bertgen.kernels.int4_matmul_cpp.CPU_ELEMENTS", 64 * 40)
    for config in (Int4Config(), Int4Config(symmetric=False), Int4Config("nf4")):
        for bias in (True, False):
            layers = [Int4Linear.from_linear(nn.Linear(64, 64, bias=bias), config) for _ in range(3)]
            x = torch.randn(rows, 64)
            with torch.inference_mode():
                for y, layer in zip(project(x, *layers), layers, strict=True):
                    assert float((y - layer.to_linear()(x)).abs().max()) < 1e-5


def test_activations_and_biases():
    linear = nn.Linear(64, 48)
    layer = Int4Linear.from_linear(linear)
    back = layer.to_linear()
    x = torch.randn(2, 3, 64)
    for activation in (None, "gelu", "relu"):
        for one in (apply(layer, x, activation), apply(back, x, activation)):
            y = nn.functional.linear(x, back.weight, back.bias)
            expected = y if activation is None else getattr(nn.functional, activation)(y)
            assert float((one - expected).detach().abs().max()) <= 1e-5
    assert "format=int4" in str(layer)


def test_layers_reject_tensors_that_do_not_fit():
    layer = Int4Linear.from_linear(nn.Linear(64, 48))
    with pytest.raises(InputError, match="the input has 32 columns, the weight 64"):
        layer(torch.zeros(2, 32))
    with pytest.raises(InputError, match="the input is on meta, the weight on cpu"):
        layer(torch.zeros(2, 64, device="meta"))
    for x in (torch.tensor(1.0), torch.ones(2, 64, dtype=torch.int64)):
        with pytest.raises(InputError, match=r"expected floats \[.., 64\]"):
            layer(x)
    for shape in ((0, 64), (2, 0, 64), (64,)):  # valid, with or without elements
        assert layer(torch.zeros(shape)).shape == (*shape[:-1], 48)
    with pytest.raises(InputError, match="packed, scale and zero are on cpu and meta"):
        Int4Linear(layer.packed, layer.scale.to("meta"))
    with pytest.raises(InputError, match="zero is present, the format has symmetric=True"):
        Int4Linear(layer.packed, layer.scale, layer.scale.abs().round(), config=Int4Config("nf4"))
    assert Int4Linear(layer.packed, layer.scale.repeat(1, 2)).config == Int4Config(group_size=32)
    with pytest.raises(InputError, match=r"packed and scale must be tensors \[N, \.\.\], got .* of shape \(48,\)"):
        Int4Linear(layer.packed, layer.scale[:, 0])
    with pytest.raises(InputError, match=r"bias must be a tensor \(48,\), got Tensor of shape \(47,\)"):
        Int4Linear(layer.packed, layer.scale, None, torch.zeros(47))
