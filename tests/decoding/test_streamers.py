"""Streamers against transformers', put for put."""

from __future__ import annotations

import queue
import random
import threading

import pytest
import torch
import transformers

from bertgen import (
    BertGenerationTokenizer,
    ConfigError,
    EncoderDecoderModel,
    InputError,
    TextIteratorStreamer,
    TextStreamer,
)
from tests.support.transformers_version import VERSION


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return EncoderDecoderModel.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return BertGenerationTokenizer.from_pretrained(tiny_checkpoint)


class Letters:
    """A tokenizer whose tokens are letters; 0 is a special token. A text begins with no space."""

    def decode(self, ids, skip_special_tokens=False):
        ids = [ids] if isinstance(ids, int) else ids
        text = "".join("" if skip_special_tokens and i == 0 else chr(i) if i else "<0>" for i in ids)
        return text.removeprefix(" ")


TEXTS = [
    "some words, and more", "two lines\n of text\n", "世界 hello 世", "", " ", "\n", "no-space", "ends with space ",
    "カタカナ한글㐀𠀀豈", "a\n\nb 世\n c",
]  # fmt: skip


@pytest.mark.skipif(VERSION < (5, 24), reason="transformers before 5.24 streams whole words")
@pytest.mark.parametrize("skip_prompt", [False, True])
@pytest.mark.parametrize("skip_special", [False, True])
@pytest.mark.parametrize("most", [1, 3])
def test_text_comes_in_the_same_pieces(skip_prompt, skip_special, most):
    class Ours(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            pieces.append((text, stream_end))

    class Theirs(transformers.TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            pieces.append((text, stream_end))

    results = []
    for kind in (Ours, Theirs):
        pieces: list = []
        r = random.Random(1)
        streamer = kind(Letters(), skip_prompt=skip_prompt, skip_special_tokens=skip_special)
        for text in TEXTS:  # one streamer for all: it begins anew after each end
            streamer.put(torch.tensor([[0, ord("p"), ord(" ")]]))
            ids = [0, *map(ord, text), 0]
            while ids:
                count = r.randint(1, most)
                streamer.put(torch.tensor(ids[:count]))
                ids = ids[count:]
            streamer.end()
        results.append(pieces)
    assert results[0] == results[1]
    assert sum(end for _, end in results[0]) == len(TEXTS)


def test_text_is_written_to_stdout(model, tokenizer, capsys):
    ids = tokenizer("one two three", return_tensors="pt").input_ids
    for kind in (TextStreamer, transformers.TextStreamer):
        model.generate(ids, streamer=kind(tokenizer, skip_prompt=True, skip_special_tokens=True))
        assert capsys.readouterr().out == "eins zwei drei\n"


def test_an_iterator_gives_the_text_while_another_thread_generates(model, tokenizer):
    ids = tokenizer("one two three", return_tensors="pt").input_ids
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20, skip_special_tokens=True)
    thread = threading.Thread(target=model.generate, args=(ids,), kwargs=dict(streamer=streamer))
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == "eins zwei drei" and len(pieces) > 3


def test_an_iterator_does_not_wait_for_ever(tokenizer):
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(tokenizer, timeout=0.01))


@pytest.mark.parametrize("options", [{}, dict(do_sample=True, num_return_sequences=2), dict(decoder_input_ids=True)])
def test_any_object_with_put_and_end_gets_all_tokens(model, options):
    class Record:
        def __init__(self):
            self.got, self.ended = [], 0

        def put(self, value):
            self.got.append(value)

        def end(self):
            self.ended += 1

    oracle_form, ids = Record(), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 0, 0], [15, 0, 0, 0]])
    if "decoder_input_ids" in options:
        options = dict(decoder_input_ids=torch.tensor([[2, 9]] * 4))
    output = model.generate(ids, streamer=oracle_form, max_new_tokens=20, **options)
    start = 2 if "decoder_input_ids" in options else 1
    assert torch.equal(oracle_form.got[0], output[:, :start]) and oracle_form.ended == 1
    assert torch.equal(torch.stack(oracle_form.got[1:], 1), output[:, start:])


def test_what_cannot_be_streamed(model, tokenizer):
    with pytest.raises(ConfigError, match="streamer cannot be used with num_beams 2"):
        model.generate(torch.tensor([[5]]), num_beams=2, streamer=TextStreamer(tokenizer))
    with pytest.raises(InputError, match="a TextStreamer streams one output, got 2"):
        model.generate(torch.tensor([[5], [6]]), streamer=TextStreamer(tokenizer))
