"""Modules whose calls a replay cannot stand for."""

from __future__ import annotations

import random

import pytest
import torch

from bertgen.model.captured_calls import why_not_captured
from tests.support.static_runs import make_model


class Adapter(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def adapt(layer):
    layer.output.dense = Adapter(layer.output.dense.in_features, 4).eval()


CHANGES = {
    "training mode": lambda layer: layer.output.train(),
    "a Linear has a hook": lambda layer: layer.output.dense.register_forward_pre_hook(lambda *_: None),
    "a Layer has a hook or a forward of its own": lambda layer: setattr(layer, "forward", lambda *_: None),
    "a Adapter is no module of the library": adapt,
}


@pytest.mark.parametrize("reason", CHANGES)
def test_reasons(reason):
    decoder = make_model(random.Random(1)).decoder
    assert why_not_captured(decoder) is None
    CHANGES[reason](decoder.body.encoder.layer[-1])
    assert reason in why_not_captured(decoder)


def test_autocast_and_global_hooks():
    decoder = make_model(random.Random(1)).decoder
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in why_not_captured(decoder)
    with torch.nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert why_not_captured(decoder) == "all modules have a hook"
