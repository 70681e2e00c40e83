"""What torch.compile makes one graph of: the packed core, a forward without a mask, a step of decoding."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from bertgen import EncoderDecoderModel, Int4Config
from bertgen.layers.attention import AttentionContext
from bertgen.layers.linear import Int4Linear
from bertgen.packing import Packing
from tests.support.model_kinds import HALVES, KINDS, TINY
from tests.support.tiny_models import distance

CPU = torch.device("cpu")
COMPILER = os.environ.get("CXX", "g++")
COMPILES = [pytest.mark.long, pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"there is no {COMPILER}")]


@pytest.fixture(autouse=True)
def _anew():
    torch.manual_seed(0)
    torch._dynamo.reset()


def half(kind: str, part: int, **options):
    """An encoder (part 1) or decoder (part 2) of one layer, without dropout."""
    shape = TINY | dict(num_hidden_layers=1)
    config = HALVES[kind][0](**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **options)
    return HALVES[kind][part](config)


def pair(kind: str) -> EncoderDecoderModel:
    model = EncoderDecoderModel(encoder=half(kind, 1), decoder=half(kind, 2, is_decoder=True, add_cross_attention=True))
    model.config.pad_token_id, model.config.decoder_start_token_id = 0, 2
    return model


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("decoder", [False, True])
def test_a_stack_is_one_graph(grad, decoder):
    config, encoder, _ = HALVES["bert-generation"]  # the other kinds have the same stack
    stack = encoder(config(**TINY, is_decoder=decoder, add_cross_attention=decoder)).eval().encoder
    x, states = torch.randn(11, 32), torch.randn(9, 32)
    if not decoder:
        mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
        context = AttentionContext(Packing.of_mask(mask, 2, 6, CPU))
    else:
        source = Packing.of_mask(torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]), 2, 5, CPU)
        tokens = Packing.of_mask(torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]), 2, 6, CPU)
        context = AttentionContext(tokens, causal=True, source=(states, source))
    compiled = torch.compile(lambda x: stack(x, context), fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        expected, got = stack(x, context), compiled(x)
        assert distance(got, expected) <= 1e-5
    if grad:
        weights = list(stack.parameters())
        for a, b in zip(*(torch.autograd.grad(y.square().sum(), weights, allow_unused=True) for y in (got, expected))):
            assert a is None or distance(a, b) <= 1e-3


@pytest.mark.parametrize("config", [Int4Config(), Int4Config(symmetric=False), Int4Config("nf4")], ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_a_layer_in_4_bits_is_one_graph(config, grad):
    layer = Int4Linear.from_linear(torch.nn.Linear(128, 48), config)
    x = torch.randn(2, 3, 128, requires_grad=grad)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected, got = layer(x), compiled(x)
    assert distance(got, expected) <= 1e-5
    if grad:
        assert distance(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (got, expected))) <= 1e-3


IDS = torch.tensor([[5, 9, 3, 7, 8, 4], [6, 3, 11, 5, 9, 7]])
LABELS = torch.tensor([[7, 0, 5, 3, -100], [9, -100, 4, -100, -100]])  # padding between labels, and none after the last


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train", [True, False])
def test_a_forward_with_labels_is_one_graph(kind, train):
    model = pair(kind).train(train)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(train):
        expected, got = model(IDS, labels=LABELS), compiled(IDS, labels=LABELS)
        assert distance(got.loss, expected.loss) <= 1e-5 and distance(got.logits, expected.logits) <= 1e-5
    assert not got.logits[1, 3:].any() and got.logits[1, 2].any()
    if train:
        weights = {name: p for name, p in model.named_parameters() if "pooler" not in name}
        ours, theirs = (torch.autograd.grad(out.loss, list(weights.values())) for out in (got, expected))
        for name, a, b in zip(weights, ours, theirs):
            assert distance(a, b) <= 1e-5, name


@pytest.mark.parametrize("kind", KINDS)
def test_halves_without_a_mask_are_one_graph(kind):
    encoder, decoder = half(kind, 1).eval(), half(kind, 2, is_decoder=True).eval()
    model = pair(kind).eval()
    compiled = torch.compile(run_halves, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for ours, expected in zip(compiled(encoder, decoder, model), run_halves(encoder, decoder, model), strict=True):
            assert distance(ours, expected) <= 1e-5


def run_halves(encoder, decoder, model):
    own = decoder(IDS, labels=IDS, use_cache=False)
    both = model(IDS, decoder_input_ids=IDS[:, :4], labels=IDS[:, :4], use_cache=False)
    alone = decoder(IDS[:, :5], use_cache=False)
    return encoder(IDS).last_hidden_state, own.loss, own.logits, both.loss, both.logits, alone.logits


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        *((kind, "aot_eager") for kind in KINDS),
        pytest.param("bert-generation", "inductor", marks=COMPILES),
    ],
)
@torch.no_grad()
def test_a_step_of_decoding_is_one_graph_for_all_lengths(kind, backend):
    decoder = half(kind, 2, is_decoder=True, add_cross_attention=True).eval()
    states, tokens = torch.randn(2, 4, 32), torch.randint(3, 37, (2, 18))
    tokens[0, 5] = 0  # which a roberta half does not count
    graphs = CompileCounterWithBackend(backend)
    step = torch.compile(decoder.step, fullgraph=True, backend=graphs)
    cache, plain = (
        decoder(tokens[:, :3], encoder_hidden_states=states, use_cache=True).past_key_values for _ in range(2)
    )
    context, other = AttentionContext.of_step(cache), AttentionContext.of_step(plain)
    for t in range(3, 17):
        cache.begin(1), plain.begin(1)
        got, expected = step(tokens[:, t], context), decoder.step(tokens[:, t], other)
        cache.advance(1), plain.advance(1)
        assert distance(got, expected) <= 1e-5
    assert cache.length == 17 and graphs.frame_count <= 2  # at 16 positions the pools grew
    cache.begin(1)
    whole = decoder(tokens, encoder_hidden_states=states, use_cache=False).logits
    if kind != "roberta":  # there a cached padding token counts as a position
        assert distance(step(tokens[:, 17], context), whole[:, -1]) <= 1e-5
    cache.advance(1)
    cache.select(torch.tensor([1]))
    cache.begin(1)
    step(tokens[:1, 3], AttentionContext.of_step(cache))
    assert graphs.frame_count <= 3


def test_a_forward_that_would_make_a_cache_makes_none_in_a_graph():
    """A cache allocates its slots on the host: an explicit use_cache=True runs outside of the graph, or is an error."""
    model = pair("bert-generation").eval()
    given = dict(input_ids=torch.tensor([[5, 6, 7], [8, 9, 4]]), decoder_input_ids=torch.tensor([[2, 5], [2, 6]]))
    for mask in (None, torch.tensor([[1, 1, 1], [1, 1, 0]])):
        with torch.no_grad():
            found = torch.compile(model, backend="eager")(**given, attention_mask=mask)
            expected = model(**given, attention_mask=mask)
        assert found.past_key_values is None and expected.past_key_values is not None
        torch.testing.assert_close(found.logits, expected.logits)
    torch._dynamo.reset()
    with torch.no_grad():
        found, expected = (one(**given, use_cache=True) for one in (torch.compile(model, backend="eager"), model))
        torch.testing.assert_close(found.logits, expected.logits)
        more = dict(input_ids=given["input_ids"], decoder_input_ids=torch.tensor([[4], [7]]))
        one, other = (model(**more, past_key_values=cache).logits for cache in (found.cache, expected.cache))
        torch.testing.assert_close(one, other)
    torch._dynamo.reset()  # what is known to run outside of a graph is not compiled again
    with pytest.raises(torch._dynamo.exc.Unsupported), torch.no_grad():
        torch.compile(model, backend="eager", fullgraph=True)(**given, use_cache=True)
