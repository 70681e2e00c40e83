"""Generator and pipeline on a tiny trained model; the oracle is `model.generate`, one text at a time."""

import copy
import dataclasses
import itertools
import random
import threading
import weakref

import pytest
import torch
import transformers

from bertgen import (
    BackendError,
    BertGenerationTokenizer,
    CapacityError,
    ConfigError,
    EncoderDecoderModel,
    GenerationConfig,
    Generator,
    InputError,
    UnsupportedError,
)
from bertgen.generator.texts import in_windows
from tests.support.checkpoints import FIRST, MAX_LENGTH, POSITIONS, sentence, translation


@pytest.fixture(scope="module")
def generator(tiny_checkpoint):
    return Generator(tiny_checkpoint)


@pytest.fixture(scope="module")
def texts():
    r = random.Random(5)
    return [sentence(r) for _ in range(40)]


@pytest.fixture
def batches(generator, monkeypatch):
    """Shapes of the batches that are encoded, longest source counted."""
    shapes, encoded = [], generator.model.encoded

    def record(ids, mask):
        shapes.append(tuple(ids.shape))
        return encoded(ids, mask)

    monkeypatch.setattr(generator.model, "encoded", record)
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
@pytest.mark.parametrize("limits", [{}, {"max_rows": 7, "encode_tokens": 30, "refill": 0}], ids=["wide", "narrow"])
def test_equals_generate_one_by_one(tiny_checkpoint, texts, options, limits):
    generator = Generator(tiny_checkpoint, **limits)
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


def test_sources_are_encoded_by_tokens(generator, texts, batches):
    """Longest first; a batch has at most so many tokens, and could not take one source more."""
    small = Generator(generator.model, generator.tokenizer, encode_tokens=40)
    small.generate(texts)
    lengths = sorted({len(row) for row in generator.tokenizer.encode_batch(texts)}, reverse=True)
    assert len(batches) > 2 and [longest for _, longest in batches] == sorted((n for _, n in batches), reverse=True)
    assert batches[0][1] == lengths[0] and all(rows <= 40 for rows, _ in batches)
    batches.clear()
    assert len(Generator(generator.model, generator.tokenizer, encode_tokens=1).generate(["one", "two"])) == len(
        batches
    )


def test_equal_texts_are_encoded_once(generator, batches):
    outputs = generator.generate(["one two"] * 9 + ["three"])
    assert sum(rows for rows, _ in batches) == 2 and len({output.text for output in outputs[:9]}) == 1


def test_a_request_larger_than_the_engine_is_refused(generator):
    small = Generator(generator.model, generator.tokenizer, max_rows=3)
    assert small.generate(["one"], num_beams=3)[0].text == "eins"
    with pytest.raises(CapacityError, match="a request of 4 rows; max_rows is 3"):
        small.generate(["one"], num_beams=4)
    tiny = Generator(generator.model, generator.tokenizer, cache_bytes=2 * 2 * 48 * 4 * 16)  # one page
    with pytest.raises(
        CapacityError, match="a request of 1 rows of 39 positions takes 3 pages of 16 slots; there are 1"
    ):
        tiny.generate(["one"])
    assert tiny.generate(["one"], max_new_tokens=16)[0].text == "eins"


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
        with pytest.raises(InputError, match="texts must be a list of texts, .* got"):
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
    monkeypatch.setattr("bertgen.generator.texts.LOOKAHEAD_CHARACTERS", 30)
    windows = in_windows(iter(["x" * 20, "x" * 20, "", "x" * 70, "y"]), 3)
    assert [[len(text) for text in window] for window in windows] == [[20, 20], [0, 70], [1]]
    pairs = [("x" * 9, "y" * 9), ("x" * 9, "y" * 9), ("x" * 9, [1] * 99), ("x", "y")]
    assert [len(window) for window in in_windows(iter(pairs), 3)] == [2, 2]


def test_stream_checks_options_when_called(generator):
    with pytest.raises(ConfigError, match="num_beans"):
        generator.stream(["one"], num_beans=2)
    with pytest.raises(ConfigError, match="lookahead must be an integer from 1 to 2147483647, got 0"):
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


def test_texts_draw_different_numbers(generator):
    """With one seed for all, equal texts do not get equal draws."""
    outputs = generator.generate(["white"] * 30, seed=1, do_sample=True, temperature=3.0)
    assert len({output.token_ids for output in outputs}) > 3


