"""Hooks, replaced modules and patched code act in an accelerated model as in transformers, at any time.

Each change is made to a transformers model and to an accelerated copy. It must have an effect, the same one in both.
"""

from __future__ import annotations

import copy
import functools

import accelerate.hooks
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.nn.utils import prune
from transformers.modeling_utils import AttentionInterface
from transformers.models.bert_generation import modeling_bert_generation as modeling
from transformers.models.roberta import modeling_roberta

import bertgen
from bertgen.dropin import cache_argument
from tests.support.dropin_models import SIZES, batch, distance, halve_output, last_layer, layer, make_model


class Scaled(nn.Dropout):
    def forward(self, x):
        return x * 0.5


class OwnLinear(nn.Linear):
    """Depends on positions."""

    def forward(self, x):
        assert x.dim() == 3
        return super().forward(x) * torch.linspace(1, 2, x.shape[1])[:, None]


class OwnOutput(nn.Module):
    def __init__(self, former):
        super().__init__()
        self.dense, self.LayerNorm, self.dropout = former.dense, former.LayerNorm, former.dropout

    def forward(self, hidden_states, input_tensor):
        return self.LayerNorm(self.dense(hidden_states)) + input_tensor


def own_linear(former):
    made = OwnLinear(former.in_features, former.out_features)
    made.weight, made.bias = former.weight, former.bias
    return made


def by_position(module, args, output):
    """A forward hook on a leaf that expects [batch, position, hidden], like that of NEFTune."""
    return output * (1 + torch.arange(output.size(1))[:, None] / output.size(2))


def changed(output, **fields):
    for name, value in fields.items():
        output[name] = value
    return output


def with_half(forward):
    """A wrapper of a forward with the same attributes."""

    @functools.wraps(forward)
    def patched(*args, **kwargs):
        return halve_output(None, None, forward(*args, **kwargs))

    return patched


def own_forward(module):
    module.forward = with_half(module.forward)


class Halving(accelerate.hooks.ModelHook):
    def post_forward(self, module, output):
        return halve_output(module, None, output)


def weight_norm(module):
    torch.nn.utils.weight_norm(module)
    with torch.no_grad():
        module.weight_g.mul_(1.5)


def parametrization(module):
    torch.nn.utils.parametrizations.weight_norm(module)
    with torch.no_grad():
        module.parametrizations.weight.original0.mul_(1.5)


def uniform_attention(module, query, key, value, attention_mask, **kwargs):
    """Attention with equal weights."""
    return value.mean(2, keepdim=True).expand(-1, -1, query.shape[2], -1).transpose(1, 2).contiguous(), None


def own_attention(model):
    AttentionInterface.register("uniform", uniform_attention)
    model.set_attn_implementation("uniform")


def set_config(half, **values):
    for name, value in values.items():
        setattr(half.config, name, value)


