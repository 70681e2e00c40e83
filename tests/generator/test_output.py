"""Outputs: texts, tokens and their counts."""

import gc
import time
import weakref

import pytest

from bertgen import (
    EncoderDecoderModel,
    Generator,
)
from tests.support.checkpoints import POSITIONS
from tests.support.hostile import PATIENCE


def test_an_id_without_a_piece_adds_no_text(tiny_checkpoint):
    """A padded vocabulary: as in transformers, the id is in the tokens and not in the text."""
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    model.decoder.resize_token_embeddings(72)
    generator = Generator(model, tiny_checkpoint)
    plain = generator.generate(["one two"])[0]
    odd = generator.submit("one two", forced_bos_token_id=70, min_new_tokens=3)
    other = generator.submit("one two")
    found = odd.result(PATIENCE)
    assert found.token_ids[0] == 70 and found.text == generator.tokenizer.decode(
        [token for token in found.token_ids if token < 64], skip_special_tokens=True
    )
    assert other.result(PATIENCE).token_ids == plain.token_ids


def test_a_text_that_cannot_be_decoded_fails_its_own_request(generator, monkeypatch):
    decode = generator.tokenizer.batch_decode

    def failing(rows, **given):
        if len(rows[0]) == 5:
            raise ZeroDivisionError("no text")
        return decode(rows, **given)

    monkeypatch.setattr(generator.tokenizer, "batch_decode", failing)
    with generator.engine.lock:
        bad, good = generator.submit("one", min_new_tokens=5, max_new_tokens=5), generator.submit("two")
    assert good.result(PATIENCE).text == "zwei"
    with pytest.raises(ZeroDivisionError, match="no text"):
        bad.result(PATIENCE)


def test_token_ids_end_with_the_end_token_or_at_the_limit(generator):
    whole = generator.generate(["one two three"])[0]
    assert whole.token_ids.index(1) == len(whole.token_ids) - 1
    assert generator.generate(["one two three"], max_new_tokens=2)[0].token_ids == whole.token_ids[:2]
    second = whole.token_ids[1]
    assert generator.generate(["one two three"], eos_token_id=[1, second])[0].token_ids == whole.token_ids[:2]


def test_outputs_have_the_number_of_input_tokens(generator):
    texts = ["one two three", "", "white " * 60]
    found = generator.generate(texts, truncation=True, num_beams=2, num_return_sequences=2)
    assert [output.input_tokens for output in found] == [3, 0, POSITIONS]


class Failure(Exception):
    """Has weak references, as classes of exceptions that are written in Python do."""


def failing(history, scores):
    raise Failure


def error_of_generate(generator):
    try:
        generator.generate(["one"], logits_processor=[failing])
    except Failure as error:
        return weakref.ref(error)


def error_of_future(generator):
    return weakref.ref(generator.submit("one", logits_processor=[failing]).exception(PATIENCE))


@pytest.mark.parametrize("call", [error_of_generate, error_of_future])
def test_an_error_is_freed_with_its_last_reference(generator, call):
    """Without the garbage collector: in a cycle with its traceback, it would keep the Generator and its model."""
    gc.collect()
    gc.disable()
    try:
        error = call(generator)
        for _ in range(100):  # the thread that steps may hold the request a moment longer
            if error() is None:
                break
            time.sleep(0.01)
        assert error() is None
    finally:
        gc.enable()
