"""`prefill`: the cross-attention keys and values of sources in a cache, and who may reach them."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

from bertgen import UnsupportedError
from bertgen.cache.cache import Cache
from bertgen.model.prefill import cache_layers, check_prefill
from bertgen.packing import padded
from tests.support.reference_models import make_model_pair

PACKAGE = Path(__file__).parents[2] / "bertgen"
SOURCES = [[5, 6, 7, 8, 9, 10], [11], [5, 6, 12]]


@pytest.fixture
def model():
    return make_model_pair(0).model.eval()


def new_cache(model):
    config = model.config.decoder
    return Cache(
        cache_layers(model), config.num_attention_heads, config.head_dim, model.dtype, model.device,
        rows=8, positions=9, source_positions=16, source_slots=128,
    )  # fmt: skip


@torch.no_grad()
def test_keys_and_values_of_each_source_are_those_of_its_encoder_states(model):
    """In one batch or several: a row attends to the states of its own source."""
    cache = new_cache(model)
    admissions = [cache.admit(1, 9, number, len(ids)) for number, ids in enumerate(SOURCES)]
    ids, mask = padded(SOURCES, 0, model.device)
    model.prefill(ids[:1], mask[:1], cache, admissions[:1])
    model.prefill(ids[1:, :3], mask[1:, :3], cache, admissions[1:])
    cache.join(admissions)
    heads, size = model.config.decoder.num_attention_heads, model.config.decoder.head_dim
    for place, layer in enumerate(model.decoder.body.encoder.layer):
        q = torch.randn(len(SOURCES), heads, size)
        attended = cache.attend_cross(place, q)
        for row, source in enumerate(SOURCES):
            _, states = model.encoded(torch.tensor([source]), None)
            keys, values = layer.crossattention.source_pair(states)
            weights = (torch.einsum("hd,thd->ht", q[row], keys) / size**0.5).softmax(-1)
            assert (attended[row] - torch.einsum("ht,thd->hd", weights, values)).abs().max() <= 1e-5


def test_a_layer_that_hides_its_cross_attention_is_refused(model):
    class Wrapped(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.inner = layer

    check_prefill(model)
    layers = model.decoder.body.encoder.layer
    layers[0] = Wrapped(layers[0])
    assert cache_layers(model) == len(layers)
    with pytest.raises(UnsupportedError, match="layer 0 of the decoder is a Wrapped"):
        check_prefill(model)


INNER = {"crossattention", "source_pair", "write_sources", "check_sources", "body"}


def reaches(tree):
    """Lines where an attribute of the inside of a decoder is read."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        layers = node.attr == "layer" and isinstance(node.value, ast.Attribute) and node.value.attr == "encoder"
        if layers or node.attr in INNER:
            yield node.lineno


def test_only_the_model_reaches_into_its_layers():
    """Others call `prefill` and `step`. `convert.py` renames the weights of every layer, which is its subject."""
    allowed = {PACKAGE / "model", PACKAGE / "layers", PACKAGE / "dropin", PACKAGE / "convert.py"}
    paths = [path for path in PACKAGE.rglob("*.py") if not allowed & {path, *path.parents}]
    found = [f"{path}:{line}" for path in paths for line in reaches(ast.parse(path.read_text(encoding="utf-8")))]
    assert len(paths) > 80 and found == []
    assert [*reaches(ast.parse("model.decoder.body.encoder.layer[0].crossattention.source_pair(x)"))]