# Changes of one model.
MODEL_CHANGES = {
    "a hook on an activation": lambda m: layer(m).intermediate.intermediate_act_fn.register_forward_hook(halve_output),
    "a hook before a dropout": lambda m: last_layer(m).output.dropout.register_forward_pre_hook(
        lambda module, args: (args[0] * 0.5,)
    ),
    "a hook on the dropout of embeddings": lambda m: m.encoder.embeddings.dropout.register_forward_hook(halve_output),
    "another dropout": lambda m: setattr(layer(m).output, "dropout", Scaled()),
    "another dropout of embeddings": lambda m: setattr(m.encoder.embeddings, "dropout", Scaled()),
    "no module as dropout": lambda m: (
        setattr(layer(m).output, "dropout", nn.Identity()), setattr(layer(m).output.LayerNorm, "eps", 3.0)
    ),
    "another activation": lambda m: setattr(last_layer(m).intermediate, "intermediate_act_fn", nn.Tanh()),
    "a function in an activation": lambda m: setattr(last_layer(m).intermediate.intermediate_act_fn, "act", F.relu),
    "scaling": lambda m: setattr(layer(m).attention.self, "scaling", 3.0),
    "scaling of cross-attention": lambda m: setattr(last_layer(m).crossattention.self, "scaling", 3.0),
    "the size of heads": lambda m: setattr(last_layer(m).attention.self, "attention_head_size", 16),
    "chunks of a layer": lambda m: (
        setattr(layer(m), "chunk_size_feed_forward", 1), layer(m).intermediate.register_forward_hook(halve_output)
    ),
    "eps of a LayerNorm": lambda m: setattr(layer(m).output.LayerNorm, "eps", 3.0),
    "a buffer of positions": lambda m: m.encoder.embeddings.position_ids.copy_(torch.arange(40).flip(0)[None]),
    "other positions": lambda m: setattr(m.encoder.embeddings, "position_ids", torch.arange(40).flip(0)[None]),
    "fewer layers": lambda m: setattr(m.encoder.encoder, "layer", m.encoder.encoder.layer[:1]),
    "more layers": lambda m: m.encoder.encoder.layer.append(copy.deepcopy(layer(m))),
    "layers in another order": lambda m: setattr(m.encoder.encoder, "layer", m.encoder.encoder.layer[::-1]),
    "a custom module": lambda m: setattr(layer(m), "output", OwnOutput(layer(m).output)),
    "a half that is wrapped": lambda m: setattr(m, "encoder", Wrapped(m.encoder)),
    "a custom layer": lambda m: setattr(layer(m).intermediate, "dense", own_linear(layer(m).intermediate.dense)),
    "another kind of norm": lambda m: setattr(layer(m).output, "LayerNorm", nn.RMSNorm(32)),
    "a hook on a Linear": lambda m: last_layer(m).intermediate.dense.register_forward_hook(by_position),
    "a hook on a LayerNorm": lambda m: layer(m).output.LayerNorm.register_forward_hook(by_position),
    "a hook on word embeddings": lambda m: m.get_input_embeddings().register_forward_hook(by_position),
    "a hook on position embeddings": lambda m: m.encoder.embeddings.position_embeddings.register_forward_hook(
        lambda module, args, output: output * 2
    ),
    "a hook before a Linear": lambda m: layer(m).attention.self.query.register_forward_pre_hook(
        lambda module, args: (args[0].flip(1),)
    ),
    "a hook on the head": lambda m: m.decoder.lm_head.decoder.register_forward_hook(by_position),
    "a hook on a layer": lambda m: layer(m, 1).register_forward_hook(halve_output),
    "a hook on an attention": lambda m: last_layer(m).crossattention.self.register_forward_hook(halve_output),
    "a hook on the encoder": lambda m: m.encoder.encoder.register_forward_hook(
        lambda module, args, output: changed(output, last_hidden_state=output.last_hidden_state * 0.5)
    ),
    "hooks replaced": lambda m: setattr(layer(m).output.dense, "_forward_hooks", {9: halve_output}),
    "a hook on the whole": lambda m: m.register_forward_hook(
        lambda module, args, output: changed(output, logits=output.logits.flip(-1))
    ),
    "a hook before the decoder": lambda m: m.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "encoder_hidden_states": -kwargs["encoder_hidden_states"]}),
        with_kwargs=True,
    ),
    "a hook on the decoder": lambda m: m.decoder.register_forward_hook(
        lambda module, args, output: changed(output, logits=output.logits.flip(-1))
    ),
    "a custom forward": lambda m: own_forward(layer(m).attention),
    "a forward of a leaf": lambda m: own_forward(last_layer(m).output.dense),
    "a forward of an activation": lambda m: own_forward(last_layer(m).intermediate.intermediate_act_fn),
    "a forward of the decoder": lambda m: setattr(
        m.decoder, "forward", functools.partial(flipped, m.decoder.forward)
    ),
    "a forward of the whole": lambda m: setattr(m, "forward", functools.partial(flipped, m.forward)),
    "another method of a layer": lambda m: setattr(layer(m), "feed_forward_chunk", lambda x: x * 0.5),
    "hooks of accelerate": lambda m: accelerate.hooks.add_hook_to_module(layer(m).attention, Halving()),
    "hooks of accelerate on the whole": lambda m: accelerate.hooks.add_hook_to_module(m, FlippedHook()),
    "weight norm, which is a hook": lambda m: weight_norm(layer(m).output.dense),
    "spectral norm, which is a hook": lambda m: torch.nn.utils.spectral_norm(layer(m).output.dense).eval(),
    "a parametrization": lambda m: parametrization(last_layer(m).output.dense),
    "pruned weights": lambda m: prune.l1_unstructured(layer(m).output.dense, "weight", amount=0.5),
    "a custom attention": own_attention,
    "a configuration that is not causal": lambda m: set_config(m.decoder, is_causal=False),
    "modes that differ": lambda m: (
        setattr(layer(m).attention.self.dropout, "p", 1.0), layer(m).attention.self.dropout.train(),
        layer(m).intermediate.intermediate_act_fn.register_forward_hook(halve_output),
    ),
    "prepare_inputs_for_generation": lambda m: setattr(
        m, "prepare_inputs_for_generation", functools.partial(without_mask, m.prepare_inputs_for_generation)
    ),
    "_update_model_kwargs_for_generation": lambda m: setattr(
        m, "_update_model_kwargs_for_generation", functools.partial(negated, m._update_model_kwargs_for_generation)
    ),
    "_get_logits_processor": lambda m: setattr(m, "_get_logits_processor", favourites),
    "get_encoder": lambda m: setattr(m, "get_encoder", lambda *a, **k: Wrapped(m.encoder)),
}  # fmt: skip


