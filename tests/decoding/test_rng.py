"""The best tokens, as a GPU finds them: without a host that reads whether scores are equal."""

from __future__ import annotations

import pytest
import torch

from bertgen import ops
from bertgen.decoding import rng


@pytest.fixture
def on_cuda(monkeypatch):
    """The choice of operators on CUDA; their reference implementations run."""
    monkeypatch.setattr(type(ops.top_log_probs), "prefers_triton", lambda self, first: True)
    monkeypatch.setattr(ops, "select", None)
    monkeypatch.setattr(rng, "MAX_VOCABULARY", 40)


@pytest.mark.parametrize("width", [1, 7, 39, 40, 41, 79, 80, 81, 130])
@pytest.mark.parametrize("count", [1, 2, 8, 33])
def test_the_best_tokens_on_cuda_are_those_of_the_definition(on_cuda, width, count):
    generator = torch.Generator().manual_seed(width * 100 + count)
    count = min(count, width)
    for kind in ("different", "equal", "forbidden", "nan"):
        scores = torch.randn(5, width, generator=generator)
        if kind == "equal":
            scores = scores.round()
        if kind == "forbidden":
            scores = scores.masked_fill(torch.rand(scores.shape, generator=generator) < 0.9, -torch.inf)
        if kind == "nan":
            scores = scores.masked_fill(torch.rand(scores.shape, generator=generator) < 0.1, torch.nan)
        expected = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :count]
        assert torch.equal(rng.best_tokens(scores, count), expected), kind


def test_a_larger_count_than_the_kernel_takes_goes_to_select(monkeypatch):
    monkeypatch.setattr(type(ops.top_log_probs), "prefers_triton", lambda self, first: True)
    assert rng.best_tokens(torch.arange(90.0).expand(2, -1), 65).tolist() == [[*range(89, 24, -1)]] * 2
