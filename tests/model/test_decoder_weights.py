"""Weights of a decoder that C++ reads: whatever changes in the model takes effect, or C++ declines."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import nn

from bertgen import Int4Config
from bertgen.errors import UnsupportedError
from bertgen.layers.linear import Int4Linear
from bertgen.model.cpp_steps import CppSteps, why_not_cpp_steps
from bertgen.ops import extension
from tests.support.eager_steps import EagerSteps
from tests.support.static_runs import StaticRun, assert_equal, in_4_bits, live_state, make_model, two_runs

pytestmark = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


class Adapter(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x) * 1.5


def first_layer(model: Any) -> Any:
    return model.decoder.body.encoder.layer[0]


def change_in_place(model):
    first_layer(model).intermediate.dense.weight.mul_(1.5)


def change_data(model):
    weight = first_layer(model).attention.self.query.weight
    weight.data = weight.data * 3


def replace_parameter(model):
    dense = first_layer(model).output.dense
    dense.weight = nn.Parameter(dense.weight * -1, requires_grad=False)


def replace_module(model):
    output = first_layer(model).crossattention.output
    output.dense = nn.Linear(*output.dense.weight.shape)


def change_eps(model):
    for module in model.decoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.3


def change_embeddings(model):
    embeddings = model.decoder.body.embeddings
    embeddings.position_embeddings.weight = nn.Parameter(embeddings.position_embeddings.weight * 2)


def change_head_bias(model):
    model.decoder.head.decoder.bias = nn.Parameter(torch.randn_like(model.decoder.head.decoder.bias))


def remove_layer(model):
    del model.decoder.body.encoder.layer[1]


def add_hook(model):
    first_layer(model).output.dense.register_forward_hook(lambda module, inputs, output: output * 1.5)


def add_hook_to_embeddings(model):
    model.decoder.body.embeddings.LayerNorm.register_forward_pre_hook(lambda module, inputs: (-inputs[0],))


def add_adapter(model):
    layer = first_layer(model)
    layer.attention.self.value = Adapter(layer.attention.self.value)


def patch_forward(model):
    dense = first_layer(model).intermediate.dense
    dense.forward = lambda x: nn.functional.linear(x, dense.weight * 2, dense.bias)


def subclass(model):
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    model.decoder.head.decoder.__class__ = Doubled


def subclass_a_parameter(model):
    class Other(nn.Parameter):
        pass

    dense = first_layer(model).output.dense
    dense.weight = Other(dense.weight * 2)


def parametrize(model):
    class Doubled(nn.Module):
        def forward(self, x):
            return x * 2

    nn.utils.parametrize.register_parametrization(first_layer(model).output.dense, "weight", Doubled())


def change_activation(model):
    first_layer(model).intermediate.activation = "relu"


TAKE_EFFECT = [change_in_place, change_data, replace_parameter, replace_module, change_embeddings, change_head_bias]
DECLINE = [
    add_hook, add_hook_to_embeddings, add_adapter, patch_forward, subclass, subclass_a_parameter, parametrize,
    change_activation,
]  # fmt: skip


def check_declines(steps: CppSteps) -> None:
    with pytest.raises(UnsupportedError, match="steps in C"):
        steps.run(2)


def logits_state(run: StaticRun) -> torch.Tensor:
    return run.decoder.searches[0].state["running_scores"]


@pytest.mark.parametrize("change", [*TAKE_EFFECT, *DECLINE], ids=lambda change: change.__name__)
def test_changed_weights(change):
    with torch.inference_mode(False), torch.no_grad():
        model = make_model(random.Random(1), model_type="bert-generation", num_hidden_layers=2)
        for p in model.parameters():
            p.requires_grad_(False)
        python, run = two_runs(model)
        unchanged = two_runs(model)[0]
        steps = CppSteps(run.decoder)
        EagerSteps(python.decoder).run(2)
        CppSteps(unchanged.decoder).run(2)
        steps.run(2)
        CppSteps(unchanged.decoder).run(2)
        change(model)
        before = copy.deepcopy(live_state(run))
        EagerSteps(python.decoder).run(2)
        if change in DECLINE:
            check_declines(steps)
            assert_equal(before, live_state(run))
        else:
            steps.run(2)
            assert_equal(live_state(python), live_state(run))
        assert not torch.allclose(logits_state(unchanged), logits_state(python), atol=1e-4)
        assert (why_not_cpp_steps(model.decoder, 4) is None) == (change not in DECLINE)


def test_changed_norms_and_layers():
    for change in (change_eps, remove_layer):
        model = make_model(random.Random(1), model_type="bert-generation", num_hidden_layers=2)
        python, run = two_runs(model)
        steps = CppSteps(run.decoder)
        for one in (EagerSteps(python.decoder), steps):
            one.run(2)
        change(model)
        for one in (EagerSteps(python.decoder), steps):
            if change is remove_layer:  # the cache has two
                with pytest.raises((RuntimeError, IndexError)):
                    one.run(2)
                    raise IndexError
            else:
                one.run(2)
        assert_equal(live_state(python), live_state(run))


def test_changed_weights_in_4_bits():
    model = make_model(random.Random(2), hidden_size=64, num_attention_heads=4, intermediate_size=96)
    in_4_bits(model, Int4Config(group_size=32, compute_dtype="int8"), head=True)
    python, run = two_runs(model)
    steps = CppSteps(run.decoder)
    for one in (EagerSteps(python.decoder), steps):
        one.run(2)
    parts = [part for part in model.decoder.modules() if type(part) is Int4Linear]
    for part in parts:
        part.config = Int4Config(group_size=32)
    for one in (EagerSteps(python.decoder), steps):
        one.run(2)
    assert_equal(live_state(python), live_state(run))
    parts[-1].config = Int4Config(group_size=32, compute_dtype="int8")
    check_declines(steps)  # products of both kinds


@pytest.mark.parametrize("part", ["", "body", "body.encoder.layer.0.output"])
def test_training_mode_declines(part):
    model = make_model(random.Random(1))
    run, _ = two_runs(model)
    steps = CppSteps(run.decoder)
    steps.run(2)
    model.decoder.get_submodule(part.replace("body", model.decoder.body_name)).train()
    check_declines(steps)
    model.eval()
    assert steps._current_weights() is not None