class Wrapped(nn.Module):
    def __init__(self, half):
        super().__init__()
        self.body, self.config, self.main_input_name = half, half.config, half.main_input_name

    def forward(self, *args, **kwargs):
        output = self.body(*args, **kwargs)
        return changed(output, last_hidden_state=output.last_hidden_state * 0.5)


class FlippedHook(accelerate.hooks.ModelHook):
    def post_forward(self, module, output):
        return changed(output, logits=output.logits.flip(-1))


class Favour(transformers.LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores - 3.0 * torch.arange(scores.shape[-1]).remainder(3)


def favourites(*args, **kwargs):
    return transformers.LogitsProcessorList([Favour()])


def flipped(forward, *args, **kwargs):
    output = forward(*args, **kwargs)
    return changed(output, logits=output.logits.flip(-1))


def without_mask(prepare, *args, **kwargs):
    return {**prepare(*args, **kwargs), "attention_mask": None}


def negated(update, outputs, kwargs, *args, **named):
    kwargs = update(outputs, kwargs, *args, **named)
    kwargs[cache_argument.NAME].self_attention_cache.layers[0].values.neg_()
    return kwargs


# Patches of a class or a file, and so of all models.
CODE_PATCHES = {
    "an attention": lambda patch: patch(modeling.BertGenerationSelfAttention, "forward"),
    "a layer": lambda patch: patch(modeling.BertGenerationLayer, "feed_forward_chunk"),
    "a Linear": lambda patch: patch(nn.Linear, "forward"),
    "a LayerNorm": lambda patch: patch(nn.LayerNorm, "forward"),
    "a Dropout": lambda patch: patch(nn.Dropout, "forward"),
    "an Embedding": lambda patch: patch(nn.Embedding, "forward", lambda self, x: self.weight[x].relu()),
    "an activation": lambda patch: patch(transformers.activations.GELUActivation, "forward"),
    "a head": lambda patch: patch(modeling.BertGenerationOnlyLMHead, "forward"),
    "a forward of another class": lambda patch: patch(
        modeling.BertGenerationIntermediate, "forward", lambda self, x: nn.functional.relu(self.dense(x))
    ),
    "a forward of another class of transformers": lambda patch: patch(
        modeling.BertGenerationIntermediate, "forward", modeling_roberta.RobertaPooler.forward
    ) or patch(modeling.BertGenerationLayer, "feed_forward_chunk", lambda self, x: x * 0.5),
    "the encoder": lambda patch: patch(
        modeling.BertGenerationEncoder, "forward", functools.partialmethod(flat, modeling.BertGenerationEncoder.forward)
    ),
    "the whole": lambda patch: patch(
        transformers.EncoderDecoderModel, "forward", flipped_method(transformers.EncoderDecoderModel.forward)
    ),
    "a function of the file": lambda patch: patch(modeling, "apply_chunking_to_forward", lambda f, *a: f(a[-1]) * 0.5),
    "attention of the file": lambda patch: patch(AttentionInterface._global_mapping, "sdpa", uniform_attention),
    "a mask of the file": lambda patch: patch(modeling, "create_bidirectional_mask", lambda *a, **k: None),
    "attention of torch": lambda patch: patch(F, "scaled_dot_product_attention"),
    "what calls a module": lambda patch: patch(
        nn.Module, "__call__", lambda self, *a, **k: tanh_of_norms(self, self._call_impl(*a, **k))
    ),
    "the search": lambda patch: patch(transformers.GenerationMixin, "_get_logits_processor", favourites),
    "a step of the search": lambda patch: patch(
        transformers.EncoderDecoderModel, "prepare_inputs_for_generation",
        without_mask_method(transformers.GenerationMixin.prepare_inputs_for_generation),
    ),
    "a processor": lambda patch: patch(transformers.NoRepeatNGramLogitsProcessor, "__call__", Favour.__call__),
}  # fmt: skip


def flat(self, forward, *args, **kwargs):
    output = forward(self, *args, **kwargs)
    return changed(output, last_hidden_state=output.last_hidden_state * 0.5)


def flipped_method(forward):
    return lambda self, *args, **kwargs: flipped(functools.partial(forward, self), *args, **kwargs)


def without_mask_method(prepare):
    return lambda self, *args, **kwargs: without_mask(functools.partial(prepare, self), *args, **kwargs)


def tanh_of_norms(module, output):
    return output.tanh() if isinstance(module, nn.LayerNorm) else output


def everything(model):
    """Outputs of a model: logits in inference, loss and gradients in training, tokens of two searches."""
    inputs, labels = batch()
    results = {}
    with torch.no_grad():
        results["logits"] = model.eval()(**inputs, decoder_input_ids=labels.clamp(min=0)).logits
    output = model.train()(**inputs, labels=labels)
    output.loss.backward()
    results["loss"] = output.loss.detach()
    results |= {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.eval()
    for beams in (1, 3):
        results[f"{beams} beams"] = model.generate(**inputs, max_new_tokens=6, num_beams=beams, no_repeat_ngram_size=4)
    return results


def unlike(results, expected):
    """Names of the results that differ from the expected ones."""
    if set(results) != set(expected):
        return set(results) ^ set(expected)
    wrong = []
    for name, value in expected.items():
        got = results[name]
        if not value.is_floating_point():
            same = torch.equal(got, value)
        else:
            same = got.shape == value.shape and distance(got, value) <= 2e-4 * max(1.0, float(value.abs().max()))
        if not same:
            wrong.append(name)
    return wrong


@pytest.fixture(scope="module")
def untouched():
    return everything(make_model())


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", MODEL_CHANGES)
def test_changes_of_a_model_act(name, order, untouched, monkeypatch):
    monkeypatch.setattr(AttentionInterface, "_global_mapping", dict(AttentionInterface._global_mapping))
    results = []
    for accelerated in (False, True):
        model = make_model()
        if accelerated and order == "after":
            everything(bertgen.accelerate(model))
        torch.manual_seed(4)
        MODEL_CHANGES[name](model)
        if accelerated and order == "before":
            bertgen.accelerate(model)
        results.append(everything(model))
    assert not unlike(results[1], results[0])
    assert unlike(results[0], untouched), "the change has no effect"


@pytest.fixture
def patch(monkeypatch):
    """Replace a function of a class, a file or a table, by default by one that halves the result."""

    def patched(owner, name, function=None):
        if isinstance(owner, dict):
            return monkeypatch.setitem(owner, name, function)
        monkeypatch.setattr(owner, name, with_half(getattr(owner, name)) if function is None else function)

    return patched


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", CODE_PATCHES)
def test_patches_of_classes_and_files_act(name, order, untouched, patch, monkeypatch):
    theirs, ours = make_model(), make_model()
    if order == "after":
        everything(bertgen.accelerate(ours))
    with monkeypatch.context():
        CODE_PATCHES[name](patch)
        bertgen.accelerate(ours)
        expected = everything(theirs)
        assert not unlike(everything(ours), expected)
        assert unlike(expected, untouched), "the change has no effect"
    monkeypatch.undo()
    assert not unlike(everything(ours), untouched)
    assert not bertgen.explain(ours).obstacles


def test_settings_that_bertgen_follows_cause_no_fallback(calls):
    """Modes, probabilities of dropout, eps, parametrizations, checkpointing, attention of another name."""
    model, plain = bertgen.accelerate(make_model()), make_model()
    for m in (model, plain):
        layer(m).output.LayerNorm.eps = 0.5
        layer(m).chunk_size_feed_forward = 1
        parametrization(last_layer(m).output.dense)
        m.set_attn_implementation("eager")
        m.gradient_checkpointing_enable()
        for module in m.modules():
            if isinstance(module, nn.Dropout):
                module.p = 1.0
        m.eval().encoder.train()
        layer(m).attention.self.dropout.p = 0.0
        layer(m, 1).attention.self.eval()  # this mode decides, not that of its Dropout
    inputs, labels = batch()
    assert distance(*(m(**inputs, labels=labels).loss for m in (model, plain))) <= 1e-4
    assert calls == ["forward"] and not bertgen.explain(model).obstacles


# Changes of what only BERT has.
BERT_CHANGES = {
    "a hook on token types": lambda m: m.encoder.embeddings.token_type_embeddings.register_forward_hook(by_position),
    "token types by default": lambda m: m.encoder.embeddings.token_type_ids.fill_(1),
    "another activation of the head": lambda m: setattr(
        m.decoder.cls.predictions.transform, "transform_act_fn", nn.Tanh()
    ),
    "a hook on the holder of the head": lambda m: m.decoder.cls.register_forward_hook(by_position),
    "a hook on the activation of the head": lambda m: (
        m.decoder.cls.predictions.transform.transform_act_fn.register_forward_hook(lambda m, a, output: output.abs())
    ),
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", BERT_CHANGES)
def test_changes_of_a_bert_act(name, order):
    theirs, ours, plain = make_model("bert"), make_model("bert"), make_model("bert")
    if order == "after":
        everything(bertgen.accelerate(ours))
    for model in (theirs, ours):
        BERT_CHANGES[name](model)
    bertgen.accelerate(ours)
    expected = everything(theirs)
    assert not unlike(everything(ours), expected) and unlike(expected, everything(plain))


@pytest.mark.parametrize("change", ["activation", "hook", "forward"])
def test_a_changed_pooler_acts(change):
    models = [transformers.BertModel(transformers.BertConfig(**SIZES)).eval() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    bertgen.accelerate(models[1])
    inputs, _ = batch()
    plain = [m(**inputs).pooler_output for m in models]
    for m in models:
        if change == "activation":
            m.pooler.activation = nn.ReLU()
        elif change == "hook":
            m.pooler.activation.register_forward_hook(halve_output)
        else:
            own_forward(m.pooler)
    results = [m(**inputs).pooler_output for m in models]
    assert distance(*plain) <= 1e-5 and distance(*results) <= 1e-5 and distance(plain[0], results[0]) > 1e-3


def test_the_activation_of_a_roberta_head_can_be_patched_in_its_file(patch):
    theirs, ours = make_model("roberta"), bertgen.accelerate(make_model("roberta"))
    inputs, labels = batch(pad=1)
    before = theirs(**inputs, labels=labels).loss
    assert distance(ours(**inputs, labels=labels).loss, before) <= 1e-4
    patch(modeling_roberta, "gelu", F.relu)
    expected = theirs(**inputs, labels=labels).loss
    assert distance(ours(**inputs, labels=labels).loss, expected) <= 1e-4 and distance(expected, before) > 1e-3


def test_a_part_that_is_compiled_runs_compiled():
    model, inputs = bertgen.accelerate(make_model()), dict(input_ids=batch()[0]["input_ids"])
    with torch.no_grad():
        expected = model.encoder(**inputs).last_hidden_state
        part = layer(model).intermediate
        part.compile(backend="eager")
        assert distance(model.encoder(**inputs).last_hidden_state, expected) <= 1e-5
        assert "BertGenerationIntermediate" in bertgen.explain(model).obstacles["encoder"]
        part._compiled_call_impl = None
        layer(model).intermediate = torch.compile(part, backend="eager")
        assert distance(model.encoder(**inputs).last_hidden_state, expected) <= 1e-5
        assert "OptimizedModule" in bertgen.explain(model).obstacles["encoder"]


def test_a_custom_loss_is_used():
    decoder = bertgen.accelerate(make_model().decoder)
    ids = batch()[0]["input_ids"]
    assert float(decoder(ids, labels=ids).loss.detach()) != 5.0
    decoder.loss_function = lambda logits, labels, **_: logits.sum() * 0 + 5.0
    assert float(decoder(ids, labels=ids).loss.detach()) == 5.0


def test_a_subclass_of_an_accelerated_class_overrides_what_generate_calls(calls):
    model = bertgen.accelerate(make_model())
    inputs, _ = batch()
    plain = model.generate(**inputs, max_new_tokens=5)

    class Own(type(model)):
        def _get_logits_processor(self, *args, **kwargs):
            return favourites()

    model.__class__ = Own
    assert not torch.equal(model.generate(**inputs, max_new_tokens=5), plain) and calls == ["generation"]
    assert "Own._get_logits_processor" in bertgen.explain(model).obstacles[""]


def test_hidden_act_set_after_the_construction_changes_nothing(calls):
    """transformers reads it in the constructor. bertgen sees that the model and the configuration differ."""
    theirs, ours = make_model(), bertgen.accelerate(make_model())
    inputs, labels = batch()
    for value in ("relu", "no such activation"):
        for model in (theirs, ours):
            model.config.encoder.hidden_act = value
        assert distance(*(model(**inputs, labels=labels).loss for model in (theirs, ours))) <= 1e-4
    assert not calls and "no such activation" in bertgen.explain(ours).obstacles[""]
