"""Outputs: dataclasses that are also dicts and, without their None fields, tuples, as in transformers."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
import transformers

from bertgen import outputs
from bertgen.outputs import BaseModelOutputWithPastAndCrossAttentions, GenerateOutput, Seq2SeqLMOutput

X, Y = torch.ones(2), torch.zeros(3)


def test_fields_that_are_none_do_not_count():
    output = Seq2SeqLMOutput(logits=X, encoder_last_hidden_state=Y)
    assert list(output) == output.keys() == ["logits", "encoder_last_hidden_state"] and len(output) == 2
    assert output.values() == [X, Y] and output.items() == [("logits", X), ("encoder_last_hidden_state", Y)]
    assert output.to_tuple() == (X, Y) and "loss" not in output and "logits" in output
    assert output.loss is None and output.get("loss", 5) == 5 and output.get("logits") is X


def test_access_by_name_position_and_slice():
    output = Seq2SeqLMOutput(logits=X, encoder_last_hidden_state=Y)
    assert output["logits"] is output[0] is X and output[-1] is Y and output[:1] == (X,)
    for name in ("loss", "nothing"):
        with pytest.raises(KeyError, match=name):
            output[name]
    with pytest.raises(IndexError):
        output[2]


def test_a_field_can_be_set_by_name():
    output = Seq2SeqLMOutput(logits=X)
    output["loss"] = Y
    assert output.loss is Y and output[0] is Y
    with pytest.raises(KeyError, match="nothing"):
        output["nothing"] = Y


def test_a_cache_is_found_by_both_names_of_transformers():
    output = Seq2SeqLMOutput(logits=X, past_key_values=Y)
    assert output.cache is output["cache"] is output.get("cache") is Y and "cache" in output
    assert output.keys() == ["logits", "past_key_values"]
    output["cache"] = X
    assert output.past_key_values is X
    output.cache = None
    assert output.past_key_values is None and "cache" not in output and output.get("cache", 5) == 5
    assert not hasattr(GenerateOutput(), "cache")


def test_outputs_are_compared_by_identity():
    assert GenerateOutput(sequences=X) != GenerateOutput(sequences=X)


@pytest.mark.parametrize(
    "name",
    [name for name, value in vars(outputs).items() if inspect.isclass(value) and name.startswith(("B", "C", "S"))],
)
def test_fields_are_those_of_transformers_in_the_same_order(name):
    theirs = [field.name for field in dataclasses.fields(getattr(transformers.modeling_outputs, name))]
    ours = [field.name for field in dataclasses.fields(getattr(outputs, name))]
    assert ours == ["past_key_values" if field == "cache" else field for field in theirs]


def test_an_empty_output_is_an_empty_tuple():
    output = BaseModelOutputWithPastAndCrossAttentions()
    assert len(output) == 0 and output.to_tuple() == () and list(output) == []
