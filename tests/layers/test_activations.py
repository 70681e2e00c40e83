"""Activations with parameters: their equations, and the models that learn and save them."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from torch import nn

from bertgen import BertGenerationConfig, BertGenerationEncoder, ConfigError
from bertgen.layers.activations import XIELU, learned_activation
from tests.support.tiny_models import TINY, distance


def test_xielu_is_its_equation_with_the_initial_values_of_the_paper():
    module, x = XIELU(), torch.linspace(-8, 8, 101)
    positive, negative, beta = 0.8, 0.8, 0.5
    expected = [
        positive * v * v + beta * v if v > 0 else negative * (math.exp(v) - 1 - v) + beta * v
        for v in x.double().tolist()
    ]
    with torch.no_grad():
        assert distance(module(x).double(), torch.tensor(expected, dtype=torch.float64)) <= 1e-5
        module.alpha_p.fill_(3.0)
        module.reset()
        assert distance(module(x).double(), torch.tensor(expected, dtype=torch.float64)) <= 1e-5


def test_names_of_activations():
    assert isinstance(learned_activation("xielu"), XIELU) and isinstance(learned_activation("prelu"), nn.PReLU)
    assert learned_activation("gelu") is None
    with pytest.raises(ConfigError, match="hidden_act 'glue' is not one of gelu, .*, prelu, xielu"):
        learned_activation("glue")


@pytest.mark.parametrize("name", ["prelu", "xielu"])
def test_activations_with_parameters_are_saved_and_learned(name, tmp_path):
    torch.manual_seed(0)
    model = BertGenerationEncoder(BertGenerationConfig(**TINY, hidden_act=name)).eval()
    ids = torch.randint(3, 37, (2, 5))
    with torch.no_grad():
        for n, p in model.named_parameters():
            p += 0.1 * torch.randn_like(p)
            if "act_fn" in n:
                p.copy_(p.bfloat16())  # as which transformers reads the parameters of xielu
    output = model(ids).last_hidden_state
    output.square().sum().backward()
    learned = {name: p for name, p in model.named_parameters() if "act_fn" in name}
    assert learned and all(p.grad.abs().max() > 0 for p in learned.values())
    model.save_pretrained(tmp_path)
    assert distance(BertGenerationEncoder.from_pretrained(tmp_path)(ids).last_hidden_state, output) <= 1e-6
    theirs = transformers.BertGenerationEncoder.from_pretrained(tmp_path, attn_implementation="eager").float()
    assert distance(theirs(ids).last_hidden_state, output) <= 2e-5
