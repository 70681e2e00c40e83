"""AddNorm against its equation in float64, and its dropout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bertgen import BertGenerationConfig
from bertgen.layers.add_norm import AddNorm
from tests.support.tiny_models import TINY, distance


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_add_norm_is_its_equation(bias):
    """Also with a LayerNorm that no operator computes."""
    torch.manual_seed(0)
    block = AddNorm(48, BertGenerationConfig(**TINY, layer_norm_eps=1e-3)).eval()
    block.LayerNorm = nn.LayerNorm(32, eps=1e-3, bias=bias)
    nn.init.normal_(block.LayerNorm.weight)
    x, residual = torch.randn(5, 48), torch.randn(5, 32)
    with torch.no_grad():
        got, exact = block(x, residual), copy.deepcopy(block).double()
        total = exact.dense(x.double()) + residual.double()
        centred = total - total.mean(1, keepdim=True)
        expected = centred / (centred.square().mean(1, keepdim=True) + 1e-3).sqrt() * exact.LayerNorm.weight
        expected = expected + exact.LayerNorm.bias if bias else expected
    assert distance(got.double(), expected) <= 1e-5


def test_the_end_of_each_block_drops_out():
    block = AddNorm(32, BertGenerationConfig(**TINY, hidden_dropout_prob=0.5)).train()
    x, residual = torch.randn(4, 32), torch.randn(4, 32)
    assert not torch.equal(block(x, residual), block(x, residual))
    block.eval()
    assert torch.equal(block(x, residual), block(x, residual))
