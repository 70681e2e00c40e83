"""Likelihoods of given targets; the oracles are transformers' teacher-forced logits and the scores of beams."""

import itertools
import random
import weakref

import pytest
import torch
import transformers

from bertgen import BackendError, ConfigError, EncoderDecoderModel, Generator, InputError, Likelihood
from bertgen.generator import scorer
from tests.support.checkpoints import POSITIONS, sentence, sentences, translation
from tests.support.reference_models import PAD, START, make_model_pair


@pytest.fixture(scope="module")
def texts():
    return sentences(6, 40)


@pytest.fixture(scope="module")
def oracle(tiny_checkpoint):
    """Log-probabilities of a target's ids for a source's ids, from transformers."""
    return oracle_of(transformers.EncoderDecoderModel.from_pretrained(tiny_checkpoint).eval())


def oracle_of(model):
    @torch.no_grad()
    def log_probs(source, target, start=2):
        inputs = torch.tensor([[start, *target[:-1]]])
        logits = model(torch.tensor([source]), decoder_input_ids=inputs, use_cache=False).logits[0]
        return logits.log_softmax(-1)[range(len(target)), list(target)]

    return log_probs


def largest(a, b):
    return float((torch.tensor(a) - b).abs().max())


@pytest.fixture
def encodings(generator, monkeypatch):
    """Numbers of sources and targets of each batch."""
    shapes, states = [], generator.model.target_states

    def record(ids, mask, inputs, read, shares):
        assert sum(shares) == len(inputs) and len(shares) == len(ids)
        shapes.append((len(ids), len(inputs)))
        return states(ids, mask, inputs, read, shares)

    monkeypatch.setattr(generator.model, "target_states", record)
    return shapes


# values


@pytest.mark.parametrize("penalty", [None, 0.0, 0.6])
def test_score_is_that_of_beams(generator, texts, penalty):
    options = {} if penalty is None else {"length_penalty": penalty}
    outputs = generator.generate(texts, num_beams=4, num_return_sequences=3, **options)
    found = [(text, one) for text, output in zip(texts, outputs) for one in (output, *output.alternatives)]
    scored = generator.score([text for text, _ in found], [one.token_ids for _, one in found], **options)
    for (_, one), answer in zip(found, scored, strict=True):
        assert answer.token_ids == one.token_ids and len(answer.log_probs) == len(one.token_ids)
        assert answer.score == pytest.approx(one.score, abs=1e-4)
        assert answer.total == pytest.approx(sum(answer.log_probs), abs=1e-9)
    assert [answer.index for answer in scored] == list(range(3 * len(texts)))


def test_equals_the_teacher_forced_log_softmax_of_transformers(generator, oracle, texts, monkeypatch):
    monkeypatch.setattr(scorer, "HELD_LOGITS", 64 * 7)  # slices of 7 positions
    r = random.Random(2)
    targets = [translation(text, r) if r.random() < 0.5 else sentence(r) for text in texts]
    for text, target, answer in zip(texts, targets, generator.score(texts, targets), strict=True):
        source, ids = generator.tokenizer.encode_batch([text, target], add_special_tokens=False)
        assert answer.token_ids == (*ids, 1), "the end token belongs to a text"
        assert largest(answer.log_probs, oracle(source, answer.token_ids)) <= 2e-5


@pytest.mark.parametrize("seed", range(12))
def test_random_models_of_all_kinds(seed):
    """Several targets of a source, padding, pad ids inside a target: each as transformers has it alone."""
    twins = make_model_pair(seed)
    r, config, expected = twins.random, twins.model.config, oracle_of(twins.oracle)
    sources, targets, shares = [], [], []
    for _ in range(4):
        sources.append([r.randrange(3, config.encoder.vocab_size) for _ in range(r.randint(1, 9))])
        shares.append(r.choice([1, 1, 2, 3]))
        for _ in range(shares[-1]):
            targets.append([r.choice([PAD, r.randrange(3, config.decoder.vocab_size)]) for _ in range(r.randint(1, 9))])
    found = scorer.log_probs(twins.model, sources, targets, shares, START)
    owners = [source for source, count in zip(sources, shares) for _ in range(count)]
    for source, target, row in zip(owners, targets, found, strict=True):
        assert largest(row, expected(source, target, START)) <= 2e-5 * max(1.0, -min(row))


