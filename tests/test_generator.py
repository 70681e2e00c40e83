"""Generator and pipeline on a tiny trained model; the oracle is `model.generate`, one text at a time."""

import copy
import dataclasses
import itertools
import random
import weakref

import pytest
import torch
from checkpoints import FIRST, MAX_LENGTH, POSITIONS, sentence, translation

from bertgen import (
    BackendError,
    BertGenerationTokenizer,
    ConfigError,
    EncoderDecoderModel,
    GenerationConfig,
    Generator,
    InputError,
    UnsupportedError,
)
from bertgen import (
    generator as generator_module,
)


@pytest.fixture(scope="module")
def generator(tiny_checkpoint):
    return Generator(tiny_checkpoint)


@pytest.fixture(scope="module")
def texts():
    r = random.Random(5)
    return [sentence(r) for _ in range(40)]


@pytest.fixture
def batches(generator, monkeypatch):
    """Shapes of the batches the model is given."""
    shapes, generate = [], generator.model.generate

    def record(**options):
        shapes.append(tuple(options["input_ids"].shape))
        return generate(**options)

    monkeypatch.setattr(generator.model, "generate", record)
    return shapes


def alone(generator, text, **options):
    """Token ids and scores of one text from model.generate: without padding, without a batch."""
    ids = torch.tensor([generator.tokenizer.encode_batch([text])[0]])
    found = generator.model.generate(ids, return_dict_in_generate=True, **options)
    rows = []
    for row in found.sequences.tolist():
        end = row.index(1) + 1 if 1 in row else len(row)
        rows.append(tuple(row[1:end]))
    return rows, None if found.sequences_scores is None else found.sequences_scores.tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4},
        {"num_beams": 5, "num_return_sequences": 3, "length_penalty": 2.0},
        {"num_beams": 2, "early_stopping": True, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 3},
        {"generation_config": GenerationConfig(num_beams=3, num_return_sequences=2, max_length=9)},
    ],
    ids=lambda options: "-".join(options) or "greedy",
)
@pytest.mark.parametrize("max_batch_tokens", [None, 300])
def test_equals_generate_one_by_one(tiny_checkpoint, texts, options, max_batch_tokens):
    generator = Generator(tiny_checkpoint, max_batch_tokens=max_batch_tokens)
    for text, output in zip(texts[:16], generator.generate(texts[:16], **options), strict=True):
        rows, scores = alone(generator, text, **options)
        found = (output, *output.alternatives)
        assert [one.token_ids for one in found] == rows
        assert [one.text for one in found] == generator.tokenizer.batch_decode(rows, skip_special_tokens=True)
        if scores is None:
            assert [one.score for one in found] == [None] * len(rows)
        else:
            assert [one.score for one in found] == pytest.approx(scores, abs=1e-4)
            assert scores == sorted(scores, reverse=True)
        assert {one.index for one in found} == {output.index}


def test_the_model_knows_its_task(generator, texts):
    """Else the equalities above would compare noise."""
    right = [output.text == translation(text) for text, output in zip(texts, generator.generate(texts), strict=True)]
    assert sum(right) >= 38


def test_answers_come_in_the_order_of_the_texts(generator, texts, batches):
    outputs = generator.generate(texts, max_batch_size=3)
    assert [output.index for output in outputs] == list(range(len(texts)))
    assert [output.text for output in outputs] == [generator.generate([text])[0].text for text in texts]
    streamed = list(generator.stream(iter(texts), max_batch_size=3, lookahead=16))
    assert [index for index, _ in streamed] != list(range(len(texts))), "sorted by length within the look-ahead"
    assert [output for _, output in sorted(streamed, key=lambda pair: pair[0])] == outputs


def test_batches_are_cut_by_tokens(tiny_checkpoint, texts, batches, generator):
    """Rows x (longest source + width x likely target) stays below the limit, and no batch could take one more."""
    for limit, width in ((400, 1), (1500, 4)):
        batches.clear()
        small = Generator(generator.model, generator.tokenizer, max_batch_tokens=limit)
        small.generate(texts, num_beams=width)
        assert len(batches) > 2 and sum(rows for rows, _ in batches) == len(texts)
        lengths = sorted((len(row) for row in generator.tokenizer.encode_batch(texts)), reverse=True)
        for rows, longest in batches:
            cost = longest + width * min(MAX_LENGTH - 1, 2 * longest + 16)
            assert longest == lengths[0], "longest first"
            assert (rows * cost <= limit and (rows + 1) * cost > limit) or rows == len(lengths)
            lengths = lengths[rows:]


def test_a_text_above_the_limit_of_tokens_is_a_batch_of_its_own(generator, batches):
    small = Generator(generator.model, generator.tokenizer, max_batch_tokens=1)
    assert len(small.generate(["one", "two"])) == len(batches) == 2


