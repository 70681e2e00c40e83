"""Encoders and decoders of all three kinds against transformers' eager ones with the same weights."""

from __future__ import annotations

import random

import pytest
import torch

from bertgen import (
    BertConfig,
    EncoderDecoderModel,
    InputError,
)
from tests.support.model_kinds import KINDS, alone, ids_and_mask
from tests.support.reference_models import PAD, ModelPair, make_model_pair
from tests.support.tiny_models import distance


@pytest.mark.parametrize("seed", range(40))
def test_attentions_equal_transformers(seed):
    twins = make_model_pair(seed)
    ids, mask, labels = twins.batch()
    targets = labels.clamp_min(3)
    inputs = dict(input_ids=ids, attention_mask=mask, decoder_input_ids=targets, output_attentions=True)
    with torch.no_grad():
        expected, got = twins.oracle(**inputs, use_cache=False), twins.model(**inputs, use_cache=False)
        assert distance(got.logits, expected.logits) <= 2e-5
        real = mask[:, None, :, None]
        for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
            ours, theirs = got[name], expected[name]
            assert len(ours) == len(theirs)
            judged = real if name == "encoder_attentions" else 1
            assert max(distance(a * judged, b * judged) for a, b in zip(ours, theirs)) <= 1e-5, name
        assert not (got.encoder_last_hidden_state * (1 - mask[..., None])).any()

        # One token at a time, over the cache: the last row of the attention of all of them.
        cache = None
        for t in range(targets.shape[1]):
            step = twins.model(
                encoder_outputs=(got.encoder_last_hidden_state,), attention_mask=mask, past_key_values=cache,
                decoder_input_ids=targets[:, t : t + 1], output_attentions=True,
            )  # fmt: skip
            cache = step.past_key_values
            for ours, whole in zip(step.decoder_attentions, got.decoder_attentions):
                assert distance(ours, whole[:, :, t : t + 1, : t + 1]) <= 1e-5
            for ours, whole in zip(step.cross_attentions, got.cross_attentions):
                assert distance(ours, whole[:, :, t : t + 1]) <= 1e-5

        # From labels, without the padding after them.
        from_labels = twins.model(input_ids=ids, attention_mask=mask, labels=labels, output_attentions=True)
        expected = twins.oracle(input_ids=ids, attention_mask=mask, labels=labels, output_attentions=True)
        read = (labels != -100)[:, None, :, None]
        for name in ("decoder_attentions", "cross_attentions"):
            assert max(distance(a * read, b * read) for a, b in zip(from_labels[name], expected[name])) <= 1e-5


