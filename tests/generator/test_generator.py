"""Generator on a tiny trained model; the oracle is `model.generate`, one text at a time."""

import dataclasses
import weakref
from types import SimpleNamespace

import pytest
import torch

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
from bertgen.config import EngineConfig
from bertgen.tokenizer.special_tokens import Encoded
from tests.support.checkpoints import MAX_LENGTH, translation
from tests.support.fake_cuda_device import graphs_on_a_cpu


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
    """Otherwise the equalities above would compare noise."""
    right = [output.text == translation(text) for text, output in zip(texts, generator.generate(texts), strict=True)]
    assert sum(right) >= 38


def test_outputs_have_the_order_of_the_texts(generator, texts, batches):
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


def test_no_texts(generator):
    assert generator.generate([]) == [] and list(generator.stream([])) == []


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


def test_equal_texts_get_different_samples(generator):
    """The index is part of the key of the random numbers."""
    outputs = generator.generate(["white"] * 30, seed=1, do_sample=True, temperature=3.0)
    assert len({output.token_ids for output in outputs}) > 3


@pytest.mark.parametrize("beams", [1, 3])
def test_a_sample_depends_on_seed_and_index_alone(generator, texts, beams):
    """Not on the other texts, nor on the number of rows that run together."""
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


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_options_of_every_kind_reach_the_model(generator, texts, options):
    """Stop strings need no tokenizer here, and stopped outputs have neither an end token nor padding."""
    options = options | dict(stop_strings=["ei", "rot"], encoder_no_repeat_ngram_size=4, suppress_tokens=[40])
    for text, output in zip(texts, generator.generate(texts, **options)):
        rows, _ = alone(generator, text, **options, tokenizer=generator.tokenizer)
        found = [output, *output.alternatives]
        for one, row in zip(found, rows, strict=True):
            assert one.token_ids == tuple(row[: len(one.token_ids)]) and 0 not in one.token_ids
            assert set(row[len(one.token_ids) :]) <= {0, 1}
            stopped = [stop for stop in ("ei", "rot") if stop in one.text]
            assert bool(stopped) != (one.token_ids[-1] == 1) or len(one.token_ids) == MAX_LENGTH - 1


def limited(generator, monkeypatch, fits, error=torch.OutOfMemoryError, message="CUDA out of memory"):
    """The decoder fails when more than `fits` rows run; returns the list of row counts."""
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
    """Every output is as before, and the tensors of a failed attempt are freed before the next."""
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


def test_texts_that_do_not_fit_yield_their_errors(generator, monkeypatch):
    """With `return_errors`; the outputs of the other texts do not change."""
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
    """Windows with the indices of their texts give the samples of the whole."""
    options = dict(do_sample=True, temperature=3.0, seed=1)
    whole = dict(generator.stream(texts, lookahead=15, **options))
    parts = {}
    for first in range(0, len(texts), 15):
        parts |= dict(generator.stream(texts[first : first + 15], first=first, **options))
    assert parts == whole and sorted(whole) == list(range(len(texts)))
    assert dict(generator.stream(texts[15:30], **options)).keys() == set(range(15))
    with pytest.raises(InputError, match="text 7: 60 tokens"):
        list(generator.stream(["one", "one " * 60], first=6))


def test_other_errors_are_not_taken_for_out_of_memory(generator, monkeypatch):
    limited(generator, monkeypatch, 0, RuntimeError, "a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        generator.generate(["one", "two"])
    monkeypatch.undo()
    assert [output.text for output in generator.generate(["one", "two"])] == ["eins", "zwei"]


def test_closing_a_stream_cancels_its_requests(generator, texts):
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


def test_a_gpu_is_warmed_up_for_one_text_and_for_a_batch(tiny_checkpoint, monkeypatch):
    """Greedy and with the model's own beams: each kind is captured with as many units as fit."""
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    model.generation_config.num_beams = 3
    with graphs_on_a_cpu() as devices, Generator(model, tiny_checkpoint, engine=EngineConfig(max_rows=24)) as generator:
        ran = []
        run = lambda requests, call, engine: ran.append((call.generation.num_beams, len(requests))) or ()  # noqa: E731
        monkeypatch.setattr(generator, "_run", run)
        generator.warm_up()
        assert ran == [(1, 1)], "on a CPU one call is enough"
        ran.clear()
        monkeypatch.undo()
        on_gpu = SimpleNamespace(
            model=SimpleNamespace(device=torch.device("cuda")), config=generator.engine.config
        )  # fmt: skip
        kinds = generator._warm_up_calls(on_gpu)
        assert [(call.generation.num_beams, count) for call, count in kinds] == [(1, 1), (1, 24), (3, 1), (3, 8)]
        for call, count in kinds:
            list(generator._run([generator._request(i, Encoded([5, 6]), call) for i in range(count)], call))
        assert devices[0].told.count("capture") == 4
        before = devices[0].told.count("capture")
        assert [output.text for output in generator.generate(["one", "two"], num_beams=1)] == ["eins", "zwei"]
        assert generator.generate(["one"])[0].text == "eins"
        assert devices[0].told.count("capture") <= before + 1  # of two units
        model.generation_config.num_beams = 1
        assert len(generator._warm_up_calls(on_gpu)) == 2


def test_callbacks_see_their_request_only(generator, texts):
    """Callbacks see one text at a time; `prefix_allowed_tokens_fn` gets the index of the text."""
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


def test_a_model_in_training_mode_is_refused(generator):
    """As after a step of a trainer: dropout would make outputs random."""
    generator.model.train()
    try:
        for options in ({}, {"num_beams": 2}):
            with pytest.raises(UnsupportedError, match=r"training mode.*call model.eval\(\)"):
                generator.generate(["one two"], **options)
    finally:
        generator.model.eval()
    assert generator.generate(["one two"])[0].token_ids