def test_cache_of_full_length_outputs_bounds_a_batch(generator, texts, batches, monkeypatch):
    position = 2 * 2 * 48 * 4  # bytes: keys and values, layers, hidden, float32
    monkeypatch.setitem(generator_module.CACHE_BYTES, "cpu", 3 * position * MAX_LENGTH * 4 + 1)
    generator.generate(texts[:7], num_beams=4)
    assert [rows for rows, _ in batches] == [3, 3, 1]


@pytest.mark.parametrize("text", ["", " ", "\n \t"])
def test_text_without_tokens_is_answered_without_the_model(generator, batches, text):
    first, empty, last = generator.generate(["one", text, "two"], num_beams=2, num_return_sequences=2)
    assert (empty.text, empty.token_ids, empty.score, empty.alternatives) == ("", (), None, ())
    assert (first.text, last.text) == ("eins", "zwei") and batches == [(2, 1)]
    assert generator.generate([text])[0].text == "" and len(batches) == 1


def test_no_texts(generator):
    assert generator.generate([]) == [] and list(generator.stream([])) == []


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


@pytest.mark.parametrize("texts", ["one", b"one", 5, None])
def test_texts_must_be_a_list(generator, texts):
    for method in (generator.generate, generator.stream):
        with pytest.raises(InputError, match="expected a list of texts, got"):
            method(texts)


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


# stream


def test_stream_reads_a_bounded_number_of_texts(generator):
    """An infinite iterable is no obstacle, and nothing is read before the first answer is asked for."""
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield "one two"

    answers = generator.stream(endless(), lookahead=10)
    assert read == []
    assert [index for index, _ in itertools.islice(answers, 10)] == list(range(10)) and len(read) == 10
    assert next(answers)[0] == 10 and len(read) == 20


def test_stream_bounds_characters_too(generator, monkeypatch):
    monkeypatch.setattr(generator_module, "LOOKAHEAD_CHARACTERS", 30)
    windows = generator_module._windows(iter(["x" * 20, "x" * 20, "", "x" * 70, "y"]), 3)
    assert [[len(text) for text in window] for window in windows] == [[20, 20], [0, 70], [1]]


def test_stream_checks_options_when_called(generator):
    with pytest.raises(ConfigError, match="num_beans"):
        generator.stream(["one"], num_beans=2)
    with pytest.raises(ConfigError, match="lookahead must be an integer of at least 1, got 0"):
        generator.stream(["one"], lookahead=0)


# sampling and scores


def test_seed_makes_sampling_reproducible(generator, texts):
    texts = texts[:15]
    options = dict(do_sample=True, temperature=3.0, num_return_sequences=2, max_batch_size=7)
    before = torch.get_rng_state()
    first = generator.generate(texts, seed=1, **options)
    assert generator.generate(texts, seed=1, **options) == first
    assert torch.equal(torch.get_rng_state(), before), "torch's own randomness is left alone"
    assert generator.generate(texts, seed=2, **options) != first
    assert dict(generator.stream(texts, seed=1, **options)) == dict(enumerate(first))
    assert any(output.text != output.alternatives[0].text for output in first)


def test_sampling_without_seed_uses_torch(generator, texts):
    options = dict(do_sample=True, temperature=3.0)
    torch.manual_seed(3)
    first = generator.generate(texts, **options)
    assert generator.generate(texts, **options) != first
    torch.manual_seed(3)
    assert generator.generate(texts, **options) == first


def test_batches_draw_different_numbers(generator):
    """With one seed for all batches equal texts would get equal draws."""
    outputs = generator.generate(["white"] * 30, seed=1, do_sample=True, temperature=3.0, max_batch_size=1)
    assert len({output.token_ids for output in outputs}) > 3


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "num_return_sequences": 3, "temperature": 3.0, "seed": 1}])
def test_scores_of_greedy_and_sampled_outputs(generator, texts, options, monkeypatch):
    """The model's own log-probability over length ** length_penalty, counted token by token."""
    monkeypatch.setattr(generator_module, "SCORED_POSITIONS", 60)  # several slices
    for penalty in (1.0, 0.6):
        outputs = generator.generate(texts[:10], scores=True, length_penalty=penalty, **options)
        for text, output in zip(texts[:10], outputs, strict=True):
            ids = torch.tensor([generator.tokenizer.encode_batch([text])[0]])
            for one in (output, *output.alternatives):
                decoder_ids = torch.tensor([[2, *one.token_ids[:-1]]])
                logits = generator.model(input_ids=ids, decoder_input_ids=decoder_ids).logits[0].detach()
                gained = logits.log_softmax(-1)[range(len(one.token_ids)), list(one.token_ids)].sum()
                assert one.score == pytest.approx(float(gained) / len(one.token_ids) ** penalty, abs=1e-4)
    assert not options or len({one.score for one in (output, *output.alternatives)}) > 1


