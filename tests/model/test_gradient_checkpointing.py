"""Gradient checkpointing, reentrant or not: gradients are those without it, whatever carries them into a layer."""

from __future__ import annotations

import pytest
import torch
from torch.utils import checkpoint

import bertgen
from bertgen.layers.stack import Stack
from tests.support.dropin_models import batch, make_model

REENTRANT = pytest.mark.parametrize("reentrant", [True, False])
DROPOUT = dict(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)


def model_of(way, kind="bert-generation", dropout=False):
    model = make_model(kind, **(DROPOUT if dropout else {}))
    return (bertgen.accelerate(model) if way == "accelerated" else own(model)).train()


def own(theirs):
    """bertgen's model with the weights of transformers' one."""
    model = bertgen.EncoderDecoderModel(bertgen.EncoderDecoderConfig.from_dict(theirs.config.to_dict()))
    model.load_state_dict(theirs.state_dict(), strict=False)
    return model.eval()


def labels_only(model):
    given, labels = batch()
    return model(**given, labels=labels).loss


def masks_and_embeddings(model):
    given, labels = batch()
    embeds = torch.linspace(-1, 1, 3 * 6 * 32).view(3, 6, 32)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[0, :2] = 0
    return model(**given, decoder_inputs_embeds=embeds, decoder_attention_mask=mask, labels=labels).loss


def frozen(part):
    def loss(model):
        model.get_submodule(part).requires_grad_(False)
        return labels_only(model)

    return loss


def encoder_alone(model):
    given, _ = batch()
    return model.encoder(**given).last_hidden_state.square().sum()


def decoder_alone(model):
    given, labels = batch()
    states = torch.linspace(-1, 1, 3 * 9 * 32).view(3, 9, 32).requires_grad_()
    model.states = states  # its gradient is looked at as well
    return model.decoder(
        labels.clamp(min=0), encoder_hidden_states=states, encoder_attention_mask=given["attention_mask"],
        use_cache=False,
    ).logits.square().mean()  # fmt: skip


def under_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        return labels_only(model)


LOSSES = {
    "labels": labels_only,
    "masks and embeddings": masks_and_embeddings,
    "frozen encoder": frozen("encoder"),
    "frozen embeddings": frozen("encoder.embeddings"),
    "frozen decoder": frozen("decoder"),
    "encoder alone": encoder_alone,
    "decoder alone": decoder_alone,
    "autocast": under_autocast,
}


def check(found, expected, share=1e-4):
    """Gradients by name are those expected, up to a share of the largest of all."""
    bound = share * max(float(g.abs().max()) for g in expected.values() if g is not None)
    assert found.keys() == expected.keys() and any(g is not None for g in found.values())
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None), name
        if gradient is not None:
            assert float((found[name] - gradient).abs().max()) <= bound, name


def gradients(model, loss):
    torch.manual_seed(3)
    loss(model).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    return found | {"states": getattr(getattr(model, "states", None), "grad", None)}


@REENTRANT
@pytest.mark.parametrize("way", ["own", "accelerated"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_without(name, way, reentrant, monkeypatch):
    plain = gradients(model_of(way, dropout=True), LOSSES[name])
    model = model_of(way, dropout=True)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    ran = []
    run = Stack._recomputed
    monkeypatch.setattr(Stack, "_recomputed", lambda *args: ran.append(args) or run(*args))
    found = gradients(model, LOSSES[name])
    assert ran, "nothing was computed again"
    # Sums of gradients in bfloat16 are rounded in another order.
    check(found, plain, share=2e-2 if name == "autocast" else 1e-4)


@REENTRANT
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("way", ["own", "accelerated"])
def test_every_kind_learns_the_same(kind, way, reentrant):
    plain = gradients(model_of(way, kind), labels_only)
    model = model_of(way, kind)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    check(gradients(model, labels_only), plain)


@REENTRANT
def test_a_mask_that_learns_has_its_gradient(reentrant):
    found = []
    for recompute in (False, True):
        decoder = model_of("own").decoder
        if recompute:
            decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        mask = torch.zeros(2, 1, 5, 5, requires_grad=True)
        ids = torch.arange(10).view(2, 5) + 4
        decoder(ids, attention_mask=mask, use_cache=False).logits.square().mean().backward()
        found.append(mask.grad)
    torch.testing.assert_close(*found)


@REENTRANT
def test_a_frozen_model_runs_and_keeps_nothing(reentrant, monkeypatch):
    model = model_of("own").requires_grad_(False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    monkeypatch.setattr(checkpoint, "checkpoint", None)
    loss = labels_only(model)
    assert not loss.requires_grad and torch.equal(loss, labels_only(model_of("own")).detach())


@REENTRANT
def test_a_cache_that_is_handed_on_is_written_once(reentrant):
    """The layers of a call with a cache are not run twice: the second run would append to the cache again."""
    model = model_of("own").decoder.eval()
    ids = torch.arange(8).view(2, 4) + 4
    with torch.no_grad():
        expected = model(ids).logits[:, -1]
        past = model(ids[:, :3]).past_key_values
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    logits = model(ids[:, 3:], past_key_values=past).logits[:, -1]
    logits.square().mean().backward()
    assert past.length == 4
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["own", "accelerated"])
def test_dropout_of_attention_acts_while_a_cache_is_filled(way):
    """A training loop that computes its loss from logits, without use_cache=False."""
    options = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    model = make_model(**options)
    model = bertgen.accelerate(model) if way == "accelerated" else own(model)
    given, labels = batch()
    given["decoder_input_ids"] = labels.clamp(min=0)
    assert torch.equal(model(**given).logits, model(**given).logits)
    model.decoder.train()
    assert not torch.equal(model(**given).logits, model(**given).logits)