def test_a_text_and_its_ids_get_the_same(generator):
    text, ids, empty, cut = generator.score(
        ["one two"] * 4, ["eins zwei", generator.score(["x"], ["eins zwei"])[0].token_ids, "", (5,)]
    )
    assert text.log_probs == pytest.approx(ids.log_probs, abs=1e-5) and text.token_ids == ids.token_ids
    assert empty.token_ids == (1,) and empty.total < -3, "nothing but the end"
    assert cut.token_ids == (5,) and len(cut.log_probs) == 1, "ids get no end token"


def test_source_is_cut_where_that_is_asked_for(generator):
    long, short = "one " * 60, "one " * 48
    with pytest.raises(InputError, match="pair 0: source: 60 tokens, the limit is 48"):
        generator.score([long], ["eins"])
    cut, whole = generator.score([long, short], ["eins"] * 2, truncation=True)
    assert (cut.truncated, whole.truncated) == (True, False) and cut.total == pytest.approx(whole.total, abs=1e-5)


# batches


def test_a_source_is_encoded_once(generator, texts, encodings):
    sources = [text for text in texts[:10] for _ in range(3)] + texts[:10]
    found = generator.score(sources, ["eins zwei"] * 40)
    different = len(set(texts[:10]))
    assert encodings == [(different, 40)]
    assert found[0].log_probs == pytest.approx(found[30].log_probs, abs=1e-5)


def test_batches_keep_to_the_limit_and_change_nothing(generator, texts, encodings):
    targets = [translation(text) for text in texts]
    sources = texts + ["one two"] * 30
    targets += [sentence(random.Random(i)) for i in range(30)]
    expected = generator.score(sources, targets)
    encodings.clear()
    small = Generator(generator.model, generator.tokenizer, encode_tokens=60)
    found = small.score(sources, targets)
    assert len(encodings) > 8 and sum(rows for _, rows in encodings) == 70
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    for one, other in zip(found, expected):
        assert one.log_probs == pytest.approx(other.log_probs, abs=2e-5)
    assert len(Generator(generator.model, generator.tokenizer, encode_tokens=1).score(sources, targets)) == 70
    assert encodings[-70:] == [(1, 1)] * 70, "a pair above the limit is a batch of its own"


def test_cost_of_a_batch():
    """The tokens of the padded batch: at most the limit, without room for the next pair."""
    r = random.Random(3)
    for _ in range(300):
        pairs = [scorer._Pair(0, [r.randrange(3)] * r.randint(1, 4), [7] * r.randint(1, 9), False) for _ in range(12)]
        pairs.sort(key=lambda pair: (len(pair.source), pair.source, len(pair.target)), reverse=True)
        limit, start = r.randint(1, 120), r.randrange(12)

        def cost(batch):
            groups = [list(group) for _, group in itertools.groupby(batch, key=lambda pair: pair.source)]
            asked = max(sum(len(pair.target) for pair in group) for group in groups)
            rows = len(batch) * max(len(pair.target) for pair in batch)
            return len(groups) * max(len(pair.source) for pair in batch) + max(rows, len(groups) * asked)

        batch, said = scorer._first_batch(pairs, start, limit)
        assert batch == pairs[start : start + len(batch)] and said == cost(batch)
        assert len(batch) == 1 or said <= limit
        more = pairs[start : start + len(batch) + 1]
        assert len(more) == len(batch) or cost(more) > limit


def test_logits_are_held_in_slices(generator, texts, monkeypatch):
    sizes, head = [], generator.model.decoder.lm_head.forward
    monkeypatch.setattr(generator.model.decoder.lm_head, "forward", lambda x: sizes.append(len(x)) or head(x))
    monkeypatch.setattr(scorer, "HELD_LOGITS", 64 * 11 + 63)
    generator.score(texts, texts)
    assert max(sizes) == 11 and len(sizes) > 10 and sizes.count(11) == len(sizes) - 1
    monkeypatch.setattr(scorer, "HELD_LOGITS", 1)
    assert len(generator.score(["one"], ["eins zwei"])[0].log_probs) == 3


