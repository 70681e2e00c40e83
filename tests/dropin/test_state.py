"""The state of an accelerated model: its backend, its fallbacks, and when it is inspected again."""

from __future__ import annotations

import pickle

import pytest

import bertgen
from bertgen import ops
from bertgen.dropin import forward
from bertgen.dropin.state import INSIDE_FALLBACK, fallback, is_accelerated, set_state, state_of, take_state
from tests.support.dropin_models import batch, halve_output, last_layer, make_model


@pytest.mark.parametrize("own, process", [("auto", "reference"), ("reference", "auto")])
def test_the_backend_holds_while_the_model_runs(own, process, monkeypatch):
    model, (inputs, labels) = bertgen.accelerate(make_model(), backend=own), batch()
    seen, run = [], forward._run
    monkeypatch.setattr(forward, "_run", lambda *args: (seen.append(ops.backend()), run(*args))[1])
    before = ops.set_backend(process)
    try:
        model(**inputs, labels=labels)
        assert seen == ["reference"] and ops.backend() == process
    finally:
        ops.set_backend(before)


def test_a_reason_is_named_and_logged_once(caplog):
    model = bertgen.accelerate(make_model())
    handle = last_layer(model).output.dropout.register_forward_hook(halve_output)
    inputs, labels = batch()
    with caplog.at_level("WARNING", logger="bertgen"):
        for _ in range(3):
            model(**inputs, labels=labels)
    assert len(caplog.records) == 1 and "decoder.bert.encoder.layer.1.output.dropout" in caplog.text
    assert "Dropout has a hook or an overridden method" in bertgen.explain(model).obstacles[""]
    assert "decoder" in bertgen.explain(model).obstacles and "encoder" not in bertgen.explain(model).obstacles
    handle.remove()
    model.register_forward_hook(halve_output)
    assert (
        bertgen.explain(model)
        .obstacles[""]
        .startswith("generate: EncoderDecoderModel has a hook or an overridden method")
    )


def test_an_unchanged_model_is_not_inspected_again(monkeypatch):
    """A call only compares the attributes of every module, in C."""
    model = bertgen.accelerate(make_model())
    state = model._bertgen
    assert state.why_not_forward(model) is None and state.why_not_generate(model) is None
    monkeypatch.setattr(type(state), "_inspect", None)
    monkeypatch.setattr(bertgen.dropin.reasons, "why_not_generate", None)
    inputs, labels = batch()
    model(**inputs, labels=labels)
    model.generate(**inputs, max_new_tokens=3)


def test_inside_a_fallback_every_model_declines():
    model = bertgen.accelerate(make_model())
    state = state_of(model.encoder)
    with fallback():
        assert state.why_not_forward(model.encoder) is INSIDE_FALLBACK
        state.count_fallback("forward", "BertGenerationEncoder", INSIDE_FALLBACK)
    assert state.why_not_forward(model.encoder) is None and not state.fallbacks


def test_a_changed_model_is_inspected_and_wrapped_again():
    model = bertgen.accelerate(make_model())
    state = state_of(model)
    assert state.why_not_forward(model) is None
    first = state.wrapped_model
    model.eval().train()  # a change of modes keeps the wrapped model
    assert state.why_not_forward(model) is None and state.wrapped_model is first
    model.encoder.encoder.layer = model.encoder.encoder.layer[:1]
    assert "layers" in state.why_not_forward(model)
    model.encoder.config.num_hidden_layers = model.config.encoder.num_hidden_layers = 1
    assert state.why_not_forward(model) is None and state.wrapped_model is not first


def test_a_copy_of_a_state_has_the_options_and_nothing_else():
    model = bertgen.accelerate(make_model(), backend="reference", generate=False)
    state = state_of(model)
    state.count_fallback("forward", "EncoderDecoderModel", "a test")
    other = pickle.loads(pickle.dumps(state))
    assert (other.backend, other.generate, other.quantized) == ("reference", False, False) and not other.fallbacks


def test_a_state_can_be_set_and_taken():
    model = bertgen.accelerate(make_model())
    assert is_accelerated(model) and not is_accelerated(make_model())
    state = take_state(model)
    assert state is not None and take_state(model) is None
    set_state(model, state)
    assert state_of(model) is state
