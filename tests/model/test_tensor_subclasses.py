"""Weights of subclasses of torch.Tensor: their class multiplies them, and no kernel takes pointers to them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map

import bertgen
from bertgen import GenerationConfig
from bertgen.decoding import resolve_generation_config
from bertgen.engine import Engine, Request
from bertgen.layers.linear import Int4Linear
from tests.support.small_pairs import IDS, MASK, own, theirs


class Rounded(torch.Tensor):
    """A weight in 8 bits, in the way of torchao: a tensor that has no memory of its own but two tensors in it."""

    @staticmethod
    def __new__(cls, whole, scale):
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=scale.dtype, device=scale.device)

    def __init__(self, whole, scale):
        self.whole, self.scale = whole, scale

    @classmethod
    def of(cls, weight):
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def dequantize(self):
        return self.whole * self.scale

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (F.linear, F.embedding, F.layer_norm):
            args, kwargs = tree_map(lambda t: t.dequantize() if isinstance(t, cls) else t, (args, kwargs or {}))
            return function(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].whole.clone(), args[0].scale.clone())
        raise NotImplementedError(f"{function} of a weight in 8 bits")


class Meant(nn.Parameter):
    """A class of parameters whose elements mean something else, as those of bitsandbytes: twice what they say."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            args = tuple(2 * t if isinstance(t, cls) and function is F.linear else t for t in args)
            return function(*args, **kwargs or {})


MODELS = {
    "own": own,
    "accelerated": lambda: bertgen.accelerate(theirs()),
    "accelerated bert": lambda: bertgen.accelerate(theirs("bert")),
    "accelerated, quantized before": lambda: theirs(),
    'attn_implementation="bertgen"': lambda: with_our_attention(),
}
PARTS = {
    "all linear layers": lambda path, module: isinstance(module, nn.Linear),
    "all but the head": lambda path, module: isinstance(module, nn.Linear) and "lm_head" not in path,
    "one key": lambda path, module: path.endswith("0.attention.self.key"),
    "embeddings": lambda path, module: isinstance(module, nn.Embedding),
    "norms": lambda path, module: isinstance(module, nn.LayerNorm) and "decoder" in path,
}


def with_our_attention():
    bertgen.register_with_transformers()
    model = theirs()
    model.set_attn_implementation("bertgen")
    return model


def logits_and_tokens(model):
    with torch.no_grad():
        found = [model(IDS, attention_mask=MASK, decoder_input_ids=IDS).logits]
        found.append(model(IDS.repeat(60, 1), decoder_input_ids=IDS.repeat(60, 1)).logits)
    for beams in (1, 3):
        call = dict(max_new_tokens=4, min_new_tokens=4, num_beams=beams, return_dict_in_generate=True)
        outputs = model.generate(IDS, attention_mask=MASK, output_logits=True, **call)
        found += [torch.stack(outputs.logits), outputs.sequences]
    return found


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", MODELS)
def test_such_a_weight_is_multiplied_as_its_class_says(name, part):
    model = MODELS[name]()
    plain = copy.deepcopy(model)
    for path, module in list(model.named_modules()):
        if PARTS[part](path, module):
            weight = module.weight.detach()
            weight = weight[:, None] if weight.dim() == 1 else weight  # the norms' rows are their elements
            rounded = Rounded.of(weight)
            if module.weight.dim() == 1:
                rounded = Rounded(rounded.whole[:, 0], rounded.scale[:, 0])
            module.weight = nn.Parameter(rounded, requires_grad=False)
            plain.get_submodule(path).weight = nn.Parameter(rounded.dequantize())
    if name == "accelerated, quantized before":
        bertgen.accelerate(model)
    for got, expected in zip(logits_and_tokens(model), logits_and_tokens(plain), strict=True):
        assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["own", "accelerated"])
def test_a_class_of_parameters_too(name):
    model = MODELS[name]()
    plain = copy.deepcopy(model)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lm_head" not in path:
            module.weight = Meant(module.weight.detach())
            plain.get_submodule(path).weight = nn.Parameter(2 * module.weight.detach().as_subclass(torch.Tensor))
    for got, expected in zip(logits_and_tokens(model), logits_and_tokens(plain), strict=True):
        assert (got - expected).abs().max() < 1e-4


def test_the_engine_multiplies_so_too():
    model = own()
    plain = copy.deepcopy(model)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(Rounded.of(module.weight.detach()), requires_grad=False)
            plain.get_submodule(path).weight = nn.Parameter(module.weight.dequantize())
    options = resolve_generation_config(
        GenerationConfig(decoder_start_token_id=2, pad_token_id=0, max_new_tokens=6, num_beams=2)
    )
    found = []
    for one in (model, plain):
        engine, done = Engine(one), []
        engine.submit([Request([5, 6, 7], options, scored=True)], done.append)
        while not done:
            engine.step()
        found.append(torch.tensor(done[0].scores))
    assert (found[0] - found[1]).abs().max() < 1e-4


@pytest.mark.parametrize("part", ["packed", "scale", "bias"])
def test_layers_in_4_bits(part):
    """Their own forward is all there is: with another class of tensor in it, it runs without C++."""

    class Counted(torch.Tensor):
        uses = 0

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            Counted.uses += 1
            return super().__torch_function__(function, types, args, kwargs)

    model = bertgen.accelerate(theirs(), quantization="int4")
    expected = logits_and_tokens(model)
    for module in model.modules():
        if isinstance(module, Int4Linear):
            tensor = getattr(module, part).detach().as_subclass(Counted)
            module._parameters[part] = nn.Parameter(tensor, requires_grad=False)
    for got, wanted in zip(logits_and_tokens(model), expected, strict=True):
        assert (got - wanted).abs().max() < 1e-3
    assert Counted.uses > 0


def test_a_hook_on_a_layer_in_4_bits_is_called():
    layer = Int4Linear.from_linear(nn.Linear(64, 8))
    x = torch.randn(3, 64)
    expected = layer(x)
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert torch.equal(layer(x), 2 * expected)