@pytest.mark.parametrize("beams", [1, 3])
def test_a_draw_depends_on_seed_and_index_alone(generator, texts, beams):
    """Not on what other texts there are, nor on how many run at a time."""
    options = dict(seed=5, do_sample=True, temperature=2.0, num_beams=beams, num_return_sequences=2)
    outputs = generator.generate(texts[:12], **options)
    few = Generator(generator.model, generator.tokenizer, max_rows=5, refill=0)
    assert [one.token_ids for one in few.generate(texts[:12], **options)] == [one.token_ids for one in outputs]
    for index in (0, 7):
        ((_, alone_),) = generator.stream([texts[index]], first=index, **options)
        assert alone_.token_ids == outputs[index].token_ids and alone_.index == index
        assert alone_.alternatives[0].token_ids == outputs[index].alternatives[0].token_ids


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "num_return_sequences": 3, "temperature": 3.0, "seed": 1}])
def test_scores_of_greedy_and_sampled_outputs(generator, texts, options):
    """The model's own log-probability over length ** length_penalty, counted token by token."""
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
    """In `model.generate` they say how long an output is; here that was planned before they were looked at."""
    for criterion in (transformers.MaxLengthCriteria(30), transformers.EosTokenCriteria([5])):
        with pytest.raises(UnsupportedError, match="max_length= and eos_token_id="):
            generator.generate(["one"], stopping_criteria=[criterion])
    same = [transformers.MaxTimeCriteria(100.0)]
    assert generator.generate(["one"], stopping_criteria=same) == generator.generate(["one"])


# memory


def limited(generator, monkeypatch, fits, error=torch.OutOfMemoryError, message="CUDA out of memory"):
    """The decoder fails wherever more rows run than fit; returns how many ran in each attempt."""
    head, sizes, held = type(generator.model.decoder.head).forward, [], []

    def forward(self, hidden):
        assert all(reference() is None for reference in held), "memory of a failed attempt is still held"
        sizes.append(len(hidden))
        if len(hidden) > fits:
            big = torch.zeros(10)
            held.append(weakref.ref(big))
            raise error(message)
        return head(self, hidden)

    monkeypatch.setattr(type(generator.model.decoder.head), "forward", forward)
    return sizes


def test_rows_that_do_not_fit_are_halved(generator, monkeypatch):
    """Every text is answered as before, and the failed attempt's tensors are gone at the next."""
    texts = ["one two three"] * 19 + ["two", ""] + ["three one"] * 19
    expected, before = generator.generate(texts), generator.statistics.restarts
    sizes = limited(generator, monkeypatch, 6)
    assert generator.generate(texts) == expected
    assert sizes[:3] == [39, 19, 9] and max(sizes[3:]) == 4 and generator.statistics.restarts == before + 3
    sizes.clear()
    generator.generate(texts)
    assert sizes[0] == 39, "an idle engine tries again"


@pytest.mark.parametrize(
    "error",
    [(torch.OutOfMemoryError, "CUDA out of memory"), (RuntimeError, "DefaultCPUAllocator: can't allocate memory")],
)
def test_one_text_that_does_not_fit(generator, monkeypatch, error):
    limited(generator, monkeypatch, 2, *error)
    with pytest.raises(
        BackendError, match=r"out of memory on cpu with request 0 alone: 1 tokens, num_beams 3, max_length"
    ):
        generator.generate(["one", ""], num_beams=3)
    outputs = dict(generator.stream(["one", "two"], num_beams=3, return_errors=True))
    assert [type(output.error) for output in outputs.values()] == [BackendError] * 2
    monkeypatch.undo()
    assert generator.generate(["one"], num_beams=3)[0].text == "eins"


