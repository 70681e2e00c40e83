"""A stack with removed, moved, shared or wrapped layers: all calls give the same results."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bertgen import AutoTokenizer, EncoderDecoderModel, Generator, InputError, UnsupportedError
from tests.support.small_pairs import IDS, MASK, own

START = torch.tensor([[2], [2]])


def layers(model):
    return model.decoder.bert.encoder.layer


def put(model, *chosen):
    model.decoder.bert.encoder.layer = nn.ModuleList(chosen)


class Wrapped(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.wrapped = layer

    def forward(self, x, context):
        return self.wrapped(x, context) * 0.5


class Skipped(nn.Module):
    def forward(self, x, context):
        return x


def compile_layers(model):
    for place, layer in enumerate(layers(model)):
        layers(model)[place] = torch.compile(layer, backend="eager")


def share_attention(model):
    layers(model)[0].attention = layers(model)[1].attention
    layers(model)[0].crossattention = layers(model)[1].crossattention


def replace_activations(model):
    for layer in layers(model):
        layer.intermediate.intermediate_act_fn = nn.ReLU()


def replace_activations_by_functions(model):
    for layer in layers(model):
        layer.intermediate.intermediate_act_fn = torch.tanh


CHANGES = {
    "the last is removed": lambda model: layers(model).pop(1),
    "the first is removed": lambda model: layers(model).pop(0),
    "some are taken": lambda model: put(model, *layers(model)[1:]),
    "they change places": lambda model: put(model, layers(model)[1], layers(model)[0]),
    "one comes twice": lambda model: put(model, layers(model)[1], layers(model)[0], layers(model)[1]),
    "a copy comes behind": lambda model: layers(model).append(copy.deepcopy(layers(model)[0])),
    "two share their attention": share_attention,
    "they are compiled": compile_layers,
    "another activation": replace_activations,
    "a function as activation": replace_activations_by_functions,
}
HIDDEN = {
    "one is wrapped": lambda model: put(model, layers(model)[0], Wrapped(layers(model)[1])),
    "one is skipped": lambda model: put(model, Skipped(), layers(model)[1]),
}


def without_a_cache(model, ids, mask, steps):
    """The likeliest tokens, each by a forward of all that is there so far."""
    found = START[: len(ids)]
    for _ in range(steps):
        with torch.no_grad():
            logits = model(ids, mask, decoder_input_ids=found, use_cache=False).logits
        found = torch.cat((found, logits[:, -1:].argmax(-1)), 1)
    return found


def logits(model):
    with torch.no_grad():
        return model(IDS, MASK, decoder_input_ids=IDS, use_cache=False).logits


def changed(model, change):
    """The model, changed after it has run."""
    model.generation_config.eos_token_id = None
    model.generate(IDS, attention_mask=MASK, max_new_tokens=2)
    before = logits(model)
    change(model)
    assert torch.allclose(logits(model), before, atol=1e-5) == (change is compile_layers)
    return model


def strong():
    """A model in which every layer counts."""
    model = own()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer" in name and name.endswith("weight") and "Norm" not in name:
                parameter.mul_(4)
    return model


def demo():
    return EncoderDecoderModel.from_pretrained("demo")


@pytest.mark.parametrize("extension", [True, False], ids=["cpp", "python"])
@pytest.mark.parametrize("change", [*CHANGES, *HIDDEN])
def test_changed_layers_give_the_same_tokens_with_a_cache_and_without(change, extension, monkeypatch):
    if not extension:
        monkeypatch.setattr("bertgen.layers.stack.decoder_step", lambda *arguments: None)
    model = changed(strong(), (CHANGES | HIDDEN)[change])
    expected = without_a_cache(model, IDS, MASK, 8)
    found = model.generate(IDS, attention_mask=MASK, max_new_tokens=8)
    assert found.tolist() == expected.tolist()
    with torch.no_grad():
        given = dict(encoder_outputs=model.encoder(IDS, MASK), attention_mask=MASK)
        cache = model(decoder_input_ids=expected[:, :3], **given).past_key_values
        rest = model(decoder_input_ids=expected[:, 3:], past_key_values=cache, **given).logits
        plain = model(decoder_input_ids=expected, use_cache=False, **given).logits
    torch.testing.assert_close(rest, plain[:, 3:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", CHANGES)
def test_a_generator_runs_changed_layers(change):
    tokenizer, texts = AutoTokenizer.from_pretrained("demo"), ["Hello.", "Where is the station?"]
    model = changed(demo(), CHANGES[change])
    for text, output in zip(texts, Generator(model, tokenizer).generate(texts, max_new_tokens=8, num_beams=1)):
        ids = tokenizer(text, return_tensors="pt").input_ids
        expected = without_a_cache(model, ids, None, 8)[0, 1:].tolist()
        assert list(output.token_ids) == expected[: len(output.token_ids)] and output.token_ids


@pytest.mark.parametrize("change", HIDDEN)
def test_a_generator_refuses_a_layer_whose_keys_of_a_source_it_cannot_compute(change):
    generator = Generator(changed(demo(), HIDDEN[change]), AutoTokenizer.from_pretrained("demo"))
    with pytest.raises(UnsupportedError, match="layer [01] of the decoder is a (Wrapped|Skipped)"):
        generator.generate(["Hello."], max_new_tokens=2)
    assert generator.score(["Hello."], ["Hallo."])


def test_a_cache_of_other_layers_is_refused():
    model = changed(own(), lambda model: layers(model).pop(1))
    with torch.no_grad():
        cache = own()(IDS, MASK, decoder_input_ids=START).past_key_values
    with pytest.raises(InputError, match="past_key_values hold 2 layers .* the model has 1 of"):
        model(IDS, MASK, decoder_input_ids=START, past_key_values=cache)
