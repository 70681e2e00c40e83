"""Projections of attention, its masks, and its result against the equation in float64."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from bertgen import BertGenerationConfig, Int4Config
from bertgen.layers.attention import Attention, AttentionContext, Attentions, dense_mask, project
from bertgen.layers.linear import Int4Linear
from bertgen.packing import Packing
from tests.support.tiny_models import TINY, distance, tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("change", ["deepcopy", "pickle", "dtype", "load"])
def test_projections_are_computed_from_the_weights_as_they_are(change):
    """Whatever users do to models, nothing goes on with an older copy."""
    model = tiny().eval()
    ids = torch.randint(3, 40, (2, 5))
    with torch.no_grad():
        expected = model(ids, labels=ids).logits
        if change == "deepcopy":
            model = copy.deepcopy(model)
        elif change == "pickle":
            model = pickle.loads(pickle.dumps(model))
        elif change == "dtype":
            model.double().float()
        else:
            model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
            model.tie_weights()
        projections = model.decoder.bert.encoder.layer[0].attention.self
        noise = torch.randn_like(projections.value.weight)
        projections.value.weight.data.add_(noise)  # which a stale copy would not see
        changed = model(ids, labels=ids).logits
        projections.value.weight.data.sub_(noise)
        assert distance(model(ids, labels=ids).logits, expected) <= 1e-5 < 0.1 < distance(changed, expected)


@pytest.mark.parametrize("rows", [4, 100])
def test_projections_lie_anywhere(rows):
    """A file that was mapped into memory is one storage; its tensors may lie in any order, or be strided."""
    layers = [torch.nn.Linear(8, 8) for _ in range(3)]
    x = torch.randn(rows, 8)
    with torch.no_grad():
        expected = [layer(x) for layer in layers]
        for name in ("weight", "bias"):
            whole = torch.cat([getattr(layer, name) for layer in reversed(layers)])
            for layer, piece in zip(reversed(layers), whole.chunk(3)):
                getattr(layer, name).data = piece
        assert all(distance(a, b) <= 1e-6 for a, b in zip(project(x, *layers), expected))
        layers[1].weight.data = layers[1].weight.data.t().contiguous().t()
        layers[2].bias.data = layers[2].bias.data.repeat_interleave(2)[::2]
        assert all(distance(a, b) <= 1e-6 for a, b in zip(project(x, *layers), expected))


@pytest.mark.parametrize(
    "other", [dict(bias=False), dict(out_features=12), dict(dtype=torch.float64), "hooked", "int4"], ids=str
)
def test_projections_of_several_kinds_are_each_what_they_are(other):
    first, last = torch.nn.Linear(32, 8), torch.nn.Linear(32, 8)
    x = torch.randn(4, 32)
    if other == "int4":
        layer = Int4Linear.from_linear(torch.nn.Linear(32, 8), Int4Config(group_size=32))
    elif other == "hooked":
        layer = torch.nn.Linear(32, 8)
        layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    else:
        layer = torch.nn.Linear(**{"in_features": 32, "out_features": 8, **other})
    with torch.no_grad():
        if other == dict(dtype=torch.float64):
            with pytest.raises(RuntimeError, match="dtype"):
                project(x, first, layer, last)
            return
        for some in ((first, layer, last), (layer, first, last)):
            assert all(distance(a, part(x)) <= 1e-6 for a, part in zip(project(x, *some), some))


def test_the_mask_of_a_context_is_that_of_its_parts():
    """Of rows of 3 and 2 tokens after 2 past ones: [B, 1, queries or 1, keys]."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    tokens = Packing.of_mask(mask, 2, 3, CPU)
    assert dense_mask(AttentionContext(Packing.full(2, 3, CPU)), 3) is None
    assert dense_mask(AttentionContext(tokens), 3).tolist() == mask.bool()[:, None, None].tolist()
    full = Packing.full(2, 3, CPU)
    causal = dense_mask(AttentionContext(full, causal=True), 5)
    assert causal.int().tolist() == [[[[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]]]
    lengths = dense_mask(AttentionContext(full, key_len=torch.tensor([5, 1])), 5)
    assert lengths.int().tolist() == [[[[1, 1, 1, 1, 1]]], [[[1, 0, 0, 0, 0]]]]
    seen = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    both = dense_mask(AttentionContext(full, causal=True, key_mask=seen), 5)
    assert torch.equal(both, causal & seen[:, None, None])
    replaced = torch.zeros(2, 1, 3, 5)
    assert dense_mask(AttentionContext(full, causal=True, key_mask=seen, mask=replaced), 5) is replaced


@pytest.mark.parametrize("collected", [True, False], ids=["weights", "no weights"])
@pytest.mark.parametrize("cross", [True, False], ids=["cross", "self"])
def test_attention_is_its_equation(cross, collected):
    """LayerNorm(dense(softmax(q k^T / sqrt(d)) v) + x) in float64, of a row of 4 tokens and one of 2."""
    torch.manual_seed(0)
    config = BertGenerationConfig(**TINY, add_cross_attention=True)
    block = Attention(config, 0, cross=cross).eval()
    tokens = Packing.of_mask(torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), 2, 4, CPU)
    source = Packing.of_mask(torch.tensor([[1, 1, 0], [1, 1, 1]]), 2, 3, CPU)
    x, states = torch.randn(6, 32), torch.randn(5, 32)
    context = AttentionContext(
        tokens, causal=not cross, source=(states, source) if cross else None,
        attentions=Attentions() if collected else None,
    )  # fmt: skip
    with torch.no_grad():
        got = block(x, context)
    exact = copy.deepcopy(block).double()
    rows, keys = (slice(0, 4), slice(4, 6)), (slice(0, 2), slice(2, 5)) if cross else (slice(0, 4), slice(4, 6))
    for row, (mine, theirs) in enumerate(zip(rows, keys)):
        inputs, memory = x[mine].double(), (states if cross else x)[theirs].double()
        q, k, v = exact.self.query(inputs), exact.self.key(memory), exact.self.value(memory)
        q, k, v = (t.view(len(t), block.heads, block.head_dim).transpose(0, 1) for t in (q, k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(block.head_dim)
        if not cross:
            scores = scores.masked_fill(~torch.ones(len(inputs), len(inputs), dtype=torch.bool).tril(), -math.inf)
        weights = scores.softmax(-1)
        out = (weights @ v).transpose(0, 1).reshape(len(inputs), -1)
        expected = exact.output.LayerNorm(exact.output.dense(out) + inputs)
        assert distance(got[mine].double(), expected) <= 1e-5
        if collected:
            (weight,) = context.attentions.cross if cross else context.attentions.own
            assert distance(weight[row, :, : len(inputs), : len(memory)].double(), weights) <= 1e-5
