"""The digest of a model changes with its values, dtypes and configuration."""

from __future__ import annotations

import copy

import torch

from bertgen.model.weights_digest import weights_digest
from tests.support.tiny_models import tiny


def test_the_digest_is_of_values_dtypes_and_configuration():
    model = tiny()
    digest = weights_digest(model)
    assert len(digest) == 64 and digest == weights_digest(copy.deepcopy(model))
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1
    assert weights_digest(other) != digest
    assert weights_digest(copy.deepcopy(model).half()) != digest
    model.config.decoder.layer_norm_eps = 1e-6
    assert weights_digest(model) != digest
