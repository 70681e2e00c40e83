"""Detection of patched code: originals of the libraries pass, replacements do not."""

from __future__ import annotations

import functools
import types

import pytest
import torch
import transformers
from torch import nn
from transformers.models.bert_generation import modeling_bert_generation as modeling

from bertgen.dropin.patches import is_known, is_original, package, patched_method, patched_value


def test_known_modules_are_those_of_the_packages_and_of_python():
    assert package("torch.nn.modules.linear") == "torch"
    assert is_known("transformers.models.bert.modeling_bert") and is_known("functools") and is_known("bertgen.ops")
    assert not is_known("torchvision.ops") and not is_known(__name__) and not is_known("")


@pytest.mark.parametrize(
    "function", [torch.nn.functional.linear, nn.Linear.forward, functools.wraps, len], ids=lambda f: f.__qualname__
)
def test_functions_of_the_libraries_are_original(function):
    assert is_original(function)


def test_a_wrapper_is_not_original_though_it_copies_all_attributes():
    @functools.wraps(nn.Linear.forward)
    def patched(*args):
        return nn.Linear.forward(*args)

    assert patched.__module__ == nn.Linear.forward.__module__ and not is_original(patched)
    assert not is_original(functools.lru_cache(patched)) and not is_original(functools.partial(nn.Linear.forward))


def test_a_function_of_another_class_has_another_place():
    place = "torch.nn.modules.linear.Linear.forward"
    assert is_original(nn.Linear.forward, place) and not is_original(nn.LayerNorm.forward, place)


def test_a_patched_value_of_a_file_is_named(monkeypatch):
    assert patched_value(modeling) is None
    monkeypatch.setattr(modeling, "create_causal_mask", lambda *args: None)
    assert patched_value(modeling) == f"{modeling.__name__}.create_causal_mask"


def test_a_callable_object_in_the_place_of_a_function_is_a_patch():
    class Callable:
        def __call__(self):
            pass

    file = types.ModuleType("file")
    file.numbers, file.table = [1, 2], {"a": 1}
    assert patched_value(file) is None
    file.function = Callable()
    assert patched_value(file) == "file.function"


def test_the_annotations_of_a_class_are_no_patch(monkeypatch):
    """Python 3.14 keeps them in a function that was compiled under another name than its attribute."""
    function = types.FunctionType((lambda format: {}).__code__, vars(modeling))
    monkeypatch.setattr(modeling.BertGenerationLayer, "__annotate_func__", function, raising=False)
    assert patched_method(modeling.BertGenerationLayer) is None


def test_a_patched_method_is_named_with_the_class_that_has_it(monkeypatch):
    assert patched_method(modeling.BertGenerationLayer) is None
    monkeypatch.setattr(modeling.BertGenerationLayer, "feed_forward_chunk", lambda self, x: x)
    assert patched_method(modeling.BertGenerationLayer) == "BertGenerationLayer.feed_forward_chunk"
    assert patched_method(modeling.BertGenerationLayer, ["forward"]) is None  # another method was checked


def test_a_patched_method_of_a_base_class_is_found(monkeypatch):
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *args: args)
    assert patched_method(modeling.BertGenerationLayer) == "Module.__call__"


def test_constructors_may_be_wrapped(monkeypatch):
    monkeypatch.setattr(transformers.BertGenerationEncoder, "__init__", lambda self: None)
    assert patched_method(transformers.BertGenerationEncoder) is None
