"""Heads against their equations in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bertgen import BertGenerationConfig
from bertgen.layers.heads import BertLMHead, LMHead, Pooler, RobertaLMHead
from tests.support.tiny_models import TINY, distance


def made(head, **options):
    torch.manual_seed(0)
    module = head(BertGenerationConfig(**TINY, **options)).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module, copy.deepcopy(module).double(), torch.randn(5, 32)


@torch.no_grad()
def test_the_head_of_bert_generation_is_its_equation():
    head, exact, x = made(LMHead)
    assert head.decoder.bias is head.bias
    assert distance(head(x).double(), x.double() @ exact.decoder.weight.T + exact.bias) <= 1e-5
    assert made(LMHead, tie_word_embeddings=False)[0].decoder.bias is not head.bias


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "hooked"])
@pytest.mark.parametrize("activation", ["gelu", "relu", "prelu"])
@torch.no_grad()
def test_the_head_of_bert_is_its_equation(activation, plain):
    """dense, activation, LayerNorm, then the words; also where a LayerNorm with a hook must be called."""
    head, exact, x = made(BertLMHead, hidden_act=activation)
    if not plain:
        head.predictions.transform.LayerNorm.register_forward_hook(lambda module, args, output: None)
    transform = exact.predictions.transform
    act = {"gelu": nn.functional.gelu, "relu": torch.relu, "prelu": transform.transform_act_fn}[activation]
    states = transform.LayerNorm(act(transform.dense(x.double())))
    expected = states @ exact.predictions.decoder.weight.T + exact.predictions.bias
    assert distance(head.predictions(x).double(), expected) <= 2e-5


@torch.no_grad()
def test_the_head_of_roberta_has_gelu_for_every_activation_of_the_stack():
    head, exact, x = made(RobertaLMHead, hidden_act="relu")
    states = exact.layer_norm(nn.functional.gelu(exact.dense(x.double())))
    assert distance(head(x).double(), states @ exact.decoder.weight.T + exact.bias) <= 2e-5


@torch.no_grad()
def test_the_pooler_reads_the_first_token():
    pooler, exact, _ = made(Pooler)
    states = torch.randn(2, 3, 32)
    assert distance(pooler(states).double(), torch.tanh(exact.dense(states[:, 0].double()))) <= 1e-5
