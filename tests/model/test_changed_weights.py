"""Weights that change between two calls: every call computes with the weights as they are."""

from __future__ import annotations

import copy

import pytest
import torch

from bertgen import EncoderDecoderConfig, EncoderDecoderModel, GenerationConfig
from bertgen.decoding import resolve_generation_config
from bertgen.engine import Engine, Request

NEW = 32
IDS = torch.tensor([[5, 6, 7], [8, 9, 0]])


def make() -> EncoderDecoderModel:
    half = dict(
        vocab_size=520, hidden_size=512, num_hidden_layers=1, num_attention_heads=8, intermediate_size=512,
        initializer_range=0.05, max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    decoder = dict(half, is_decoder=True, add_cross_attention=True)
    torch.manual_seed(0)
    config = EncoderDecoderConfig(encoder=half, decoder=decoder, pad_token_id=0, decoder_start_token_id=2)
    return EncoderDecoderModel(config).eval()


@pytest.fixture(scope="module")
def made():
    return make().state_dict()


@pytest.fixture
def model(made):
    model = make()
    model.load_state_dict(made)
    return model


def generate(model):
    """The scores of every step [steps, rows, vocabulary]."""
    call = dict(max_new_tokens=NEW, min_new_tokens=NEW, return_dict_in_generate=True, output_scores=True)
    return torch.stack(model.generate(IDS, **call).scores)


def distance(a, b):
    both = a.isfinite() & b.isfinite()
    assert torch.equal(a.isfinite(), b.isfinite())
    return float((a - b)[both].abs().max())


def fresh(model):
    """A new model with the same weights."""
    other = make()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    return other


def step(model):
    """One update of fused AdamW, which does not count as a new version of a parameter."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    model(IDS, decoder_input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    model.zero_grad()
    model.eval()


def load(model):
    model.load_state_dict(other_weights(model))


def assign(model):
    model.load_state_dict(other_weights(model), assign=True)
    model.tie_weights()


def other_weights(model):
    torch.manual_seed(1)
    return {name: torch.randn_like(value) * 0.05 for name, value in model.state_dict().items()}


def move(model):
    """There and back again: other addresses, half of the digits."""
    model.bfloat16().float()


def vector(model):
    values = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.nn.utils.vector_to_parameters(values * 1.1, model.parameters())


@torch.inference_mode()
def in_inference_mode(model):
    for parameter in model.parameters():
        parameter.mul_(1.1)


def data(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.1)


def one_value(model):
    with torch.no_grad():
        weight_of(model)[3, 5] += 50.0


def one_row_of_data(model):
    weight_of(model).data[300] = 3 * torch.randn(512)


def one_column_of_numpy(model):
    weight_of(model).detach().numpy()[:, 300] = 3.0


def weight_of(model):
    return model.decoder.bert.encoder.layer[0].intermediate.dense.weight


def value_projection(model):
    """The last part of a fused weight, whose view has no version."""
    with torch.no_grad():
        model.decoder.bert.encoder.layer[0].attention.self.value.weight[3, 5] += 50.0


CHANGES = [
    step, load, assign, move, vector, in_inference_mode, data, one_value, value_projection, one_row_of_data,
    one_column_of_numpy,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_generating_after_a_change_is_generating_with_a_fresh_model(model, change):
    generate(model)
    before = generate(model)
    change(model)
    after = generate(model)
    assert distance(after, generate(fresh(model))) <= 1e-4
    assert distance(after, before) > 1e-3


def answer(engine):
    """The log-probability of what an engine chooses."""
    options = resolve_generation_config(GenerationConfig(decoder_start_token_id=2, pad_token_id=0, max_new_tokens=NEW))
    done = []
    engine.submit([Request([5, 6, 7], options, scored=True)], done.append)
    while not done:
        engine.step()
    return torch.tensor(done[0].scores)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_engine_that_lives_on_sees_the_change(model, change):
    engine = Engine(model)
    before = answer(engine)
    change(model)
    after = answer(engine)
    assert distance(after, answer(Engine(fresh(model)))) <= 1e-4
    assert distance(after, before) > 1e-5