def test_greedy_score_is_that_of_beams(generator, texts):
    """Where greedy and beam search find the same output they give it the same score."""
    greedy, beams = generator.generate(texts, scores=True), generator.generate(texts, num_beams=3)
    same = [(a.score, b.score) for a, b in zip(greedy, beams, strict=True) if a.token_ids == b.token_ids]
    assert len(same) > 30
    assert [a for a, _ in same] == pytest.approx([b for _, b in same], abs=1e-4)


# lengths and options


def test_length_ends_with_the_positions_where_nobody_sets_one(generator):
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


def test_token_ids_end_with_the_end_token_or_at_the_limit(generator):
    whole = generator.generate(["one two three"])[0]
    assert whole.token_ids.index(1) == len(whole.token_ids) - 1
    assert generator.generate(["one two three"], max_new_tokens=2)[0].token_ids == whole.token_ids[:2]
    second = whole.token_ids[1]
    assert generator.generate(["one two three"], eos_token_id=[1, second])[0].token_ids == whole.token_ids[:2]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_options_of_every_kind_reach_the_model(generator, texts, options):
    """Stop strings need no tokenizer here, and what stops has neither an end token nor padding."""
    options = options | dict(stop_strings=["ei", "rot"], encoder_no_repeat_ngram_size=4, suppress_tokens=[40])
    for text, output in zip(texts, generator.generate(texts, **options)):
        rows, _ = alone(generator, text, **options, tokenizer=generator.tokenizer)
        found = [output, *output.alternatives]
        for one, row in zip(found, rows, strict=True):
            assert one.token_ids == tuple(row[: len(one.token_ids)]) and 0 not in one.token_ids
            assert set(row[len(one.token_ids) :]) <= {0, 1}
            stopped = [stop for stop in ("ei", "rot") if stop in one.text]
            assert bool(stopped) != (one.token_ids[-1] == 1) or len(one.token_ids) == MAX_LENGTH - 1


def test_what_a_configuration_asks_to_return_is_not_computed(tiny_checkpoint, texts, monkeypatch):
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    model.generation_config.output_scores = model.generation_config.output_attentions = True
    model.generation_config.return_dict_in_generate = True
    found, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **options: found.append(generate(**options)) or found[-1])
    Generator(model, BertGenerationTokenizer.from_pretrained(tiny_checkpoint)).generate(texts[:3])
    assert list(found[0]) == ["sequences"]


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
        ({"logits_processor": []}, ConfigError, "logits_processor is for model.generate"),
        ({"stopping_criteria": []}, ConfigError, "stopping_criteria is for model.generate"),
        ({"prefix_allowed_tokens_fn": print}, ConfigError, "prefix_allowed_tokens_fn is for model.generate"),
        ({"streamer": None}, ConfigError, "streamer is for model.generate"),
        ({"seed": 1.5}, ConfigError, "seed must be an integer, got 1.5"),
        ({"max_batch_size": 0}, ConfigError, "max_batch_size must be an integer of at least 1, got 0"),
        ({"num_beam_groups": 2}, ConfigError, "num_beams 1 cannot be shared among num_beam_groups 2"),
        ({"penalty_alpha": 0.5}, UnsupportedError, "penalty_alpha=0.5"),
    ],
)
def test_bad_options(generator, options, error, message):
    with pytest.raises(error, match=message):
        generator.generate([], **options)


# memory


