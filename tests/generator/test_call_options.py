"""Options of a call."""

import copy

import pytest
import transformers

from bertgen import (
    BertGenerationTokenizer,
    ConfigError,
    EncoderDecoderModel,
    GenerationConfig,
    Generator,
    UnsupportedError,
)
from tests.support.checkpoints import POSITIONS
from tests.support.hostile import PATIENCE


def test_stream_checks_options_when_called(generator):
    with pytest.raises(ConfigError, match="num_beans"):
        generator.stream(["one"], num_beans=2)
    with pytest.raises(ConfigError, match="lookahead must be an integer from 1 to 2147483647, got 0"):
        generator.stream(["one"], lookahead=0)


def test_without_a_maximum_length_outputs_end_at_the_last_position(generator):
    model = copy.copy(generator.model)
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1, decoder_start_token_id=2)
    free = Generator(model, generator.tokenizer)
    endless = dict(min_length=POSITIONS)
    assert len(free.generate(["one"], **endless)[0].token_ids) == POSITIONS - 1
    assert len(free.generate(["one"], max_new_tokens=4, min_new_tokens=4)[0].token_ids) == 4
    config = GenerationConfig(max_length=6, min_length=6)
    assert len(free.generate(["one"], generation_config=config)[0].token_ids) == 5
    with pytest.raises(ConfigError, match="min_length 48 is more than max_length 40"):
        generator.generate(["one"], **endless)


def test_return_options_of_the_config_are_ignored(tiny_checkpoint, texts, monkeypatch):
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    model.generation_config.output_scores = model.generation_config.output_attentions = True
    model.generation_config.return_dict_in_generate = True
    outputs = Generator(model, BertGenerationTokenizer.from_pretrained(tiny_checkpoint)).generate(texts[:3])
    assert all(output.score is None and output.text for output in outputs)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"num_beans": 4}, ConfigError, "num_beans"),
        ({"num_beams": 0}, ConfigError, "num_beams must be an integer from 1"),
        ({"num_return_sequences": 2}, ConfigError, "greedy search has one output"),
        ({"num_beams": 2, "num_return_sequences": 3}, ConfigError, "num_return_sequences 3 is more than num_beams 2"),
        ({"return_dict_in_generate": True}, ConfigError, "return_dict_in_generate is for model.generate"),
        ({"output_scores": True}, ConfigError, "scores=True"),
        ({"output_attentions": False}, ConfigError, "output_attentions is for model.generate"),
        ({"logits_processor": [3]}, ConfigError, "logits_processor must be a list of callables"),
        ({"stopping_criteria": print}, ConfigError, "stopping_criteria must be a list of callables"),
        ({"suppress_tokens": [10**6]}, ConfigError, "suppress_tokens holds 1000000"),
        ({"streamer": None}, ConfigError, "streamer is for model.generate"),
        ({"seed": 1.5}, ConfigError, "seed must be an integer from .*, got 1.5"),
        ({"max_batch_size": 0}, ConfigError, "max_batch_size must be an integer from 1 to 2147483647, got 0"),
        ({"num_beam_groups": 2}, ConfigError, "num_beams 1 must be a multiple of num_beam_groups 2"),
        ({"penalty_alpha": 0.5}, UnsupportedError, "penalty_alpha=0.5"),
    ],
)
def test_bad_options(generator, options, error, message):
    with pytest.raises(error, match=message):
        generator.generate(["one"], **options)


def test_criteria_that_take_the_place_of_an_option_are_refused(generator):
    """In `model.generate` they set the length of an output; the engine has reserved its cache before it calls them."""
    for criterion in (transformers.MaxLengthCriteria(30), transformers.EosTokenCriteria([5])):
        with pytest.raises(UnsupportedError, match="pass max_length= or eos_token_id="):
            generator.generate(["one"], stopping_criteria=[criterion])
    same = [transformers.MaxTimeCriteria(100.0)]
    assert generator.generate(["one"], stopping_criteria=same) == generator.generate(["one"])


@pytest.mark.parametrize("penalty, score", [(1000.0, 0.0), (-1000.0, -float("inf"))])
def test_an_overflowing_length_penalty_gives_the_score_of_beams(generator, penalty, score):
    one = generator.submit("one two", scores=True, length_penalty=penalty)
    other = generator.submit("two")
    assert one.result(PATIENCE).score == score and other.result(PATIENCE).text == "zwei"
    assert generator.score(["one two"], ["eins zwei"], length_penalty=penalty)[0].score == score
    beams = generator.generate(["one two"], num_beams=2, length_penalty=penalty)[0]
    assert beams.score == score or penalty < 0
