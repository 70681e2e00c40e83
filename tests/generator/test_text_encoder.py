"""Texts as ids: limits, truncation, bad texts."""

import itertools

import pytest
import torch

from bertgen import (
    Generator,
    InputError,
)
from tests.support.checkpoints import FIRST, POSITIONS


@pytest.mark.parametrize("text", ["", " ", "\n \t"])
def test_a_text_without_tokens_needs_no_model(generator, batches, text):
    first, empty, last = generator.generate(["one", text, "two"], num_beams=2, num_return_sequences=2)
    assert (empty.text, empty.token_ids, empty.score, empty.alternatives) == ("", (), None, ())
    assert (first.text, last.text) == ("eins", "zwei") and batches == [(2, 1)]
    assert generator.generate([text])[0].text == "" and len(batches) == 1


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "text 1: must be a str, got NoneType"),
        (7, "text 1: must be a str, got int"),
        (b"one", "text 1: must be a str, got bytes"),
        (["one"], "text 1: must be a str, got list"),
        ("one \ud800", r"text 1: no valid Unicode: lone surrogate U\+D800 at position 4"),
        ("one " * 49, r"text 1: \d+ tokens, the limit is 48 "),
    ],
)
def test_bad_text_is_named_before_anything_is_generated(generator, batches, text, message):
    texts = ["one", text, "two"]
    with pytest.raises(InputError, match=message):
        generator.generate(texts)
    with pytest.raises(InputError, match=message):
        list(generator.stream(texts))
    assert batches == []
    with pytest.raises(InputError) as raised:
        generator.generate(texts)
    answers = dict(generator.stream(texts, return_errors=True))
    assert (answers[0].text, answers[2].text) == ("eins", "zwei")
    assert (answers[1].text, answers[1].index) == ("", 1)
    assert f"text 1: {answers[1].error}" == str(raised.value)
    assert answers[0].error is None


def test_truncation(generator, tiny_checkpoint):
    long = " ".join(itertools.islice(itertools.cycle(FIRST), 60))
    ids = generator.tokenizer.encode_batch([long])[0]
    short, cut = generator.generate(["one", long], truncation=True)
    expected = generator.model.generate(torch.tensor([ids[:POSITIONS]]))[0, 1:].tolist()
    assert (short.truncated, cut.truncated) == (False, True) and list(cut.token_ids) == expected
    five = Generator(generator.model, generator.tokenizer, truncation=True, max_input_length=5)
    assert five.generate([long])[0].token_ids == tuple(
        generator.model.generate(torch.tensor([ids[:5]]))[0, 1:].tolist()
    )
    with pytest.raises(InputError, match=f"text 0: {len(ids)} tokens, the limit is 5 "):
        five.generate([long], truncation=False)


def test_longest_text_and_output_fit(generator):
    """A source that takes all positions of the encoder, an output that takes all of the decoder."""
    row = generator.tokenizer.encode_batch([" ".join(itertools.islice(itertools.cycle(FIRST), 60))])[0][:POSITIONS]
    text = generator.tokenizer.decode(row)
    while len(generator.tokenizer.encode_batch([text])[0]) > POSITIONS:  # what was cut may be encoded otherwise
        text = text.rpartition(" ")[0]
    assert generator.generate([text], max_new_tokens=POSITIONS, min_new_tokens=POSITIONS)[0].token_ids[-1] != 1
    with pytest.raises(InputError, match="the model has 48"):
        generator.generate(["one"], max_new_tokens=POSITIONS + 1)
