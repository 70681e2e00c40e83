"""A layer against its equation in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bertgen import BertGenerationConfig
from bertgen.layers.attention import AttentionContext
from bertgen.layers.block import Intermediate, Layer
from bertgen.packing import Packing
from tests.support.tiny_models import TINY, distance

CPU = torch.device("cpu")


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new", "prelu"])
@torch.no_grad()
def test_the_first_half_of_the_feed_forward_block_is_its_equation(activation):
    torch.manual_seed(0)
    half = Intermediate(BertGenerationConfig(**TINY, hidden_act=activation))
    exact, x = copy.deepcopy(half).double(), torch.randn(5, 32)
    function = {
        "gelu": nn.functional.gelu,
        "relu": torch.relu,
        "gelu_new": lambda y: nn.functional.gelu(y, approximate="tanh"),
        "prelu": exact.intermediate_act_fn,
    }[activation]
    assert distance(half(x).double(), function(exact.dense(x.double()))) <= 1e-5


@pytest.mark.parametrize("sources", [True, False], ids=["sources", "no sources"])
@torch.no_grad()
def test_a_layer_is_its_blocks_in_their_order(sources):
    """Self-attention, cross-attention where there are sources, feed-forward; each ends with its LayerNorm."""
    torch.manual_seed(0)
    layer = Layer(BertGenerationConfig(**TINY, add_cross_attention=True), 0).eval()
    x, states = torch.randn(6, 32), torch.randn(4, 32)
    source = (states, Packing.full(2, 2, CPU)) if sources else None
    context = AttentionContext(Packing.full(2, 3, CPU), causal=True, source=source)
    expected = layer.attention(x, context)
    if sources:
        expected = layer.crossattention(expected, context)
    exact = copy.deepcopy(layer).double()
    total = exact.output.dense(exact.intermediate(expected.double())) + expected.double()
    assert distance(layer(x, context).double(), exact.output.LayerNorm(total)) <= 1e-5
    assert not hasattr(Layer(BertGenerationConfig(**TINY), 0), "crossattention")