def test_texts_that_do_not_fit_are_answered_by_their_errors(generator, monkeypatch):
    """With `return_errors`; the others are answered as if these were not there."""
    texts = ["one", "one two three four", "two", "three three three three", "three"]
    expected, encoded = generator.generate(texts), generator.model.encoded

    def limited(ids, mask):
        if ids.shape[1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encoded(ids, mask)

    monkeypatch.setattr(generator.model, "encoded", limited)
    found = dict(generator.stream(texts, return_errors=True, first=100))
    assert sorted(found) == [100, 101, 102, 103, 104]
    for index in (0, 2, 4):
        assert found[100 + index] == dataclasses.replace(expected[index], index=100 + index)
    for index in (101, 103):
        assert isinstance(found[index].error, BackendError) and found[index].text == ""
        assert str(found[index].error).startswith(
            f"out of memory on cpu with request {index} alone: 4 tokens, num_beams"
        )


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
    limited(generator, monkeypatch, 0, RuntimeError, "a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        generator.generate(["one", "two"])
    monkeypatch.undo()
    assert [output.text for output in generator.generate(["one", "two"])] == ["eins", "zwei"]


# in the background


def test_submitted_texts_share_the_engine(generator, texts):
    expected = generator.generate(texts)
    futures = [generator.submit(text) for text in texts]
    assert [future.result(60).text for future in futures] == [output.text for output in expected]
    assert generator.submit("").result(1).text == ""
    assert not generator.engine.busy
    with pytest.raises(InputError, match="must be a str"):
        generator.submit(3)


def test_threads_get_their_own_answers(generator, texts):
    expected = [output.text for output in generator.generate(texts)]
    found = {}

    def work(i):
        found[i] = [output.text for output in generator.generate(texts[i:] + texts[:i])]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    futures = [generator.submit(text, num_beams=2) for text in texts[:5]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == {i: expected[i:] + expected[:i] for i in range(6)}
    beams = generator.generate(texts[:5], num_beams=2)
    assert [future.result(60).token_ids for future in futures] == [output.token_ids for output in beams]


def test_tokens_as_they_are_chosen(generator):
    got = []
    output = generator.submit("one two three", on_tokens=got.append).result(60)
    assert [token for (token,) in got] == list(output.token_ids)
    with pytest.raises(ConfigError, match="on_tokens cannot be used with num_beams 2"):
        generator.submit("one", num_beams=2, on_tokens=print)

    def fail(tokens):
        raise LookupError("not mine")

    other = generator.submit("two")
    with pytest.raises(LookupError, match="not mine"):
        generator.submit("one", on_tokens=fail).result(60)
    assert other.result(60).text == "zwei"


def test_all_tokens_of_a_text_that_came_later(generator):
    """Its search had got further than it when it joined, and had not when the other text had left."""
    got, later = [], []
    options = dict(min_new_tokens=12, max_new_tokens=12)

    def follow(tokens):
        if not later:
            later.append(generator.submit("two", on_tokens=got.extend, **options))

    generator.submit("one two three", on_tokens=follow, **options).result(60)
    assert list(later[0].result(60).token_ids) == got


def test_an_answer_may_cancel_what_ends_with_it(generator):
    options = dict(min_new_tokens=6, max_new_tokens=6)
    with generator.engine.lock:
        first, second = (generator.submit(text, **options) for text in ("one", "two"))
        longer = generator.submit("one two three", min_new_tokens=12, max_new_tokens=12)
        first.add_done_callback(lambda _: second.cancel())
    assert len(first.result(60).token_ids) == 6 and len(longer.result(60).token_ids) == 12
    assert second.cancelled() and not generator.engine.busy and generator.statistics.pages_used == 0


def test_a_cancelled_text_leaves(generator):
    started, go = threading.Event(), threading.Event()

    def wait(tokens):
        started.set()
        go.wait(60)

    slow = generator.submit("one two three", on_tokens=wait, min_new_tokens=20, max_new_tokens=30)
    assert started.wait(60)
    waiting = generator.submit("two")
    assert waiting.cancel()
    go.set()
    assert len(slow.result(60).token_ids) >= 20 and waiting.cancelled()
    assert not generator.engine.busy and generator.statistics.pages_used == 0


def test_a_stream_that_is_left_takes_its_texts_along(generator, texts):
    stream = generator.stream(texts, num_beams=2)
    next(stream)
    stream.close()
    assert not generator.engine.busy and generator.statistics.pages_used == 0


def test_the_end_of_the_context_frees_the_memory(tiny_checkpoint):
    with Generator(tiny_checkpoint) as generator:
        generator.warm_up()
        assert generator.generate(["one"])[0].text == "eins" and generator.engine.cache.bytes > 0
        slow = generator.submit("one", on_tokens=lambda tokens: generator.close())
        with pytest.raises(BackendError, match="cleared before this was done"):
            slow.result(60)
    assert generator.engine._decoder is None
    assert generator.generate(["one"])[0].text == "eins", "a later call takes it again"


def test_what_a_request_brings_along_sees_that_request(generator, texts):
    """Custom rules see one text at a time, and the index of the text where they are told of a source."""
    rows, told = set(), set()

    def look(history, scores):
        rows.add(len(history))
        return scores

    def allowed(index, tokens):
        told.add(index)
        return range(5, generator.model.config.decoder.vocab_size) if len(tokens) < 4 else [1]

    outputs = generator.generate(texts[:5], logits_processor=[look], prefix_allowed_tokens_fn=allowed)
    assert rows == {1} and told == set(range(5)) and {len(output.token_ids) for output in outputs} == {4}

    def fail(history, scores):
        raise ZeroDivisionError("my own")

    with pytest.raises(ZeroDivisionError, match="my own"):
        generator.generate(["one"], logits_processor=[fail])
    assert generator.generate(["one"])[0].text == "eins"


def test_progress(generator, texts, capsys):
    seen = []
    generator.generate(texts[:4], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 4) for i in range(1, 5)]
    generator.generate(texts[:2], progress=True)
    assert capsys.readouterr().out == ""


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
        ({"max_rows": 0}, "max_rows must be an integer from 1 to 2147483647, got 0"),
        ({"encode_tokens": True}, "encode_tokens must be an integer from 1 to 2147483647, got True"),
        ({"max_input_length": 49}, "max_input_length 49 is more than the encoder's 48 positions"),
        ({"revision": "main"}, "no options of loading: revision"),
        ({"dtype": "float16"}, "a torch.dtype or none"),
        ({"max_row": 9}, "Generator has no option 'max_row'"),
        ({"refill": "0.5"}, "refill must be a number from 0 to 1, got '0.5'"),
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
