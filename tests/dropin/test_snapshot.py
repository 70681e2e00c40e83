"""Snapshots of modules: every kind of change is noticed, and training is not a change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bertgen.dropin.snapshot import Snapshot


def make_module():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4))
    module.scaling, module.table = 2.0, {"key": 1}
    return module.eval()


def set_class(module):
    module[1].__class__ = nn.Tanh


CHANGES = {
    "an attribute": lambda m: setattr(m, "scaling", 3.0),
    "a new attribute": lambda m: setattr(m[1], "forward", lambda x: x),
    "a removed attribute": lambda m: delattr(m, "scaling"),
    "a child": lambda m: m.__setitem__(1, nn.ReLU()),
    "a further child": lambda m: m.append(nn.ReLU()),
    "a class": set_class,
    "the mode": lambda m: m[1].train(),
    "a first hook": lambda m: m[0].register_forward_hook(lambda *args: None),
    "a hook before a call": lambda m: m[0].register_forward_pre_hook(lambda *args: None),
    "a backward hook": lambda m: m[0].register_full_backward_hook(lambda *args: None),
    "the values of a buffer": lambda m: m[2].running_mean.add_(1),
    "another buffer": lambda m: setattr(m[2], "running_mean", torch.zeros(4)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name):
    module = make_module()
    snapshot = Snapshot(module.modules())
    assert not snapshot.changed() and not snapshot.changed()
    CHANGES[name](module)
    assert snapshot.changed()


def test_a_second_hook_is_noticed():
    module = make_module()
    module[0].register_forward_hook(lambda *args: None)
    snapshot = Snapshot(module.modules())
    assert not snapshot.changed()
    module[0].register_forward_hook(lambda *args: None)
    assert snapshot.changed()


def test_weights_may_change():
    module = make_module()
    snapshot = Snapshot(module.modules())
    with torch.no_grad():
        module[0].weight.add_(1.0)
        module[0].bias.zero_()
    assert not snapshot.changed()


def test_attributes_that_a_layer_reads_when_it_is_called_may_change():
    norm = nn.LayerNorm(4)
    snapshot = Snapshot([norm])
    norm.eps = 3.0
    assert not snapshot.changed()


def test_other_mappings_are_compared_by_their_values():
    table = {"a": 1, "b": [2]}
    snapshot = Snapshot([], [table])
    table["a"] = 1
    assert not snapshot.changed()
    table["a"] = 2
    assert snapshot.changed()


def test_a_tensor_that_replaces_a_value_is_a_change():
    table = {"a": torch.zeros(2)}
    snapshot = Snapshot([], [table])
    table["a"] = torch.zeros(2)  # == of the two is no bool
    assert snapshot.changed()
