"""`forward` of accelerated models: outputs, gradients and errors of plain ones, also with unusual arguments."""

from __future__ import annotations

import pytest
import torch
import transformers

import bertgen
from tests.support.dropin_models import KINDS, SIZES, batch, distance, make_both, make_decoder, make_model, prompts

STATES = torch.linspace(-1, 1, 3 * 9 * 32).view(3, 9, 32)


def same(theirs, ours, **inputs):
    """Assert equal logits, or errors of one type; returns the logits or the name of the error."""
    results = []
    for model in (theirs, ours):
        try:
            with torch.no_grad():
                results.append(model(**inputs)[0])
        except Exception as error:
            results.append(type(error).__name__)
    expected, got = results
    if isinstance(expected, str) or isinstance(got, str):
        assert got == expected
    else:
        assert distance(got, expected) <= 1e-4
    return got


def ones(width):
    return torch.ones(3, width, dtype=torch.long)


PAIRS = {
    "a longer mask": dict(attention_mask=ones(12)),
    "a shorter mask": dict(attention_mask=ones(5)),
    "a longer decoder mask": dict(decoder_attention_mask=ones(8)),
    "a shorter decoder mask": dict(decoder_attention_mask=ones(4)),
    "a mask longer than states": dict(input_ids=None, encoder_outputs=(STATES,), attention_mask=ones(12)),
    "a mask shorter than states": dict(input_ids=None, encoder_outputs=(STATES,), attention_mask=ones(5)),
    "positions of one dimension": dict(position_ids=torch.arange(9)),
    "decoder positions of one dimension": dict(decoder_position_ids=torch.arange(6)),
    "token types": dict(token_type_ids=ones(9)),
    "decoder token types": dict(decoder_token_type_ids=ones(6)),
    "an empty batch": dict(
        input_ids=torch.ones(0, 9, dtype=torch.long), attention_mask=None,
        decoder_input_ids=torch.ones(0, 6, dtype=torch.long),
    ),
    "a flag that is a number": dict(use_cache=1),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", PAIRS)
def test_unusual_arguments_of_an_encoder_decoder(case, kind):
    inputs, labels = batch()
    same(*make_both(kind), **{**inputs, "decoder_input_ids": labels.clamp(min=4), **PAIRS[case]})


@pytest.mark.parametrize("width", [4, 8])
def test_a_decoder_mask_of_another_length_than_labels(width):
    inputs, labels = batch()
    same(*make_both(), **inputs, labels=labels, decoder_attention_mask=ones(width))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [3, 6, 9])
def test_a_decoder_without_encoder_with_a_mask_of_any_length(kind, width):
    same(make_decoder(kind), make_decoder(kind, accelerated=True), input_ids=prompts()[0], attention_mask=ones(width))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [2, 8, 10])