@pytest.mark.parametrize("seed", range(10))
def test_attentions_where_the_start_token_is_padding(seed):
    """The first position is masked then, so that the mask is no length."""
    twins = make_model_pair(seed)
    for model in (twins.oracle, twins.model):
        model.config.decoder_start_token_id = PAD
    ids, mask, labels = twins.batch()
    labels[:, labels.shape[1] // 2 + 1 :] = -100  # no row goes to the end
    read = (labels != -100)[:, None, :, None] & (torch.arange(labels.shape[1]) > 0)[:, None]
    inputs = dict(input_ids=ids, attention_mask=mask, labels=labels, output_attentions=True)
    with torch.no_grad():
        expected, got = twins.oracle(**inputs), twins.model(**inputs)
    for name in ("decoder_attentions", "cross_attentions"):
        assert max(distance(a * read, b * read) for a, b in zip(got[name], expected[name])) <= 1e-5


@pytest.mark.parametrize("seed", range(40))
def test_embeddings_positions_and_types_equal_transformers(seed):
    twins, r = make_model_pair(seed), random.Random(seed)
    ids, mask, labels = twins.batch()
    inputs = dict(attention_mask=mask, decoder_input_ids=labels.clamp_min(3))
    encoder, decoder = twins.model.config.encoder, twins.model.config.decoder
    if seed % 2:
        inputs["inputs_embeds"] = torch.randn(*ids.shape, encoder.hidden_size)
        inputs["decoder_inputs_embeds"] = torch.randn(*labels.shape, decoder.hidden_size)
        del inputs["decoder_input_ids"]
    else:
        inputs["input_ids"] = ids
    if r.random() < 0.7:
        limit = encoder.max_position_embeddings
        inputs["position_ids"] = torch.tensor([[r.randrange(limit) for _ in range(ids.shape[1])] for _ in ids])
        inputs["decoder_position_ids"] = torch.arange(labels.shape[1])[None] + 2
    # transformers looks a token's default type up by its position, which fails for positions beyond the types' table
    if isinstance(encoder, BertConfig) and (r.random() < 0.7 or "position_ids" in inputs):
        inputs["token_type_ids"] = torch.tensor([[r.randrange(encoder.type_vocab_size) for _ in row] for row in ids])
    if isinstance(decoder, BertConfig):
        inputs["decoder_token_type_ids"] = torch.randint(0, decoder.type_vocab_size, labels.shape)
    with torch.no_grad():
        expected, got = twins.oracle(**inputs), twins.model(**inputs)
    assert distance(got.logits, expected.logits) <= 2e-5
    real = mask[..., None]
    assert distance(got.encoder_last_hidden_state * real, expected.encoder_last_hidden_state * real) <= 2e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("additive", [False, True])
def test_masks_of_four_dimensions(kind, additive):
    ids, _ = ids_and_mask(random.Random(1), 3, 6)
    seen = torch.rand(3, 1, 6, 6) < 0.6
    seen |= torch.eye(6, dtype=torch.bool)  # transformers' eager attention has its own idea of queries without keys
    for part, options in ((1, {}), (2, dict(is_decoder=True))):
        ours, theirs = alone(kind, part, **options)
        seen = seen.tril() if part == 2 else seen
        added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        with torch.no_grad():
            expected = theirs(ids, attention_mask=added)[0]
            assert distance(ours(ids, attention_mask=added if additive else seen)[0], expected) <= 2e-5
            if part == 2:  # in two steps, each with its rows of the mask
                mask = added if additive else seen
                first = ours(ids[:, :4], attention_mask=mask[:, :, :4, :4])
                second = ours(ids[:, 4:], attention_mask=mask[:, :, 4:], past_key_values=first.past_key_values)
                assert distance(torch.cat((first.logits, second.logits), 1), expected) <= 2e-5


def test_a_dense_mask_may_hide_everything_from_a_query():
    model, theirs = alone("bert", 1)
    theirs.set_attn_implementation("sdpa")  # which gives such a query zeros; eager gives it the mean of all values
    ids, seen = torch.full((1, 4), 5), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    seen[0, 0, 2] = False
    model.train()
    states = model(ids, attention_mask=seen, output_attentions=True)
    assert distance(model.eval()(ids, attention_mask=seen)[0], theirs(ids, attention_mask=seen)[0]) <= 2e-5
    assert not states.attentions[0][:, :, 2].any()
    states.last_hidden_state.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_attentions_of_training_are_those_after_dropout():
    model, _ = alone("bert", 1, attention_probs_dropout_prob=0.5)
    ids = torch.randint(3, 37, (4, 12))
    weights = model.train()(ids, output_attentions=True).attentions[0]
    kept = (weights > 0).float().mean()
    assert 0.4 < kept < 0.6 and 0.9 < weights.sum(-1).mean() < 1.1


@pytest.mark.parametrize("seed", range(40))
def test_tokens_of_all_kinds_equal_transformers(seed):
    twins = make_model_pair(seed)
    ids, mask, _ = twins.batch()
    options = dict(attention_mask=mask, max_new_tokens=8, num_beams=1 + seed % 3, eos_token_id=5, pad_token_id=PAD)
    assert torch.equal(twins.model.generate(ids, **options), twins.oracle.generate(ids, **options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attentions", [False, True])
def test_a_decoder_mask_over_a_cache(kind, side, attentions):
    """The mask covers the past and the new tokens; keys that it hides stay hidden in later steps."""
    ours, theirs = alone(kind, 2, is_decoder=True)
    ids, mask = ids_and_mask(random.Random(2), 4, 9, side)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, use_cache=False).logits
        parts, cache = [], None
        for start, end in ((0, 4), (4, 5), (5, 6), (6, 9)):
            step = ours(
                ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, output_attentions=attentions
            )
            parts.append(step.logits)
            cache = step.past_key_values
        judged = mask.cumsum(1)[..., None] > 0
        if kind == "roberta":  # transformers takes cached tokens for real ones when it counts positions; so do we
            whole = ours(ids, attention_mask=mask, use_cache=False).logits
            assert distance(whole * judged, expected * judged) <= 2e-5
            judged = judged & (mask.sum(1) == 9)[:, None, None]
        assert distance(torch.cat(parts, 1) * judged, expected * judged) <= 2e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_decoder_alone_with_padding_and_labels(kind, causal, side):
    ours, theirs = alone(kind, 2, is_decoder=causal)
    ids, mask = ids_and_mask(random.Random(3), 4, 8, side)
    with torch.no_grad():
        inputs = dict(attention_mask=mask, labels=ids, use_cache=False, output_hidden_states=True)
        expected, got = theirs(ids, **inputs), ours(ids, **inputs)
    judged = mask.cumsum(1)[..., None] > 0 if causal else torch.ones_like(ids)[..., None]
    assert distance(got.logits * judged, expected.logits * judged) <= 2e-5
    for a, b in zip(got.hidden_states, expected.hidden_states):
        assert distance(a * judged, b * judged) <= 2e-5
    if not causal or side == "right":
        assert distance(got.loss, expected.loss) <= 1e-5


def float64(twins: ModelPair, inputs: dict) -> torch.Tensor:
    return twins.oracle.double()(**inputs).logits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(30))
def test_half_precision_is_as_near_to_float64_as_transformers(seed, dtype):
    twins = make_model_pair(seed)
    ids, mask, labels = twins.batch()
    inputs = dict(input_ids=ids, attention_mask=mask, labels=labels)
    read = (labels != -100)[..., None]
    with torch.no_grad():
        got = twins.model.to(dtype)(**inputs)
        theirs = twins.oracle.to(dtype)(**inputs)
        weights = twins.model.state_dict()
        twins.oracle.double().load_state_dict({k: v.double() for k, v in weights.items()}, strict=False)
        exact = twins.oracle(**inputs)
    assert got.logits.dtype == dtype and got.loss.dtype == theirs.loss.dtype
    scale = torch.finfo(dtype).eps * float((exact.logits * read).abs().max())
    ours, other = (distance(o.logits.double() * read, exact.logits * read) for o in (got, theirs))
    assert ours <= 2 * other + scale
    with torch.no_grad():
        tokens = twins.model.generate(ids, attention_mask=mask, max_new_tokens=4, num_beams=2)
    assert tokens.shape[0] == len(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_memory_and_nothing_else(kind):
    options = dict(is_decoder=True, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    gradients, kept = [], []
    for recompute in (False, True):
        model, _ = alone(kind, 2, **options)
        model.train()
        if recompute:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing is recompute
        saved = []
        torch.manual_seed(1)
        ids = torch.randint(3, 37, (2, 8))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):  # noqa: B023
            output = model(ids, labels=ids)
        output.loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        kept.append(sum(saved))
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None)
        assert gradient is None or distance(gradient, gradients[1][name]) <= 1e-6, name
    assert kept[1] < kept[0] / 2
    assert model(ids).past_key_values is None  # layers that run twice must not fill a cache
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing and model(ids).past_key_values is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_continued_call_needs_no_encoder_states(kind):
    """Their keys and values are in the cache; transformers skips cross-attention then, without a word."""
    ours, _ = alone(kind, 2, is_decoder=True, add_cross_attention=True)
    ids, states = torch.randint(3, 37, (2, 5)), torch.randn(2, 4, 32)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    given = dict(encoder_hidden_states=states, encoder_attention_mask=mask)
    whole = ours(ids, **given, use_cache=False).logits
    first = ours(ids[:, :3], **given)
    assert distance(ours(ids[:, 3:], past_key_values=first.past_key_values).logits, whole[:, 3:]) <= 2e-5
    with pytest.raises(InputError, match="is_decoder is False"):
        alone(kind, 1)[0](ids, encoder_hidden_states=states)


def test_any_pair_of_kinds_makes_a_model():
    ids = torch.tensor([[5, 6, 7]])
    for encoder in KINDS:
        for decoder in KINDS:
            model = EncoderDecoderModel(
                encoder=alone(encoder, 1)[0], decoder=alone(decoder, 2, is_decoder=True, add_cross_attention=True)[0]
            )
            model.config.pad_token_id, model.config.decoder_start_token_id = 0, 2
            model(ids, labels=ids).loss.backward()
            assert {model.config.encoder.model_type, model.config.decoder.model_type} == {encoder, decoder}
