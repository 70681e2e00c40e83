"""`generate` in static steps gives the tensors of the decode loop, and takes only calls whose arguments it knows."""

import random

import pytest
import torch

from bertgen.model import encoder_decoder, static_generation
from bertgen.ops import extension
from tests.support.checkpoints import sentence

pytestmark = pytest.mark.skipif(not extension.available(), reason="static steps of a CPU need the extension")
KNOWN = [
    dict(),
    dict(num_beams=3),
    dict(num_beams=4, num_return_sequences=3, length_penalty=0.3, early_stopping=True),
    dict(num_beams=2, repetition_penalty=1.3, no_repeat_ngram_size=2),
    dict(min_new_tokens=5, suppress_tokens=[7, 8], pad_token_id=3),
    dict(eos_token_id=None, num_beams=1),
    dict(forced_eos_token_id=1, max_new_tokens=3, num_beams=3, num_return_sequences=3),
]


@pytest.fixture
def paths(monkeypatch):
    """Whether each call of `generate` ran static steps."""
    taken, function = [], static_generation.static_sequences

    def told(*arguments):
        result = function(*arguments)
        taken.append(result is not None)
        return result

    monkeypatch.setattr(encoder_decoder, "static_sequences", told)
    return taken


def batch(generator, count=5):
    r = random.Random(count)
    rows = generator.tokenizer.encode_batch([sentence(r) for _ in range(count)])
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return dict(input_ids=ids, attention_mask=(ids > 0).long(), max_new_tokens=12)


@pytest.mark.parametrize("given", KNOWN, ids=str)
def test_the_tensors_are_those_of_the_decode_loop(generator, paths, monkeypatch, given):
    call = batch(generator) | given
    static = generator.model.generate(**call)
    assert paths == [True] and not static.is_inference()
    monkeypatch.setattr(encoder_decoder, "static_sequences", lambda *_: None)
    plain = generator.model.generate(**call)
    assert torch.equal(static, plain) and static.dtype == plain.dtype


@pytest.mark.parametrize(
    "given",
    [
        dict(return_dict_in_generate=True),
        dict(use_cache=False),
        dict(do_sample=True),
        dict(num_beams=4, num_beam_groups=2, diversity_penalty=0.5),
        dict(logits_processor=[lambda history, scores: scores]),
        dict(stopping_criteria=[lambda history, scores: False]),
        dict(prefix_allowed_tokens_fn=lambda source, tokens: [5, 6, 1]),
        dict(max_time=99.0),
        dict(decoder_input_ids=torch.tensor([[2, 7]]).expand(5, 2)),
        dict(decoder_attention_mask=torch.tensor([[0]]).expand(5, 1)),
        dict(decoder_position_ids=torch.tensor([[1]]).expand(5, 1)),
        dict(num_beams=13),
    ],
    ids=lambda value: "-".join(value) or "none" if isinstance(value, dict) else str(value),
)
def test_other_arguments_are_left_to_the_decode_loop(generator, paths, given):
    generator.model.generate(**batch(generator) | given)
    assert paths == [False]


@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("given", [dict(), dict(renormalize_logits=True), dict(eos_token_id=[1, 7, 8])], ids=str)
def test_equal_hypotheses_have_the_order_of_the_decode_loop(generator, paths, monkeypatch, beams, given):
    call = batch(generator) | dict(max_new_tokens=4, forced_eos_token_id=[8, 1, 7], num_beams=beams) | given
    call |= dict(num_return_sequences=beams)
    static = generator.model.generate(**call)
    assert paths == [True]
    monkeypatch.setattr(encoder_decoder, "static_sequences", lambda *_: None)
    assert torch.equal(static, generator.model.generate(**call))


@pytest.mark.parametrize("given", [dict(), dict(min_new_tokens=1, suppress_tokens=[5])], ids=str)
def test_every_token_may_end_an_output(generator, paths, monkeypatch, given):
    vocabulary = generator.model.config.decoder.vocab_size
    call = batch(generator) | dict(eos_token_id=[*range(vocabulary)], num_beams=2, num_return_sequences=2) | given
    static = generator.model.generate(**call)
    assert paths == [True]
    monkeypatch.setattr(encoder_decoder, "static_sequences", lambda *_: None)
    assert torch.equal(static, generator.model.generate(**call))


def test_hooks_are_called(generator, paths):
    model, seen = generator.model, []
    handles = [
        model.decoder.register_forward_hook(lambda *_: seen.append("decoder")),
        model.decoder.body.encoder.layer[0].register_forward_hook(lambda *_: seen.append("layer")),
    ]
    model.generate(**batch(generator))
    handles.pop(0).remove()
    assert {*seen} == {"decoder", "layer"} and True not in paths
    seen.clear()
    model.generate(**batch(generator))
    handles.pop().remove()
    assert {*seen} == {"layer"} and True not in paths
    model.generate(**batch(generator))
    assert paths[-1] is True
