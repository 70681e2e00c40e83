"""Addresses of parameters: what keeps them, and what does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bertgen.model.tensor_addresses import TensorAddresses


def model():
    return nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False)))


@torch.no_grad()
def test_contents_do_not_count():
    one = model()
    addresses = TensorAddresses(one)
    one[0].weight.add_(1)
    one.load_state_dict(model().state_dict())
    one.eval()
    assert addresses.are_current()


CHANGES = {
    "data of a parameter": lambda m: setattr(m[0].weight, "data", torch.zeros(3, 3)),
    "another parameter": lambda m: setattr(m[1][1], "weight", nn.Parameter(torch.zeros(2, 3))),
    "a buffer": lambda m: setattr(m[1][0], "running_mean", torch.zeros(3)),
    "a module": lambda m: m.__setitem__(0, nn.Linear(3, 3)),
    "a module inside": lambda m: m[1].__setitem__(1, nn.Linear(3, 2, bias=False)),
    "a bias": lambda m: setattr(m[1][1], "bias", nn.Parameter(torch.zeros(2))),
    "a bias taken away": lambda m: setattr(m[0], "bias", None),
    "another dtype": lambda m: m.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_moves_is_seen(change):
    one = model()
    addresses = TensorAddresses(one)
    assert addresses.are_current()
    CHANGES[change](one)
    assert not addresses.are_current()
