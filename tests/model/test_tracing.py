"""Graphs recorded from a model: one of a full batch honours the mask of a padded one, or recording is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import bertgen
from bertgen import UnsupportedError
from tests.support.small_pairs import IDS, MASK, own, own_in_4_bits, theirs

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.jit, and of shapes in its traces
FULL = torch.ones_like(IDS)
LEFT = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]])
HOLES = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]])
OTHER = torch.tensor([[5, 6, 7, 8, 9, 11], [9, 10, 0, 0, 0, 0], [9, 10, 3, 5, 0, 0]])


def with_our_attention():
    bertgen.register_with_transformers()
    model = theirs()
    model.set_attn_implementation("bertgen")
    return model


MODELS = {
    "own": lambda folder: own(),
    "own, 4 bits": own_in_4_bits,
    "accelerated": lambda folder: bertgen.accelerate(theirs()),
    "accelerated bert": lambda folder: bertgen.accelerate(theirs("bert")),
    'attn_implementation="bertgen"': lambda folder: with_our_attention(),
}
CALLS = {
    "logits": lambda model, ids, mask: model(ids, attention_mask=mask, decoder_input_ids=ids).logits,
    "both masks": lambda model, ids, mask: (
        model(ids, attention_mask=mask, decoder_input_ids=ids, decoder_attention_mask=mask, use_cache=False).logits
    ),
    "labels": lambda model, ids, mask: model(ids, attention_mask=mask, labels=ids).loss,
    "encoder": lambda model, ids, mask: model.encoder(ids, attention_mask=mask).last_hidden_state * mask[..., None],
    "decoder": lambda model, ids, mask: model.decoder(ids, attention_mask=mask).logits * mask[..., None],
    "states": lambda model, ids, mask: (
        model(ids, attention_mask=mask, decoder_input_ids=ids, output_hidden_states=True).encoder_hidden_states[1]
        * mask[..., None]
    ),
}


class Call(nn.Module):
    """What is recorded."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, ids, mask):
        return self.call(self.model, ids, mask)


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    return MODELS[request.param](tmp_path)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_trace_of_a_full_batch_honours_the_masks_of_others(model, call, grad):
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(Call(model, CALLS[call]), (IDS, FULL), check_trace=False)
        for ids, mask in ((IDS, FULL), (IDS, MASK), (IDS, HOLES), (IDS, LEFT), (OTHER, (OTHER != 0).long())):
            assert (traced(ids, mask) - CALLS[call](model, ids, mask)).abs().max() < 1e-4


def test_a_trace_of_a_padded_batch_is_good_for_a_full_one(model):
    with torch.no_grad():
        traced = torch.jit.trace(Call(model, CALLS["logits"]), (IDS, MASK))
        assert (traced(IDS, FULL) - CALLS["logits"](model, IDS, FULL)).abs().max() < 1e-4


def test_attention_weights_are_traced():
    def weights(model, ids, mask):
        return model(ids, attention_mask=mask, decoder_input_ids=ids, output_attentions=True).cross_attentions[0]

    model = own()
    traced = torch.jit.trace(Call(model, weights), (IDS, FULL))
    assert (traced(IDS, MASK) - weights(model, IDS, MASK)).abs().max() < 1e-5


def test_nothing_that_was_made_in_a_trace_is_kept():
    """Neither by the model, whose next call is no trace, nor by a cache of constants."""
    for model in (own(), with_our_attention()):
        torch.jit.trace(Call(model, CALLS["logits"]), (OTHER[:1], torch.ones_like(OTHER[:1])), check_trace=False)
        expected = CALLS["logits"](copy.deepcopy(model).double(), OTHER[:1], torch.ones_like(OTHER[:1]))
        got = CALLS["logits"](model, OTHER[:1], torch.ones_like(OTHER[:1]))
        assert (got - expected).abs().max() < 1e-4


def test_what_cannot_be_traced_says_so():
    with pytest.raises(UnsupportedError, match="generate cannot be traced"):
        torch.jit.trace(Call(own(), lambda model, ids, mask: model.generate(ids)), (IDS, FULL), check_trace=False)
    with pytest.raises(UnsupportedError, match="use_cache=False"):
        call = Call(own(), lambda model, ids, mask: model.decoder(ids, use_cache=True).logits)
        torch.jit.trace(call, (IDS, FULL), check_trace=False)


def test_a_graph_of_another_recorder_is_right_or_refused(model):
    """Of a full batch, run on a padded one: as the model computes it, or an error, when recorded or when run."""
    call = Call(model, CALLS["both masks"])
    recorders = [
        lambda: torch.export.export(call, (IDS, FULL), strict=False).module(),
        lambda: make_fx(call)(IDS, FULL),
        lambda: make_fx(call, tracing_mode="fake")(IDS, FULL),
        lambda: torch.fx.symbolic_trace(call),
    ]
    right = 0
    with torch.no_grad():
        expected = call(IDS, MASK)
        for record in recorders:
            try:
                got = record()(IDS, MASK)
            except Exception:
                continue
            assert (got - expected).abs().max() < 1e-4
            right += 1
    assert right or isinstance(model, bertgen.EncoderDecoderModel)  # whose masks are read


def test_a_model_runs_on_fake_tensors(model):
    """To learn of shapes and memory."""
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        ids = mode.from_tensor(IDS)
        assert model(ids, decoder_input_ids=ids, use_cache=False).logits.shape == (2, 4, 60)


def test_who_watches_operators_sees_all_of_them(model):
    class Watch(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen.append(str(function))
            return function(*args, **kwargs or {})

    call = CALLS["both masks"]
    with torch.no_grad():
        expected = call(model, IDS, MASK)
        with FlopCounterMode(display=False) as counter:
            got = call(model, IDS, MASK)
        hidden, inner, layers, tokens, pairs = 64, 128, 2, 6, 8
        products = layers * (tokens * (4 * hidden * hidden + 2 * hidden * inner))  # of the encoder
        products += layers * pairs * (6 * hidden * hidden + 2 * hidden * inner) + layers * tokens * 2 * hidden * hidden
        assert counter.get_total_flops() >= 2 * products and (got - expected).abs().max() < 1e-5
        tokens = model.generate(IDS, attention_mask=MASK, max_new_tokens=4)
        with Watch() as watch:
            assert torch.equal(model.generate(IDS, attention_mask=MASK, max_new_tokens=4), tokens)
    assert not [name for name in watch.seen if "decoder_step" in name or ("linear" in name and "bertgen" in name)]


def test_an_ensemble_by_vmap():
    """The recipe of torch.func: the weights of several models, stacked."""
    for make in (own, lambda: bertgen.accelerate(theirs())):
        models = [make(), make()]
        with torch.no_grad():
            models[1].get_submodule("encoder.encoder.layer.0.attention.self.query").weight.mul_(3)
            expected = [CALLS["both masks"](model, IDS, MASK) for model in models]
            weights, buffers = torch.func.stack_module_state(models)
            call = Call(models[0], CALLS["both masks"])

            def run(weights, buffers, call=call):
                named = {f"model.{name}": t for name, t in {**weights, **buffers}.items()}
                return torch.func.functional_call(call, named, (IDS, MASK))

            got = torch.vmap(run)(weights, buffers)
        assert all((a - b).abs().max() < 1e-4 for a, b in zip(got, expected, strict=True))
        assert (got[0] - got[1]).abs().max() > 0.01
