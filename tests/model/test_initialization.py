"""Initial values of weights, and of those that a checkpoint lacks."""

from __future__ import annotations

import torch
from torch import nn

from bertgen.model.initialization import initialize_meta_parameters, initialize_modules


def test_initial_values_of_each_kind_of_module():
    torch.manual_seed(0)
    linear, table, norm = nn.Linear(40, 50), nn.Embedding(60, 40, padding_idx=3), nn.LayerNorm(8)
    nn.init.constant_(norm.weight, 5.0)
    initialize_modules([linear, table, norm], 0.02)
    for weight in (linear.weight, table.weight):
        assert abs(float(weight.std()) - 0.02) < 2e-3 and abs(float(weight.mean())) < 2e-3
    assert not linear.bias.any() and not table.weight[3].any() and not norm.bias.any()
    assert bool((norm.weight == 1).all())


def test_only_parameters_on_the_meta_device_are_replaced():
    linear = nn.Linear(4, 5)
    kept = linear.bias
    with torch.no_grad():
        kept.fill_(7.0)
    linear.weight = nn.Parameter(torch.empty(5, 4, dtype=torch.float32, device="meta"))
    initialize_modules([linear], 0.02)  # leaves a module with such a parameter as it is
    assert linear.weight.is_meta and bool((kept == 7).all())
    initialize_meta_parameters(linear, 0.02, torch.empty(0, dtype=torch.float16, device="cpu"))
    assert linear.bias is kept and bool((kept == 7).all())
    assert linear.weight.dtype == torch.float16 and bool(linear.weight.any())
