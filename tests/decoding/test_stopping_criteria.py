"""What ends an output: stop strings, time and callers' criteria, against transformers'."""

from __future__ import annotations

import random
import time
from functools import partial

import pytest
import torch
import transformers
from transformers.generation.stopping_criteria import StopStringCriteria

from bertgen import BertGenerationTokenizer, EncoderDecoderModel, GenerationConfig, InputError
from bertgen.decoding import resolve_generation_config
from bertgen.decoding.stopping_criteria import StoppingCriteriaList, StopStrings, build_stopping_criteria
from tests.support.checkpoints import FIRST
from tests.support.generate_comparison import both

WORDS = list(FIRST.values())


@pytest.fixture(scope="module")
def models(tiny_checkpoint):
    oracle = transformers.EncoderDecoderModel.from_pretrained(tiny_checkpoint, attn_implementation="eager").eval()
    return oracle, EncoderDecoderModel.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def tokenizers(tiny_checkpoint):
    return (
        transformers.BertGenerationTokenizer.from_pretrained(tiny_checkpoint),
        BertGenerationTokenizer.from_pretrained(tiny_checkpoint),
    )


@pytest.fixture(scope="module")
def sources(tokenizers):
    texts = [" ".join(random.Random(i).choices(list(FIRST), k=4 + i % 3)) for i in range(5)]
    batch = tokenizers[1](texts, padding=True, return_tensors="pt")
    return dict(input_ids=batch.input_ids, attention_mask=batch.attention_mask)


def cut(r: random.Random) -> str:
    """A piece of a text, that may begin and end inside words."""
    text = " ".join(r.choices(WORDS, k=2))
    begin = r.randrange(len(text))
    return text[begin : begin + r.randint(1, 6)]


@pytest.mark.parametrize("seed", range(40))
def test_stop_strings_match_where_transformers_says(tokenizers, seed):
    theirs, ours = tokenizers
    r = random.Random(seed)
    stops = [cut(r) for _ in range(r.randint(1, 3))] + r.choice([[], [], ["</s>"], ["<s> e"], ["ei ns"], [" "]])
    rows = [[2, *ours.encode(" ".join(r.choices(WORDS, k=9)))[:9], r.choice([0, 1, 40])] for _ in range(8)]
    expected, got = StopStringCriteria(theirs, stops), StopStrings(ours, stops)
    for length in range(1, len(rows[0]) + 1):
        history = torch.tensor(rows)[:, :length]
        assert torch.equal(got(history, None), expected(history, None)), (stops, length)


def test_a_token_outside_the_tokenizer_spells_nothing(tokenizers):
    _, tokenizer = tokenizers
    stop = StopStrings(tokenizer, ["eins"])
    eins, outside = tokenizer.encode("eins"), [len(tokenizer) + 3]
    rows = [eins, [*outside, *eins], [*eins, *outside], outside]
    assert [stop(torch.tensor([row]), None).item() for row in rows] == [True, True, False, False]


class Bytes:
    """A tokenizer whose tokens are bytes, so that a letter may take several."""

    def __len__(self):
        return 256

    def encode(self, text, add_special_tokens=False):
        return list(text.encode())

    def decode(self, ids, clean_up_tokenization_spaces=False):
        return bytes(ids).decode("utf-8", "replace")


def test_a_letter_of_several_tokens_stops_with_its_last():
    stop = StopStrings(Bytes(), ["für", "€"])
    for text, expected in (("für", "für"), ("was für ein", "was für"), ("5 €.", "5 €")):
        ids = list(text.encode())
        found = [n for n in range(1, len(ids) + 1) if stop(torch.tensor([ids[:n]]), None).item()]
        assert [bytes(ids[:n]).decode() for n in found] == [expected]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("stops", ["z", ["ei", "hund"], [" b"], ["weiß s", "chs"]])
def test_generate_stops_where_transformers_does(models, tokenizers, sources, beams, stops):
    options = dict(stop_strings=stops, num_beams=beams, max_new_tokens=25)
    expected, got = (
        model.generate(**sources, **options, tokenizer=tokenizer) for model, tokenizer in zip(models, tokenizers)
    )
    assert torch.equal(got, expected)
    whole = models[1].generate(**sources, num_beams=beams, max_new_tokens=25)
    assert got.shape != whole.shape or not torch.equal(got, whole), "something was stopped"


def test_without_an_end_token_a_row_continues_after_its_stop(models, tokenizers, sources):
    """As in transformers: nothing says what to fill up with, until the last row has stopped."""
    options = dict(stop_strings=["ei", "ie", "o"], max_new_tokens=25, eos_token_id=None)
    expected, got = (
        model.generate(**sources, **options, tokenizer=tokenizer) for model, tokenizer in zip(models, tokenizers)
    )
    assert torch.equal(got, expected) and not (got == 0).any()


CRITERIA = {
    "by token": lambda history, scores: history[:, -1] % 4 == 0,
    "by length, one bool": lambda history, scores: history.shape[1] >= 5,
    "by row": lambda history, scores: (torch.arange(len(history)) % 2 == 0) & (history.shape[1] > 3),
    "by scores": lambda history, scores: torch.full((len(history),), len(scores) == 4 and scores[-1].shape[1] == 64),
}


@pytest.mark.parametrize("end", [1, None])
@pytest.mark.parametrize("options", [dict(), dict(num_beams=3, num_return_sequences=2), dict(do_sample=True)])
@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_stop_what_they_stop_in_transformers(models, sources, name, options, end):
    criteria = transformers.StoppingCriteriaList([CRITERIA[name]])
    if end is None and options.get("num_beams"):
        return  # after the end of a beam transformers writes -1 where there is no end token
    given = dict(**sources, **options, max_new_tokens=12, stopping_criteria=criteria, eos_token_id=end, pad_token_id=0)
    expected, got = both(*models, 2, **given, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(got.sequences, expected.sequences)


def test_several_criteria_stop_a_row_together():
    history = torch.tensor([[1, 2], [3, 4], [5, 6]])
    criteria = StoppingCriteriaList([lambda h, s: h[:, 0] == 1, lambda h, s: h[:, 1] == 6, lambda h, s: False])
    assert criteria(history, None).tolist() == [True, False, True]
    assert (
        StoppingCriteriaList([lambda h, s: True])(history, None).all()
        and not StoppingCriteriaList()(history, None).any()
    )
    with pytest.raises(InputError, match=r"shape \(3, 1\) for 3 rows"):
        StoppingCriteriaList([lambda h, s: h[:, :1] == 1])(history, None)


@pytest.mark.parametrize("beams", [1, 2])
def test_time_runs_out(models, sources, beams, monkeypatch):
    """A clock that moves 0.1 s a look: after 0.35 s a fourth token is the last."""
    _, model = models
    now = [0.0]

    def tick():
        now[0] += 0.1
        return now[0]

    monkeypatch.setattr(time, "monotonic", tick)
    options = dict(num_beams=beams, max_new_tokens=30, eos_token_id=None)
    assert model.generate(**sources, **options, max_time=0.35).shape[1] == 5
    assert model.generate(**sources, **options, max_time=0.0).shape[1] == 2
    assert model.generate(**sources, **options, max_time=99.0).shape[1] == 31


def test_nothing_to_stop_by():
    options = resolve_generation_config(GenerationConfig(bos_token_id=2))
    build = partial(build_stopping_criteria, options)
    assert not build() and not build().by_row
    assert build(custom=[print]).by_row and not build(custom=[]).by_row