def test_batch_that_does_not_fit_is_halved(generator, monkeypatch):
    """Every text is answered, later batches stay small, and the failed attempt's tensors are gone at the next."""
    texts = ["one two three"] * 39 + [""]
    expected, generate = generator.generate(texts), generator.model.generate
    sizes, held = [], []

    def limited(**options):
        rows = len(options["input_ids"])
        assert all(reference() is None for reference in held), "memory of a failed attempt is still held"
        sizes.append(rows)
        if rows > 6:
            big = torch.zeros(10)
            held.append(weakref.ref(big))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**options)

    monkeypatch.setattr(generator.model, "generate", limited)
    assert generator.generate(texts) == expected
    assert sizes == [39, 19, 9, 4, *[4] * 8, 3] and len(held) == 3


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_one_text_that_does_not_fit(generator, monkeypatch, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(generator.model, "generate", fail)
    with pytest.raises(
        BackendError, match=r"out of memory on cpu with text 0 alone: 1 tokens, num_beams 3, max_length"
    ):
        generator.generate(["one", ""], num_beams=3)


def test_texts_that_do_not_fit_are_answered_by_their_errors(generator, monkeypatch):
    """With `return_errors`; the others are answered as if these were not there."""
    texts = ["one", "one two three four", "two", "three three three three", "three"]
    expected, generate = generator.generate(texts), generator.model.generate

    def limited(**options):
        if options["input_ids"].shape[1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**options)

    monkeypatch.setattr(generator.model, "generate", limited)
    found = dict(generator.stream(texts, return_errors=True, first=100))
    assert list(found) == [101, 103, 100, 102, 104]
    for index in (0, 2, 4):
        assert found[100 + index] == dataclasses.replace(expected[index], index=100 + index)
    for index in (101, 103):
        assert isinstance(found[index].error, BackendError) and found[index].text == ""
        assert str(found[index].error).startswith(f"out of memory on cpu with text {index} alone: 4 tokens, num_beams")


def test_stream_counts_from_first(generator, texts):
    """Windows with the numbers of their texts draw as the whole does."""
    options = dict(do_sample=True, temperature=3.0, seed=1)
    whole = dict(generator.stream(texts, lookahead=15, **options))
    parts = {}
    for first in range(0, len(texts), 15):
        parts |= dict(generator.stream(texts[first : first + 15], first=first, **options))
    assert parts == whole and sorted(whole) == list(range(len(texts)))
    assert dict(generator.stream(texts[15:30], **options)).keys() == set(range(15))
    with pytest.raises(InputError, match="text 7: 60 tokens"):
        list(generator.stream(["one", "one " * 60], first=6))


def test_outputs_know_the_tokens_of_their_texts(generator):
    texts = ["one two three", "", "white " * 60]
    found = generator.generate(texts, truncation=True, num_beams=2, num_return_sequences=2)
    assert [output.input_tokens for output in found] == [3, 0, POSITIONS]


def test_other_errors_are_not_taken_for_a_lack_of_memory(generator, monkeypatch):
    def fail(**_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(generator.model, "generate", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        generator.generate(["one", "two"])


# construction


def test_half_precision_weights_run_in_float32_on_a_cpu(tiny_checkpoint, tmp_path):
    EncoderDecoderModel.from_pretrained(tiny_checkpoint, dtype=torch.float16).save_pretrained(tmp_path)
    tokenizer = BertGenerationTokenizer.from_pretrained(tiny_checkpoint)
    dtypes = {None: torch.float32, "auto": torch.float16, "bfloat16": torch.bfloat16, torch.float16: torch.float16}
    for asked, got in dtypes.items():
        assert Generator(tmp_path, tokenizer, dtype=asked).model.dtype == got
    model = EncoderDecoderModel.from_pretrained(tmp_path)
    assert Generator(model, tokenizer).model.dtype == torch.float16, "a model object stays as it is"
    assert Generator(tmp_path, tiny_checkpoint).generate(["one two"])[0].text == "eins zwei"


def test_model_object_is_put_into_evaluation_mode(tiny_checkpoint):
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint).train()
    generator = Generator(model, tiny_checkpoint, device="cpu", dtype=torch.float32)
    assert generator.model is model and not model.training


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tokenizer": None}, "a model object needs a tokenizer"),
        ({"max_batch_tokens": 0}, "max_batch_tokens must be an integer of at least 1, got 0"),
        ({"max_batch_tokens": True}, "max_batch_tokens must be an integer of at least 1, got True"),
        ({"max_input_length": 49}, "max_input_length 49 is more than the encoder's 48 positions"),
        ({"revision": "main"}, "no options of the hub"),
        ({"dtype": "float16"}, "a torch.dtype or none"),
        ({"max_batch_token": 9}, "Generator has no option 'max_batch_token'"),
    ],
)
def test_bad_construction(generator, options, message):
    with pytest.raises(ConfigError, match=message):
        Generator(generator.model, **{"tokenizer": generator.tokenizer, **options})


def test_device_that_is_not_there(tiny_checkpoint, generator):
    number = torch.cuda.device_count()
    with pytest.raises(BackendError, match=f"this machine has {number} CUDA devices"):
        Generator(tiny_checkpoint, device=number)
    with pytest.raises(BackendError, match=f"this machine has {number} CUDA devices"):
        Generator(generator.model, generator.tokenizer, device=f"cuda:{number}")


def test_tokenizer_of_another_vocabulary(generator, tiny_checkpoint, monkeypatch):
    """More pieces than the embedding has rows: refused at once. An added token beyond it: where it occurs."""
    monkeypatch.setattr(generator.model.config.encoder, "vocab_size", 60)
    with pytest.raises(ConfigError, match="the tokenizer has 64 pieces, the encoder a vocabulary of 60"):
        Generator(generator.model, generator.tokenizer)
    monkeypatch.undo()
    tokenizer = BertGenerationTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.add_tokens(["<new>"])
    wide = Generator(generator.model, tokenizer)
    assert wide.generate(["one"])[0].text == "eins"
    with pytest.raises(InputError, match="text 1: the tokenizer gives id 64, the model has a vocabulary of 64"):
        wide.generate(["one", "two <new>"])
