"""The packed core under torch.compile, in one graph."""

from __future__ import annotations

import pytest
import torch
from test_family import HALVES, KINDS, TINY, distance

from bertgen import Int4Config
from bertgen.layers import AttentionContext
from bertgen.linear import Int4Linear
from bertgen.packing import Packing

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("decoder", [False, True])
def test_a_stack_is_one_graph(kind, grad, decoder):
    torch.manual_seed(0)
    torch._dynamo.reset()
    config, encoder, _ = HALVES[kind]
    stack = encoder(config(**TINY, is_decoder=decoder, add_cross_attention=decoder)).eval().encoder
    x, states = torch.randn(11, 32), torch.randn(9, 32)
    if not decoder:
        mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
        context = AttentionContext(Packing.of_mask(mask, 2, 6, CPU))
    else:
        source = Packing.of_mask(torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]), 2, 5, CPU)
        tokens = Packing.of_mask(torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]), 2, 6, CPU)
        context = AttentionContext(tokens, causal=True, source=(states, source))
    compiled = torch.compile(lambda x: stack(x, context), fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        expected, got = stack(x, context), compiled(x)
        assert distance(got, expected) <= 1e-5
    if grad:
        weights = list(stack.parameters())
        for a, b in zip(*(torch.autograd.grad(y.square().sum(), weights, allow_unused=True) for y in (got, expected))):
            assert a is None or distance(a, b) <= 1e-3


@pytest.mark.parametrize("config", [Int4Config(), Int4Config(symmetric=False), Int4Config("nf4")], ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_a_layer_in_4_bits_is_one_graph(config, grad):
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = Int4Linear.from_linear(torch.nn.Linear(128, 48), config)
    x = torch.randn(2, 3, 128, requires_grad=grad)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected, got = layer(x), compiled(x)
    assert distance(got, expected) <= 1e-5
    if grad:
        assert distance(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (got, expected))) <= 1e-3
