"""Hooks on, and other forwards in, bertgen's own models take effect; what they receive is packed, as the docs say."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import bertgen
from bertgen.layers.add_norm import AddNorm
from bertgen.layers.block import Layer
from bertgen.layers.inspection import is_plain

SIZES = dict(
    vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3,
)  # fmt: skip
REAL = 9 + 6 + 4  # tokens of the sources below that are no padding


def model(kind="bert-generation"):
    torch.manual_seed(0)
    half = dict(model_type=kind, **SIZES)
    config = bertgen.EncoderDecoderConfig(
        encoder=half, decoder=half | dict(is_decoder=True, add_cross_attention=True), decoder_start_token_id=2,
        pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    return bertgen.EncoderDecoderModel(config).eval()


def batch():
    torch.manual_seed(1)
    ids, mask = torch.randint(4, 99, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    mask[1, 6:], mask[2, 4:] = 0, 0
    labels = torch.randint(4, 99, (3, 6))
    labels[1, 4:] = -100
    return dict(input_ids=ids.masked_fill(mask == 0, 0), attention_mask=mask), labels


def everything(model):
    """What a model gives, where labels are."""
    given, labels = batch()
    held = labels != -100
    found = {}
    with torch.no_grad():
        found["inputs"] = model(**given, decoder_input_ids=labels.clamp(min=0)).logits
        found["labels"] = model(**given, labels=labels).logits[held]
        found["training"] = model.target_logits(*given.values(), labels)[0]
        for beams in (1, 3):
            options = dict(max_new_tokens=6, num_beams=beams, return_dict_in_generate=True, output_logits=True)
            found[f"{beams} beams"] = model.generate(**given, **options).sequences
    return found


def halved(module, args, output):
    if isinstance(output, torch.Tensor):
        return output * 0.5
    if hasattr(output, "last_hidden_state"):
        output.last_hidden_state = output.last_hidden_state * 0.5
    else:
        output.logits = output.logits.flip(-1)
    return output


PLACES = {
    "word embeddings": lambda m: m.encoder.embeddings.word_embeddings,
    "position embeddings": lambda m: m.decoder.body.embeddings.position_embeddings,
    "a query": lambda m: m.encoder.encoder.layer[0].attention.self.query,
    "a key of cross-attention": lambda m: m.decoder.body.encoder.layer[1].crossattention.self.key,
    "an inner layer": lambda m: m.decoder.body.encoder.layer[0].intermediate.dense,
    "a norm": lambda m: m.encoder.encoder.layer[1].output.LayerNorm,
    "a dropout": lambda m: m.encoder.embeddings.dropout,
    "an attention": lambda m: m.encoder.encoder.layer[0].attention,
    "a layer": lambda m: m.decoder.body.encoder.layer[1],
    "the layers": lambda m: m.decoder.body.encoder,
    "the encoder": lambda m: m.encoder,
    "the stack of the decoder": lambda m: m.decoder.body,
    "the decoder": lambda m: m.decoder,
    "the head": lambda m: m.decoder.head.decoder,
    "the whole": lambda m: m,
}


@pytest.mark.parametrize("how", ["hook", "forward"])
@pytest.mark.parametrize("place", PLACES)
def test_what_hangs_on_a_module_acts_in_every_call(place, how):
    plain, changed = model(), model()
    module = PLACES[place](changed)
    if place == "a dropout":  # a norm cancels the factor
        module = changed.decoder.body.embeddings.dropout
    if how == "hook":
        module.register_forward_hook(halved)
    else:
        module.forward = functools.partial(lambda forward, *a, **k: halved(None, a, forward(*a, **k)), module.forward)
    expected, found = everything(plain), everything(changed)
    for name in ("inputs", "labels", "training"):
        assert not torch.allclose(found[name], expected[name], atol=1e-3), name
    torch.testing.assert_close(found["labels"], found["training"], atol=1e-5, rtol=1e-4)
    assert any(not torch.equal(found[name], expected[name]) for name in ("1 beams", "3 beams"))


@pytest.mark.parametrize("place", ["the stack of the decoder", "the decoder", "the whole"])
def test_a_hook_that_only_looks_changes_nothing_in_generate(place):
    plain, watched, seen = model(), model(), []
    PLACES[place](watched).register_forward_hook(lambda module, args, output: seen.append(type(output).__name__))
    given, _ = batch()
    options = dict(return_dict_in_generate=True, output_attentions=True, output_hidden_states=True, output_scores=True)
    for beams in (1, 3):
        for prefix in ({}, dict(decoder_input_ids=torch.tensor([[2, 7], [2, 8], [2, 9]]))):
            del seen[:]
            a, b = (
                m.generate(**given, **prefix, **options, num_beams=beams, max_new_tokens=6) for m in (plain, watched)
            )
            assert torch.equal(a.sequences, b.sequences) and list(a.keys()) == list(b.keys())
            assert len(seen) == len(a.scores)
            for name in ("scores", "decoder_hidden_states", "decoder_attentions", "cross_attentions"):
                torch.testing.assert_close(b[name], a[name], atol=1e-5, rtol=1e-4)


def test_a_decoder_on_its_own_with_a_hook():
    torch.manual_seed(0)
    decoder = bertgen.BertGenerationDecoder(
        bertgen.BertGenerationConfig(**SIZES, is_decoder=True, eos_token_id=3)
    ).eval()
    given, _ = batch()
    left = {name: t.flip(1) for name, t in given.items()}
    expected = decoder.generate(**left, max_new_tokens=6, num_beams=2)
    handle = decoder.register_forward_hook(lambda *_: None)
    assert torch.equal(decoder.generate(**left, max_new_tokens=6, num_beams=2), expected)
    handle.remove()
    decoder.register_forward_hook(halved)
    assert not torch.equal(decoder.generate(**left, max_new_tokens=6, num_beams=2), expected)
    decoder.config.is_decoder = False
    with pytest.raises(bertgen.UnsupportedError, match="the BertGenerationDecoder.* has a hook or a patched forward"):
        decoder.generate(**left, max_new_tokens=2)


def test_states_without_a_call_of_a_decoder_that_has_a_hook_are_refused():
    m, (given, labels) = model(), batch()
    m.decoder.register_forward_hook(halved)
    with pytest.raises(bertgen.UnsupportedError, match="the BertGenerationDecoder has a hook or a patched forward"):
        m.target_states(*given.values(), labels.clamp(min=0), labels != -100)


@pytest.mark.parametrize("place", ["", "decoder", "decoder.bert"])
def test_a_generator_refuses_a_hook_that_it_would_not_call(place):
    m = bertgen.EncoderDecoderModel.from_pretrained("demo")
    generator = bertgen.Generator(m, bertgen.AutoTokenizer.from_pretrained("demo"))
    hook = m.get_submodule(place).register_forward_hook(halved)
    for call in (generator.generate, generator.submit):
        with pytest.raises(bertgen.UnsupportedError, match="has a hook or a patched forward"):
            call(["Hello."] if call == generator.generate else "Hello.", max_new_tokens=2)
    with pytest.raises(bertgen.UnsupportedError, match="has a hook or a patched forward"):
        generator.score(["Hello."], ["Hallo."])
    hook.remove()
    assert generator.generate(["Hello."], max_new_tokens=2)


def test_hooks_see_packed_tokens_and_blocks_the_packing():
    """[tokens, hidden] without padding in place of [batch, position, hidden]; a block gets what unpacks it."""
    m, (given, _) = model(), batch()
    seen = {}

    def look(name):
        return lambda module, args, output: seen.update({name: (args, output)})

    layer = m.encoder.encoder.layer[0]
    for name, module in dict(leaf=layer.output.dense, layer=layer, encoder=m.encoder).items():
        module.register_forward_hook(look(name))
    m(**given, decoder_input_ids=torch.full((3, 1), 2))
    assert seen["leaf"][1].shape == seen["layer"][1].shape == (REAL, 32)
    assert seen["encoder"][1].last_hidden_state.shape == (3, 9, 32)
    args, output = seen["layer"]
    padded = args[1].tokens.unpack(output)
    assert padded.shape == (3, 9, 32) and not padded[~given["attention_mask"].bool()].any()


def test_token_types_pass_through_their_embedding():
    m, (given, labels), seen = model("bert"), batch(), []
    plain = m(**given, labels=labels).loss
    table = m.encoder.embeddings.token_type_embeddings
    handle = table.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert torch.equal(m(**given, labels=labels).loss, plain) and seen == [(REAL, 32)]
    handle.remove()
    table.register_forward_hook(lambda module, args, output: output * torch.linspace(0, 2, 32))
    assert not torch.allclose(m(**given, labels=labels).loss, plain)


@pytest.mark.parametrize("owner", [nn.Linear, nn.LayerNorm, AddNorm], ids=lambda c: c.__name__)
def test_a_forward_patched_on_a_class_acts(owner, monkeypatch):
    m = model()
    expected = everything(m)
    former, called = owner.forward, []

    @functools.wraps(former)
    def patched(self, *args):
        called.append(self)
        return former(self, *args) * 0.5

    monkeypatch.setattr(owner, "forward", patched)
    found = everything(m)
    assert called and not torch.allclose(found["labels"], expected["labels"], atol=1e-3)
    assert any(not torch.equal(found[name], expected[name]) for name in ("1 beams", "3 beams"))
    monkeypatch.undo()
    assert all(torch.equal(value, expected[name]) for name, value in everything(m).items())


def test_hooks_on_all_modules_see_leaves_too():
    m, (given, _), seen = model(), batch(), set()
    with torch.no_grad():
        handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.add(type(module)))
        try:
            assert not is_plain(nn.Linear(2, 2))
            m.generate(**given, max_new_tokens=2)
        finally:
            handle.remove()
    assert {nn.Linear, nn.LayerNorm, Layer} <= seen


def test_a_norm_without_shift_or_over_two_dimensions_is_called():
    m, (given, labels) = model(), batch()
    norm = nn.LayerNorm(32, bias=False)
    m.encoder.encoder.layer[0].output.LayerNorm = norm
    assert m(**given, labels=labels).loss.isfinite()