def test_batch_that_does_not_fit_is_halved(generator, texts, monkeypatch):
    targets = [translation(text) for text in texts]
    expected, states = generator.score(texts, targets), generator.model.target_states
    sizes, held = [], []

    def limited(ids, mask, inputs, read, shares):
        assert all(reference() is None for reference in held), "memory of a failed attempt is still held"
        sizes.append(len(inputs))
        if len(inputs) > 12:
            big = torch.zeros(10)
            held.append(weakref.ref(big))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return states(ids, mask, inputs, read, shares)

    monkeypatch.setattr(generator.model, "target_states", limited)
    found = generator.score(texts, targets)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert sizes[0] == 40 and len(held) in (2, 3) and max(sizes[len(held) :]) <= 12


def test_one_pair_that_does_not_fit(generator, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(generator.model, "target_states", fail)
    with pytest.raises(BackendError, match="on cpu with pair 0 alone: 2 tokens of source, 3 of target"):
        generator.score(["one two"], ["eins zwei"])


# streams and errors


def test_stream_reads_a_bounded_number_of_pairs(generator):
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield "one two", "eins zwei"

    answers = generator.stream_scores(endless(), lookahead=10)
    assert read == []
    found = list(itertools.islice(answers, 10))
    assert sorted(index for index, _ in found) == list(range(10)) and len(read) == 10
    assert next(answers)[0] >= 10 and len(read) == 20
    assert generator.score([], []) == []


@pytest.mark.parametrize(
    "source, target, message",
    [
        (7, "eins", "source: must be a str, got int"),
        ("", "eins", "source: no tokens"),
        (" ", "eins", "source: no tokens"),
        ("\ud800", "eins", r"source: no valid Unicode: lone surrogate U\+D800 at position 0"),
        ("one", None, "target: must be a str, got NoneType"),
        ("one", b"eins", "target: must be a str, got bytes"),
        ("one", [], "target: no tokens: a target has at least one"),
        ("one", [64], "target: token 64 is no id from 0 to 63"),
        ("one", [True], "target: token True is no id from 0 to 63"),
        ("one", ["eins"], "target: token 'eins' is no id from 0 to 63"),
        ("one", [5] * 49, "target: 49 tokens, the limit is 48"),
        ("one", "eins " * 48, f"target: 49 tokens, the limit is {POSITIONS}"),
    ],
)
def test_pairs_that_cannot_be_used(generator, source, target, message):
    with pytest.raises(InputError, match=f"pair 1: {message}"):
        generator.score(["one", source], ["eins", target])
    pairs = [("one", "eins"), (source, target), ("two", [5] * 48)]
    found = dict(generator.stream_scores(pairs, return_errors=True))
    assert isinstance(found[1], Likelihood) and found[1].total is None and found[1].token_ids == ()
    with pytest.raises(InputError, match=f"^{message}"):
        raise found[1].error
    assert found[0].error is None and found[0].total > -1 and len(found[2].log_probs) == 48


def test_bad_calls(generator):
    with pytest.raises(InputError, match="2 sources and 1 targets"):
        generator.score(["one", "two"], ["eins"])
    with pytest.raises(InputError, match="sources must be a list of texts, .* got .one."):
        generator.score("one", ["eins"])
    with pytest.raises(InputError, match="pair 0: must be a tuple of source and target, got str"):
        list(generator.stream_scores(["one"]))
    with pytest.raises(ConfigError, match="length_penalty must be a number"):
        generator.score([], [], length_penalty="long")
    with pytest.raises(ConfigError, match="lookahead must be an integer"):
        generator.stream_scores([], lookahead=0)


def test_start_token_of_the_model(tiny_checkpoint, oracle):
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    generator = Generator(model, tiny_checkpoint)
    model.generation_config.decoder_start_token_id = 7
    (found,) = generator.score(["one"], [(5, 6, 1)])
    source = generator.tokenizer.encode_batch(["one"])[0]
    assert largest(found.log_probs, oracle(source, (5, 6, 1), start=7)) <= 2e-5
    model.generation_config.decoder_start_token_id = model.generation_config.bos_token_id = None
    with pytest.raises(ConfigError, match="decoder_start_token_id"):
        generator.score(["one"], ["eins"])
