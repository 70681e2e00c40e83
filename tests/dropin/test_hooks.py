"""Hooks on an accelerated model get the same arguments as in transformers."""

from __future__ import annotations

from torch import nn

import bertgen
from tests.support.dropin_models import batch, distance, layer, make_model


def test_hooks_run(calls):
    """Hooks on any module get [batch, position, hidden], because transformers' own modules run then."""
    model, (inputs, labels) = bertgen.accelerate(make_model()), batch()
    seen = []
    linear = model.encoder.encoder.layer[1].intermediate.dense
    handle = linear.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    model(**inputs, labels=labels)
    assert seen == [(3, 9, 48)] and not calls
    handle.remove()
    handle = model.encoder.encoder.layer[0].register_forward_hook(lambda module, args, output: seen.append("layer"))
    model(**inputs, labels=labels)
    model.generate(**inputs, max_new_tokens=2)
    assert seen[1:] == ["layer", "layer"]
    before = sum(model._bertgen.fallbacks.values())
    assert before >= 2 and all("has a hook or an overridden method" in reason for reason in model._bertgen.fallbacks)
    handle.remove()
    model(**inputs, labels=labels)
    assert sum(model._bertgen.fallbacks.values()) == before and calls == ["forward"]


def test_hooks_on_all_modules_get_the_arguments_of_transformers():
    inputs, labels = batch()
    seen = []
    for model in (make_model(), bertgen.accelerate(make_model())):
        shapes = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, args, output, shapes=shapes: shapes.append(
                (type(module).__name__, getattr(output, "shape", 0))
            )
        )
        model(**inputs, labels=labels)
        handle.remove()
        seen.append(shapes)
    assert seen[0] == seen[1] and ("Linear", (3, 9, 48)) in seen[0]


def test_gradients_in_a_hook_have_positions():
    arguments, labels = batch()
    seen = []
    for model in (make_model(), bertgen.accelerate(make_model())):
        layer(model).output.LayerNorm.register_full_backward_hook(lambda m, inputs, outputs: seen.append(outputs[0]))
        model.train()(**arguments, labels=labels).loss.backward()
    assert seen[0].shape == (3, 9, 32) and distance(*seen) <= 1e-5