def test_a_cache_and_the_new_tokens_with_a_mask_of_any_length(kind, width):
    ids, mask = prompts()
    results = []
    for model in (make_decoder(kind), make_decoder(kind, accelerated=True)):
        with torch.no_grad():
            past = model(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
            whole = torch.cat((mask, ones(4)), 1)[:, :width]
            try:
                results.append(
                    model(input_ids=ids[:, :2].clamp(min=4), attention_mask=whole, past_key_values=past).logits
                )
            except Exception as error:
                results.append(type(error).__name__)
    if isinstance(results[0], str):
        assert results[0] == results[1]
    else:
        assert distance(*results) <= 1e-4


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "ids", [dict(eos_token_id=-1), dict(eos_token_id=[-1]), dict(eos_token_id=[]), dict(bos_token_id=-1),
            dict(pad_token_id=-1), dict(eos_token_id=None, bos_token_id=None), dict(eos_token_id=[3, 7])], ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_that_are_no_tokens(kind, ids, when, calls):
    inputs, labels = batch()
    models = []
    for fast in (False, True):
        model = make_model(kind)
        if fast and when == "after":
            model = bertgen.accelerate(model)
        for config in (model.config, model.config.encoder, model.config.decoder):
            for name, value in ids.items():
                setattr(config, name, value)
        models.append(bertgen.accelerate(model) if fast and when == "before" else model)
    same(*models, **inputs, decoder_input_ids=labels.clamp(min=4))
    assert calls == ["forward"]


@pytest.mark.parametrize("kind", KINDS)
def test_bertgens_own_models_have_the_same_special_ids(kind, tmp_path):
    theirs = make_model(kind)
    for config in (theirs.config, theirs.config.decoder):
        config.eos_token_id, config.bos_token_id = -1, -1
    theirs.generation_config.eos_token_id = None
    theirs.save_pretrained(tmp_path)
    ours = bertgen.EncoderDecoderModel.from_pretrained(tmp_path).eval()
    assert ours.config.decoder.eos_token_id == -1
    inputs, labels = batch()
    same(theirs, ours, **inputs, labels=labels.clamp(min=4))
    assert bertgen.GenerationConfig.from_model_config(ours.config).end_tokens == []
    ours.save_pretrained(tmp_path / "again")
    assert type(theirs).from_pretrained(tmp_path / "again").config.decoder.eos_token_id == -1


CALLS = {
    "plain": lambda inputs, labels: {**inputs, "decoder_input_ids": labels.clamp(min=0)},
    "no mask": lambda inputs, labels: dict(input_ids=inputs["input_ids"], decoder_input_ids=labels.clamp(min=0)),
    "left": lambda inputs, labels: dict(
        input_ids=inputs["input_ids"].flip(1), attention_mask=inputs["attention_mask"].flip(1),
        decoder_input_ids=labels.clamp(min=0),
    ),
    "decoder mask": lambda inputs, labels: dict(
        **inputs, decoder_input_ids=labels.clamp(min=0), decoder_attention_mask=(labels != -100).long()
    ),
    "positions": lambda inputs, labels: dict(
        **inputs, decoder_input_ids=labels.clamp(min=0), position_ids=torch.arange(9).flip(0)[None] + 2,
        decoder_position_ids=torch.arange(6)[None] + 3,
    ),
    "states": lambda inputs, labels: dict(
        encoder_outputs=(torch.linspace(-1, 1, 3 * 9 * 32).view(3, 9, 32),), attention_mask=inputs["attention_mask"],
        decoder_input_ids=labels.clamp(min=0),
    ),
    "embeddings": lambda inputs, labels: dict(
        inputs_embeds=torch.linspace(-1, 1, 3 * 9 * 32).view(3, 9, 32), attention_mask=inputs["attention_mask"],
        decoder_inputs_embeds=torch.linspace(-1, 1, 3 * 6 * 32).view(3, 6, 32),
    ),
    "one token": lambda inputs, labels: {**inputs, "decoder_input_ids": labels[:, :1]},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_forward(kind, name, calls):
    theirs, ours = make_both(kind)
    inputs = CALLS[name](*batch(pad=theirs.config.pad_token_id))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected, got = theirs(**inputs), ours(**inputs)
        assert type(got) is type(expected) and list(got.keys()) == list(expected.keys())
        assert distance(got.logits, expected.logits) <= 1e-4
        real = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones(3, 9, dtype=torch.bool)
        a, b = (x.encoder_last_hidden_state[real] for x in (got, expected))
        assert distance(a, b) <= 1e-4
    assert calls == ["forward"] * 2


def test_halves_of_two_kinds_and_two_widths():
    inputs, labels = batch()
    theirs, ours = make_both("roberta", decoder_kind="bert", hidden_size=24, intermediate_size=40)
    assert ours.enc_to_dec_proj.weight.shape == (24, 32)
    expected, got = (model(**inputs, labels=labels) for model in (theirs, ours))
    assert distance(got.loss, expected.loss) <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients(kind, checkpointing, calls):
    theirs, ours = (model.train() for model in make_both(kind))
    inputs, labels = batch(pad=theirs.config.pad_token_id)
    losses = []
    for model in (theirs, ours):
        if checkpointing:
            model.gradient_checkpointing_enable()
        output = model(**inputs, labels=labels)
        output.loss.backward()
        losses.append(output)
    assert calls == ["forward"] and losses[1].past_key_values is None
    wrapped = ours._bertgen.wrapped_model.model
    assert wrapped.is_gradient_checkpointing == wrapped.decoder.is_gradient_checkpointing == checkpointing
    assert distance(losses[0].loss, losses[1].loss) <= 1e-5
    read = labels != -100
    assert distance(losses[0].logits[read], losses[1].logits[read]) <= 1e-4
    checked = 0
    for (name, a), (other, b) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert name == other and (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert distance(a.grad, b.grad) <= 1e-4 * max(1.0, float(a.grad.abs().max())), name
            checked += 1
    assert checked > 40


def test_the_loss_of_an_accumulated_batch():
    """transformers ignores num_items_in_batch here: k accumulated steps give gradients k times too large."""
    model, (inputs, labels) = bertgen.accelerate(make_model()), batch()
    whole = model(**inputs, labels=labels).loss
    assert distance(model(**inputs, labels=labels, num_items_in_batch=22).loss, whole * 11 / 22) <= 1e-5


def test_recording_leaves_no_model_in_transformers_registry():
    """In transformers 5.16 the registry is a plain dict, which would keep a model as its key."""
    registry = transformers.utils.output_capturing._CAN_RECORD_REGISTRY
    model, (inputs, labels) = bertgen.accelerate(make_model()), batch()
    model(**inputs, decoder_input_ids=labels.clamp(min=0), output_hidden_states=True)
    assert str(type(model.decoder)) in registry and all(isinstance(key, str) for key in registry)


@pytest.mark.parametrize("options", [dict(output_attentions=True), dict(output_hidden_states=True)], ids=str)
def test_attentions_and_hidden_states_are_those_of_transformers(options, calls):
    (theirs, ours), (inputs, labels) = make_both(), batch()
    expected, got = (model(**inputs, decoder_input_ids=labels.clamp(min=0), **options) for model in (theirs, ours))
    assert not calls
    for name in ("decoder_hidden_states", "encoder_hidden_states"):
        if expected.get(name) is not None:
            assert all(torch.equal(a, b) for a, b in zip(got[name], expected[name], strict=True))
    assert set(got.keys()) == set(expected.keys())
    ours(**inputs, decoder_input_ids=labels.clamp(min=0))  # the idle hooks of transformers cause no fallback
    assert calls == ["forward"]


def test_a_tuple_and_a_mask_of_four_dimensions(calls):
    (theirs, ours), (inputs, labels) = make_both(), batch()
    inputs["decoder_input_ids"] = labels.clamp(min=0)
    expected, got = (model(**inputs, return_dict=False) for model in (theirs, ours))
    assert isinstance(got, tuple) and len(got) == len(expected) and distance(got[0], expected[0]) <= 1e-4
    del calls[:]
    inputs["decoder_attention_mask"] = torch.ones(3, 1, 6, 6, dtype=torch.bool).tril()
    assert distance(*(model(**inputs).logits for model in (theirs, ours))) <= 1e-4
    assert "forward: decoder_attention_mask is not a tensor of two dimensions" in ours._bertgen.fallbacks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype):
    (theirs, ours), (inputs, labels) = make_both(), batch()
    inputs["decoder_input_ids"] = labels.clamp(min=0)
    expected, got = (model.to(dtype)(**inputs).logits for model in (theirs, ours))
    assert got.dtype == dtype and distance(got.float(), expected.float()) <= 0.02 * float(expected.abs().max())


def test_under_torch_compile_transformers_code_is_traced(calls):
    config = transformers.BertGenerationConfig(**{**SIZES, "num_hidden_layers": 1})
    model, inputs = transformers.BertGenerationEncoder(config).eval(), dict(input_ids=batch()[0]["input_ids"])
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        compiled = torch.compile(bertgen.accelerate(model), backend="eager")
        assert distance(compiled(**inputs).last_hidden_state, expected) <= 1e-5 and not calls
