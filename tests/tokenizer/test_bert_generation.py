"""The tokenizer against transformers' own on one small vocabulary, its files in both directions, and its errors."""

import copy
import io
import itertools
import json
import pickle
import random
import shutil
import subprocess
import sys

import numpy
import pytest
import sentencepiece
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertgen import TextStreamer
from bertgen.errors import CheckpointError, ConfigError, InputError, UnsupportedError
from bertgen.tokenizer import AddedToken, AutoTokenizer, BertGenerationTokenizer, files
from bertgen.tokenizer.base import NO_LIMIT
from bertgen.tokenizer.vocabulary import SPECIAL_NAMES

Theirs = transformers.BertGenerationTokenizer
SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "<::::>"]
fuzz = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), database=None)


def corpus() -> list[str]:
    """Sentences of made-up words, with some punctuation, digits and letters beyond ASCII."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdeilnorstuäöé", k=draw.randint(1, 7))) for _ in range(300)]
    words += ["the", "station", "newtok", "1", "23", "don't", "isn't"]
    ends = [".", "?", "!", ", so", " :", ""]
    return [" ".join(draw.choices(words, k=draw.randint(1, 9))) + draw.choice(ends) for _ in range(1500)]


def train(path, **options) -> str:
    writer = io.BytesIO()
    options = (
        dict(vocab_size=300, character_coverage=1.0, pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2) | options
    )
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus()), model_writer=writer, **options)
    path.write_bytes(writer.getvalue())
    return str(path)


@pytest.fixture(scope="session")
def vocab(tmp_path_factory) -> str:
    return train(tmp_path_factory.mktemp("vocab") / "spiece.model")


@pytest.fixture(scope="session")
def exact_vocab(tmp_path_factory) -> str:
    """A model that does not normalise: every space of a text counts."""
    path = tmp_path_factory.mktemp("exact") / "spiece.model"
    return train(path, normalization_rule_name="identity", remove_extra_whitespaces=False)


@pytest.fixture(scope="session")
def theirs(vocab):
    return Theirs(vocab)


@pytest.fixture(scope="session")
def ours(vocab):
    return BertGenerationTokenizer(vocab)


@pytest.fixture
def fresh(vocab):
    return BertGenerationTokenizer(vocab)


def near_text(*tokens: str) -> st.SearchStrategy[str]:
    """Text in which the given tokens, pieces of them, white space and odd Unicode are likely."""
    odd = [
        " ",
        "  ",
        "\t",
        "\n",
        "\xa0",
        "\u3000",
        "\u200b",
        "\0",
        "▁",
        "▁the",
        "＜s＞",
        "ﬀ",
        "e\u0301",
        "漢字",
        "😀",
        "<",
        ">",
    ]
    part = st.sampled_from([*SPECIAL, *tokens, *odd, "the ", "station", " don't.", "abc"]) | st.text(max_size=4)
    return st.lists(part, max_size=10).map("".join)


def utf8(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def assert_same(a, b) -> None:
    """Equal in type, dtype, shape and value."""
    assert type(a) is type(b)
    if isinstance(a, (numpy.ndarray, torch.Tensor)):
        assert a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    else:
        assert a == b


# -- text to ids ------------------------------------------------------------------------------------------------------


@fuzz
@given(text=near_text().filter(utf8))
def test_one_text_as_transformers(theirs, ours, text):
    assert ours.tokenize(text) == theirs.tokenize(text)
    ids = theirs.encode(text)
    assert ours.encode(text) == ids == ours.encode_batch([text])[0]
    for skip in (False, True):
        for clean in (False, True):
            options = dict(skip_special_tokens=skip, clean_up_tokenization_spaces=clean)
            assert ours.decode(ids, **options) == theirs.decode(ids, **options)
    assert ours.convert_ids_to_tokens(ids, skip_special_tokens=True) == theirs.convert_ids_to_tokens(
        ids, skip_special_tokens=True
    )


@settings(fuzz, max_examples=15)
@given(texts=st.lists(near_text().filter(utf8), max_size=6))
def test_a_long_batch_as_its_texts_one_by_one(theirs, ours, texts):
    """From 64 texts on sentencepiece gets them in one call; a special token in one text must not shift the others."""
    texts = [*corpus()[:70], *texts, *corpus()[70:80]]
    random.Random(len(texts[70])).shuffle(texts)
    assert ours.encode_batch(texts) == [theirs.encode(text) for text in texts]
    assert ours(texts).attention_mask == [[1] * len(row) for row in ours.encode_batch(texts)]


@fuzz
@given(ids=st.lists(st.lists(st.integers(0, 300), max_size=12), min_size=1, max_size=5), skip=st.booleans())
def test_any_ids_decode_as_transformers(theirs, ours, ids, skip):
    assert len(ours) == 301
    assert ours.batch_decode(ids, skip_special_tokens=skip) == theirs.batch_decode(ids, skip_special_tokens=skip)
    assert ours.decode_batch(ids, skip) == [ours.decode(row, skip) for row in ids]


def test_a_batch_takes_one_native_call(fresh):
    """What makes it fast: no call per text, and a second one only for texts with unknown characters."""
    calls = []

    class Counting:
        def __init__(self, sp):
            self.sp = sp

        def __getattr__(self, name):
            return getattr(self.sp, name)

        def encode(self, text, **options):
            calls.append(text)
            return self.sp.encode(text, **options)

    texts = [text for text in corpus() if 3 not in fresh.encode(text)]
    assert len(texts) > 1000
    fresh._sp = Counting(fresh._sp)
    fresh.encode_batch(texts)
    fresh.encode_batch([*texts, "漢", "a</s>"])
    assert calls == [texts, [*texts, "漢", "a"], "漢"]


def test_ids_of_other_kinds(theirs, ours):
    rows = [[5, 6, 7], [8, 9, 10]]
    for given_ids in (rows, torch.tensor(rows), numpy.array(rows), [torch.tensor(row) for row in rows]):
        assert ours.batch_decode(given_ids) == ours.decode(given_ids) == theirs.decode(rows)
    for one in ([5, 6], torch.tensor([5, 6]), numpy.array([5, 6]), [numpy.int64(5), torch.tensor(6)], (5, 6)):
        assert ours.decode(one) == theirs.decode([5, 6])
    assert ours.decode(5) == ours.decode(torch.tensor(5)) == theirs.decode(5)
    assert ours.batch_decode([5, 6]) == theirs.batch_decode([5, 6])
    assert ours.batch_decode([[], [5]]) == theirs.batch_decode([[], [5]])
    assert ours.decode([]) == ""
    # Unlike transformers, which returns one text for no row.
    assert ours.batch_decode([]) == []


def test_clean_up_as_transformers(theirs, vocab):
    ours = BertGenerationTokenizer(vocab, clean_up_tokenization_spaces=True)
    ids = ours.encode("a . b ? c ! d , e ' s n't i 'm a 's i 've o 're a")
    cleaned = theirs.decode(ids, clean_up_tokenization_spaces=True)
    assert ours.decode(ids) == cleaned != ours.decode(ids, clean_up_tokenization_spaces=False) == theirs.decode(ids)


def test_vocabulary_as_transformers(theirs, ours):
    assert ours.get_vocab() == theirs.get_vocab()
    assert (ours.vocab_size, len(ours)) == (theirs.vocab_size, len(theirs))
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.special_tokens_map == theirs.special_tokens_map
    for name in SPECIAL_NAMES:
        assert getattr(ours, name) == getattr(theirs, name)
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id")
    tokens = ["<s>", "▁the", "no such token", "<::::>"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_ids("</s>") == 1
    assert ours.convert_ids_to_tokens([0, 300]) == ["<pad>", "<::::>"]
    assert ours.convert_ids_to_tokens(300) == "<::::>"
    assert ours.convert_tokens_to_string(["▁a", "b", "<s>"]) == theirs.convert_tokens_to_string(["▁a", "b", "<s>"])


def test_no_special_token_is_added_and_none_needed(vocab, ours):
    assert ours("the station", add_special_tokens=True) == ours("the station", add_special_tokens=False)
    bare = BertGenerationTokenizer(
        vocab, bos_token=None, eos_token=None, unk_token=None, pad_token=None, sep_token=None
    )
    assert len(bare) == 300 and bare.all_special_ids == [] and bare.pad_token_id is None
    assert bare.encode("<s>") == bare._sp.encode("<s>")
    with pytest.raises(ConfigError, match="pad_token"):
        bare(["a", "b"], padding=True)


def test_split_special_tokens_as_transformers(vocab):
    options = dict(split_special_tokens=True)
    text = "a<s>b </s>"
    assert BertGenerationTokenizer(vocab, **options).encode(text) == Theirs(vocab, **options).encode(text)
    assert 2 not in BertGenerationTokenizer(vocab, **options).encode(text)


# -- added tokens -----------------------------------------------------------------------------------------------------

ADDITIONS = st.lists(
    st.one_of(
        st.tuples(st.just("ordinary"), st.lists(st.sampled_from(["[A]", "new tok", "@", "the", "漢"]), min_size=1)),
        st.tuples(st.just("special"), st.lists(st.sampled_from(["[S]", "▁the", "#"]), min_size=1)),
        st.tuples(st.just("flags"), st.lists(st.booleans(), min_size=3, max_size=3)),
        st.tuples(
            st.just("named"), st.sampled_from([("mask_token", "[M]"), ("sep_token", "|"), ("pad_token", "</s>")])
        ),
        st.tuples(st.just("extra"), st.just(["[E1]", "[E2]"])),
    ),
    max_size=4,
    unique_by=lambda addition: addition[0],
)


def add(tokenizer, token_class, additions) -> list[int]:
    counts = []
    for kind, value in additions:
        if kind in ("ordinary", "special"):
            counts.append(tokenizer.add_tokens(value, special_tokens=kind == "special"))
        elif kind == "flags":
            flags = dict(zip(("lstrip", "rstrip", "single_word"), value, strict=True))
            counts.append(tokenizer.add_tokens(token_class("[F]", **flags)))
        elif kind == "named":
            counts.append(tokenizer.add_special_tokens({value[0]: value[1]}))
        else:
            counts.append(tokenizer.add_special_tokens({"extra_special_tokens": value}))
    return counts


ADDED = [
    "[A]",
    "[A][A]",
    "new tok",
    "@",
    "＠",
    "the",
    "漢",
    "[S]",
    "#",
    "[F]",
    " [F] ",
    "[F]x",
    "[M]",
    "|",
    "[E1]",
    "[E2]",
]


@fuzz
@given(additions=ADDITIONS, texts=st.lists(near_text(*ADDED).filter(utf8), min_size=1, max_size=5))
def test_added_tokens_as_transformers(vocab, additions, texts):
    theirs, ours = Theirs(vocab), BertGenerationTokenizer(vocab)
    assert add(ours, AddedToken, additions) == add(theirs, transformers.AddedToken, additions)
    assert ours.get_vocab() == theirs.get_vocab() and len(ours) == len(theirs)
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert [ours.tokenize(text) for text in texts] == [theirs.tokenize(text) for text in texts]
    ids = [theirs.encode(text) for text in texts]
    assert ours.encode_batch(texts) == ids
    ordinary = {i for i, t in ours.added_tokens_decoder.items() if i >= 300 and not t.special}
    for row in ids:
        if not ordinary & set(row):
            assert ours.decode(row) == theirs.decode(row)
            assert ours.decode(row, skip_special_tokens=True) == theirs.decode(row, skip_special_tokens=True)


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)))
def test_flags_of_an_added_token_as_transformers(vocab, exact_vocab, flags):
    lefts = ["", "a", "a ", "a  ", "<s>", "<s> "]
    rights = ["", "b", " b", "  b", "</s>", "[F]", " [F]"]
    for path in (vocab, exact_vocab):
        ours, theirs = BertGenerationTokenizer(path), Theirs(path)
        add(ours, AddedToken, [("flags", flags)])
        add(theirs, transformers.AddedToken, [("flags", flags)])
        for left, right in itertools.product(lefts, rights):
            assert ours.tokenize(f"{left}[F]{right}") == theirs.tokenize(f"{left}[F]{right}")


@fuzz
@given(text=near_text("\r\n", "   ").filter(utf8))
def test_a_model_that_keeps_white_space_as_transformers(exact_vocab, text):
    ours, theirs = BertGenerationTokenizer(exact_vocab), Theirs(exact_vocab)
    ids = theirs.encode(text)
    assert ours.encode(text) == ids and ours.decode(ids) == theirs.decode(ids)


def test_an_ordinary_added_token_keeps_its_spaces(fresh, vocab):
    """Transformers 5 decodes this to "the stationnewword the"."""
    assert fresh.add_tokens("newword") == 1 and fresh.convert_tokens_to_ids("newword") == 301
    text = "the station newword the newword newword"
    assert fresh.decode(fresh.encode(text)) == text
    assert fresh.batch_decode([[301], [2, 301]], skip_special_tokens=True) == ["newword", "newword"]


def test_a_token_that_becomes_special_keeps_its_id(fresh):
    assert fresh.add_tokens(["[T]", ""]) == 1
    assert fresh.add_special_tokens({"extra_special_tokens": ["[T]"]}) == 0
    assert fresh.encode("[T]") == [301] and len(fresh) == 302
    assert fresh.decode([301], skip_special_tokens=True) == ""
    assert fresh.add_tokens(AddedToken("[U]", lstrip=True), special_tokens=True) == 1
    assert fresh.extra_special_tokens == ["[T]", "[U]"]
    assert fresh.added_tokens_decoder[302] == AddedToken("[U]", lstrip=True, special=True)


def test_ids_of_a_file_with_holes(vocab):
    tokenizer = BertGenerationTokenizer(vocab, sep_token=None, added_tokens_decoder={"302": "[A]"})
    assert len(tokenizer) == 301 and tokenizer.encode("[A]") == [302]
    assert tokenizer.add_tokens(["[B]", "[C]"]) == 2
    assert tokenizer.encode("[A][B][C]") == [302, 301, 303]
    with pytest.raises(InputError, match="id 300"):
        tokenizer.decode([300])


def test_the_longest_added_token_wins(fresh, theirs):
    theirs = copy.deepcopy(theirs)
    for tokenizer in (fresh, theirs):
        tokenizer.add_tokens(["[A]", "[A][A]", "[A]d"])
    assert fresh.tokenize("a[A][A]de[A][A][A]") == theirs.tokenize("a[A][A]de[A][A][A]")
    assert fresh.encode("[A][A]") == [302]


def test_a_near_miss_of_one_token_does_not_hide_another(fresh):
    """Transformers' search leaves "abcx" in one piece."""
    fresh.add_tokens(["abx", "b"])
    assert fresh.tokenize("abcx") == [*fresh.tokenize("a"), "b", *fresh.tokenize("cx")]


def test_special_tokens_can_be_set_to_known_tokens_only(fresh):
    fresh.pad_token = fresh.eos_token
    assert fresh.pad_token_id == 1
    fresh.pad_token_id = 0
    assert fresh.pad_token == "<pad>"
    fresh.cls_token = AddedToken("▁the")
    assert fresh.cls_token == "▁the"
    fresh.cls_token = None
    assert fresh.cls_token_id is None
    with pytest.raises(InputError, match=r"'\[PAD\]' is not in the vocabulary"):
        fresh.pad_token = "[PAD]"


def test_byte_pieces_become_their_characters(tmp_path):
    """Transformers decodes these to "<0xE6><0xBC>..."."""
    tokenizer = BertGenerationTokenizer(train(tmp_path / "bytes.model", byte_fallback=True, vocab_size=560))
    text = "the 漢 station 😀"
    ids = tokenizer.encode(text)
    assert 3 not in ids and tokenizer.decode(ids) == text
    assert tokenizer.decode(ids[:-1]) == "the 漢 station \ufffd"


@pytest.mark.parametrize("text", ["the 漢 station 😀", "漢字漢", "a\ufffdb", "é", "the", "", "😀😀 the 漢\nb"])
def test_byte_pieces_give_one_text_whichever_way_they_go(tmp_path_factory, text):
    """From tokens as from ids, whole or cut in a character, and piece by piece from a streamer."""
    path = tmp_path_factory.getbasetemp() / "bytes.model"
    tokenizer = BertGenerationTokenizer(
        str(path) if path.exists() else train(path, byte_fallback=True, vocab_size=560, character_coverage=0.999)
    )
    ids = tokenizer.encode(text)
    for cut in range(len(ids) + 1):
        tokens = tokenizer.convert_ids_to_tokens(ids[:cut])
        assert tokenizer.convert_tokens_to_string(tokens) == tokenizer.decode(ids[:cut])
        pieces = []
        streamer = TextStreamer(tokenizer)
        streamer.on_finalized_text = lambda piece, stream_end=False, to=pieces: to.append(piece)
        for index in ids[:cut]:
            streamer.put(torch.tensor([index]))
        streamer.end()
        assert "".join(pieces) == tokenizer.decode(ids[:cut])


# -- calls ------------------------------------------------------------------------------------------------------------

OPTIONS = st.fixed_dictionaries(
    {},
    optional=dict(
        padding=st.sampled_from([False, True, "longest", "max_length", "do_not_pad"]),
        truncation=st.sampled_from([None, False, True, "longest_first", "only_first", "only_second"]),
        max_length=st.sampled_from([1, 2, 3, 8, 30]),
        pad_to_multiple_of=st.sampled_from([1, 4]),
        padding_side=st.sampled_from(["left", "right"]),
        return_tensors=st.sampled_from(["pt", "np"]),
        return_attention_mask=st.booleans(),
        return_token_type_ids=st.booleans(),
        add_special_tokens=st.booleans(),
    ),
)
TEXT = near_text().filter(utf8)
INPUTS = st.one_of(
    st.tuples(TEXT),
    st.tuples(TEXT, TEXT),
    st.tuples(st.lists(TEXT, min_size=1, max_size=4)),
    st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3).map(
        lambda pairs: tuple(map(list, zip(*pairs, strict=True)))
    ),
    st.tuples(st.lists(TEXT | st.tuples(TEXT, TEXT) | st.tuples(TEXT), min_size=1, max_size=4)),
    st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3).map(lambda p: ([a for a, _ in p], None, [b for _, b in p])),
)


@pytest.fixture
def callers(vocab):
    return Theirs(vocab), BertGenerationTokenizer(vocab)


@settings(fuzz, max_examples=150)
@given(inputs=INPUTS, options=OPTIONS, side=st.sampled_from(["left", "right"]), limit=st.sampled_from([None, 6]))
@pytest.mark.filterwarnings("ignore:truncation without max_length", "ignore:`max_length` is ignored")
def test_calls_as_transformers(callers, inputs, options, side, limit):
    theirs, ours = callers
    theirs.truncation_side = ours.truncation_side = side
    theirs.model_max_length = ours.model_max_length = limit or NO_LIMIT
    try:
        expected = theirs(*inputs, **options)
        if any(0 in v.shape or v.dtype == object for v in expected.values() if hasattr(v, "shape")):
            # Rows of different lengths: an array of objects, or (the first row empty) a tensor without the others.
            rows = theirs(*inputs, **{k: v for k, v in options.items() if k != "return_tensors"})
            ragged = any(len({len(r) for r in v}) > 1 for v in rows.values() if v and isinstance(v[0], list))
            expected = ValueError() if ragged else expected
    except ValueError as error:
        expected = error
    if isinstance(expected, ValueError):
        with pytest.raises(ValueError):
            ours(*inputs, **options)
        return
    found = ours(*inputs, **options)
    assert list(found) == list(expected)
    for key in expected:
        assert_same(found[key], expected[key])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("truncation", ["longest_first", "only_first", "only_second"])
def test_pairs_are_truncated_as_transformers_does(callers, truncation, side):
    theirs, ours = callers
    theirs.truncation_side = ours.truncation_side = side
    texts = ["", "the", "the station", "a b c d e"]
    for first, second in itertools.product(texts, [*texts, None]):
        for limit in range(1, len(ours.encode(first, second)) + 1):
            options = dict(truncation=truncation, max_length=limit, return_token_type_ids=True)
            assert dict(ours(first, second, **options)) == dict(theirs(first, second, **options))


@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_corners_of_a_call(theirs, ours):
    for inputs, options in (
        (("",), {}),
        (("",), dict(padding="max_length", max_length=4)),
        (("",), dict(return_tensors="pt")),
        (([""],), dict(padding="max_length", max_length=4)),
        ((["", ""],), dict(return_tensors="np")),
        (("a b c d",), dict(max_length=2)),
        (("a b c d",), dict(max_length=2, padding=True)),
        (("a b c d",), dict(max_length=2, padding="max_length")),
        (("a b c d",), dict(max_length=2, truncation=False)),
        (("a", "b"), dict(return_token_type_ids=True)),
        (("a", "b"), dict(return_token_type_ids=True, add_special_tokens=False)),
        ((None, None, "a b"), {}),
        ((("a", "b"),), {}),
        (([("a", "b"), "c", ("d",)],), dict(padding=True)),
        (("a b",), dict(truncation=transformers.tokenization_utils_base.TruncationStrategy.ONLY_FIRST, max_length=1)),
        (("a b",), dict(padding=transformers.utils.PaddingStrategy.MAX_LENGTH, max_length=6)),
    ):
        found, expected = ours(*inputs, **options), theirs(*inputs, **options)
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])


@settings(fuzz, max_examples=40)
@given(
    rows=st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=5), min_size=1, max_size=4),
    masked=st.booleans(),
    as_list=st.booleans(),
    side=st.sampled_from(["left", "right"]),
    options=st.sampled_from([{}, dict(max_length=7, padding="max_length"), dict(pad_to_multiple_of=4)]),
    tensors=st.sampled_from([None, "pt", "np"]),
)
def test_pad_as_transformers(theirs, ours, rows, masked, as_list, side, options, tensors):
    def inputs():
        columns = {"input_ids": copy.deepcopy(rows)}
        if masked:
            columns["attention_mask"] = [[1] * len(row) for row in rows]
        return (
            [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            if as_list
            else columns
        )

    options = dict(options, padding_side=side, return_tensors=tensors)
    found, expected = ours.pad(inputs(), **options), theirs.pad(inputs(), **options)
    assert found.keys() == expected.keys()
    for key in expected:
        assert_same(found[key], expected[key])


def test_pad_keeps_the_kind_of_its_input(theirs, ours):
    encodings = [
        {"input_ids": torch.tensor([[5, 6], [7, 0]])},
        [{"input_ids": torch.tensor([5, 6])}, {"input_ids": torch.tensor([7])}],
        [{"input_ids": numpy.array([5, 6])}, {"input_ids": numpy.array([7])}],
        {"input_ids": [5, 6], "labels": [1]},
        [{"input_ids": [5, 6], "label": 1}, {"input_ids": [7], "label": 2}],
        {"input_ids": []},
    ]
    for encoding in encodings:
        expected = theirs.pad(copy.deepcopy(encoding))
        found = ours.pad(encoding)
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])


def test_the_collator_of_transformers_takes_it(theirs, ours):
    features = [ours(a, text_target=b) for a, b in (("the station", "a"), ("the", "b c d"))]
    batches = [
        transformers.DataCollatorForSeq2Seq(t, return_tensors="pt")(copy.deepcopy(features)) for t in (ours, theirs)
    ]
    for key in ("input_ids", "attention_mask", "labels"):
        assert_same(batches[0][key], batches[1][key])
    assert batches[0].labels.min() == -100


def test_the_encoding_is_a_dict_with_attributes(ours):
    batch = ours(["the station", "the"], padding=True, return_tensors="pt")
    assert batch.input_ids is batch["input_ids"] and set(batch) == {"input_ids", "attention_mask"}
    assert dict(**batch).keys() == batch.keys()
    assert batch.to("meta") is batch and batch.attention_mask.device.type == "meta"
    assert not hasattr(batch, "token_type_ids")
    assert pickle.loads(pickle.dumps(ours("the"))) == copy.deepcopy(ours("the")) == ours("the")


def test_truncation_without_a_limit_warns(fresh):
    with pytest.warns(UserWarning, match="no model_max_length"):
        assert len(fresh.encode("the station", truncation=True)) > 1


# -- sampling ---------------------------------------------------------------------------------------------------------


def test_sampling(vocab, tmp_path):
    options = dict(enable_sampling=True, nbest_size=-1, alpha=0.1)
    tokenizer = BertGenerationTokenizer(vocab, sp_model_kwargs=options)
    text = "the station don't"
    found = {tuple(row) for row in tokenizer.encode_batch([text] * 100)}
    assert len(found) > 5
    assert {tokenizer.decode(list(row)) for row in found} == {text}
    assert all(row[:1] == [2] for row in tokenizer.encode_batch(["<s>" + text] * 5))
    expected = Theirs(vocab, sp_model_kwargs=options)
    for one in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])[0]):
        for sentence in (text, "the 漢 station 漢"):
            sentencepiece.set_random_generator_seed(5)
            theirs = [expected.encode(sentence) for _ in range(20)]
            sentencepiece.set_random_generator_seed(5)
            assert [one(sentence) for _ in range(20)] == theirs
    tokenizer.save_pretrained(tmp_path)
    assert BertGenerationTokenizer.from_pretrained(tmp_path).sp_model_kwargs == options
    assert Theirs.from_pretrained(tmp_path).sp_model_kwargs == options


# -- files ------------------------------------------------------------------------------------------------------------


def alter(tokenizer) -> None:
    """Additions of every kind."""
    tokenizer.add_tokens(["newword", "the"])
    tokenizer.add_special_tokens({"mask_token": "[M]", "extra_special_tokens": ["[E]"]})


def assert_equivalent(ours, theirs) -> None:
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.model_max_length == theirs.model_max_length and ours.padding_side == theirs.padding_side
    texts = [*corpus()[:20], "a<s>[M]the[E] newword", "  ", ""]
    assert ours.encode_batch(texts) == [theirs.encode(text) for text in texts]
    rows = [row for row in ours.encode_batch(texts) if ours.convert_tokens_to_ids("newword") not in row]
    assert ours.batch_decode(rows, True) == theirs.batch_decode(rows, skip_special_tokens=True)


@pytest.mark.parametrize("altered", [False, True])
def test_what_it_saves_loads_here_and_in_transformers(vocab, tmp_path, altered):
    ours = BertGenerationTokenizer(vocab, model_max_length=40, padding_side="left", truncation_side="left")
    if altered:
        alter(ours)
    paths = ours.save_pretrained(tmp_path / "new" / "dir")
    directory = tmp_path / "new" / "dir"
    names = {"spiece.model", "tokenizer_config.json", "added_tokens.json"}
    assert {p.name for p in directory.iterdir()} == names == {p.rsplit("/")[-1] for p in paths}
    with open(vocab, "rb") as file:
        assert (directory / "spiece.model").read_bytes() == file.read()
    theirs, again = Theirs.from_pretrained(directory), BertGenerationTokenizer.from_pretrained(directory)
    for loaded in (theirs, again):
        assert_equivalent(ours, loaded)
        assert loaded.truncation_side == "left"
    assert again.added_tokens_decoder == ours.added_tokens_decoder
    reference = Theirs(vocab)
    if altered:
        alter(reference)
    reference.save_pretrained(tmp_path)
    saved = [json.loads((path / "tokenizer_config.json").read_text()) for path in (tmp_path, directory)]
    assert saved[0]["added_tokens_decoder"] == saved[1]["added_tokens_decoder"]
    again.save_pretrained(directory)  # over itself
    assert_equivalent(BertGenerationTokenizer.from_pretrained(directory), theirs)


@pytest.mark.parametrize("altered", [False, True])
def test_what_transformers_saves_loads_here(vocab, tmp_path, altered):
    theirs = Theirs(vocab, model_max_length=40, sep_token="|")
    if altered:
        alter(theirs)
    theirs.add_tokens(transformers.AddedToken("[F]", lstrip=True, rstrip=True))
    theirs.save_pretrained(tmp_path)
    Theirs.from_pretrained(tmp_path).save_pretrained(tmp_path)  # adds further keys
    ours = BertGenerationTokenizer.from_pretrained(tmp_path)
    assert_equivalent(ours, theirs)
    ours.save_pretrained(tmp_path / "ours")
    saved = [json.loads((path / "tokenizer_config.json").read_text()) for path in (tmp_path, tmp_path / "ours")]
    assert saved[0]["added_tokens_decoder"] == saved[1]["added_tokens_decoder"]
    assert ours.encode("the [F] the") == theirs.encode("the [F] the")
    assert BertGenerationTokenizer.from_pretrained(tmp_path, model_max_length=9, sep_token=None).model_max_length == 9


def test_no_special_token_survives_saving(vocab, tmp_path):
    """transformers puts "<::::>" behind the last piece where the file does not say that there is none."""
    BertGenerationTokenizer(vocab, sep_token=None).save_pretrained(tmp_path)
    assert len(BertGenerationTokenizer.from_pretrained(tmp_path)) == len(Theirs.from_pretrained(tmp_path)) == 300
    assert not (tmp_path / "added_tokens.json").exists()


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"added_tokens.json": {"<::::>": 300, "newword": 301}},
        {
            "special_tokens_map.json": {
                "bos_token": "<s>",
                "mask_token": {"content": "[M]", "lstrip": True, "normalized": False, "rstrip": False},
                "additional_special_tokens": ["[E]"],
            },
            "added_tokens.json": {"[E]": 302, "<::::>": 300, "[M]": 301},
            "tokenizer_config.json": {"max_len": 40, "tokenizer_class": "BertGenerationTokenizer"},
        },
        {
            "tokenizer_config.json": {
                "additional_special_tokens": ["[E]"],
                "extra_special_tokens": {},
                "clean_up_tokenization_spaces": True,
                "legacy": True,
                "mask_token": {"__type": "AddedToken", "content": "[M]", "lstrip": False, "normalized": True,
                               "rstrip": False, "single_word": False},
            }
        },
    ],
    ids=["bare", "added", "version 4, old", "version 4"],
)  # fmt: skip
def test_older_files_as_transformers_reads_them(vocab, tmp_path, files):
    shutil.copy(vocab, tmp_path / "spiece.model")
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    ours, theirs = BertGenerationTokenizer.from_pretrained(tmp_path), Theirs.from_pretrained(tmp_path)
    assert_equivalent(ours, theirs)
    ids = ours.encode("the isn't .")
    assert ours.decode(ids) == theirs.decode(ids)


def test_a_path_of_a_model_and_a_prefix(vocab, tmp_path, ours):
    assert BertGenerationTokenizer.from_pretrained(vocab).get_vocab() == ours.get_vocab()
    (path,) = ours.save_vocabulary(tmp_path, "en")
    assert path == str(tmp_path / "en-spiece.model") and BertGenerationTokenizer(path).get_vocab() == ours.get_vocab()


def test_hub_options_reach_the_download(vocab, monkeypatch):
    asked = []

    def resolve(path_or_id, filename, hub=None, *, required=True):
        asked.append((path_or_id, filename, required, hub))
        return vocab if filename == "spiece.model" else None

    monkeypatch.setattr(files, "resolve_file", resolve)
    hub = dict(revision="main", cache_dir="c", token="t", local_files_only=True)
    assert len(AutoTokenizer.from_pretrained("a/b", **hub)) == 301
    assert {filename for _, filename, _, _ in asked} >= {"spiece.model", "tokenizer_config.json", "config.json"}
    assert all(options == hub for _, _, _, options in asked)


def test_unknown_keys_of_a_file_are_named(vocab, tmp_path, ours):
    ours.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"backend": "x", "paddingside": "left"}))
    with pytest.warns(UserWarning, match="unknown keys paddingside"):
        BertGenerationTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"image_token": "<image>"}))
    with pytest.raises(CheckpointError, match="image_token"):
        BertGenerationTokenizer.from_pretrained(tmp_path)


def test_a_path_in_a_file_is_never_opened(vocab, tmp_path, ours):
    ours.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"vocab_file": "/etc/hostname"}))
    assert BertGenerationTokenizer.from_pretrained(tmp_path).get_vocab() == ours.get_vocab()
    config["sp_model_kwargs"] = {"model_file": "/etc/hostname"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="model_file"):
        BertGenerationTokenizer.from_pretrained(tmp_path)


def test_copies(fresh, tmp_path):
    fresh.add_tokens("newword")
    texts = ["the newword</s>", "station"]
    pickled = pickle.dumps(fresh)
    assert fresh.decode([301]) == "newword"
    assert len(pickle.dumps(fresh)) == len(pickled)  # without what is made on first use
    for other in (pickle.loads(pickled), pickle.loads(pickle.dumps(fresh)), copy.deepcopy(fresh)):
        assert other.encode_batch(texts) == fresh.encode_batch(texts)
        assert other.get_vocab() == fresh.get_vocab() and other.pad_token_id == 0
        other.add_tokens("another")
        assert other.encode("another") == [302] and other.decode([302]) == "another"
        assert "another" not in fresh.get_vocab() and fresh.encode("another") != [302]
        other.save_pretrained(tmp_path)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t(None), InputError, "NoneType"),
        (lambda t: t(5), InputError, "int"),
        (lambda t: t(b"the"), InputError, "bytes"),
        (lambda t: t([]), InputError, "no text"),
        (lambda t: t(["a", None]), InputError, "text 1 must be a str, got NoneType"),
        (lambda t: t(["a", 5]), InputError, "text 1 must be a str, got int"),
        (lambda t: t(["a", ["b", 5]]), InputError, "text 1"),
        (lambda t: t([["a"], ["b", "c", "d"]]), InputError, "text 1"),
        (lambda t: t("a", ["b"]), InputError, "list"),
        (lambda t: t(["a"], "b"), InputError, "list of 1"),
        (lambda t: t(["a", "b"], ["b"]), InputError, "list of 2"),
        (lambda t: t(["a", "b"], ["b", None]), InputError, "text_pair 1"),
        (lambda t: t("a\ud800b"), InputError, r"text 0 .*U\+D800 at position 1"),
        (lambda t: t.encode_batch(["a"] * 70 + ["\udfff"]), InputError, r"text 70 .*U\+DFFF"),
        (lambda t: t.encode_batch(["a</s>", "\udfff"]), InputError, "text 1"),
        (lambda t: t.encode_batch("the"), InputError, "list of texts, got str"),
        (lambda t: t.encode_batch(None), InputError, "NoneType"),
        (lambda t: t.encode_batch(["a", b"b"]), InputError, "text 1 must be a str, got bytes"),
        (lambda t: t.tokenize(b"the"), InputError, "bytes"),
        (lambda t: t.tokenize("\ud800"), InputError, "position 0"),
        (lambda t: t.convert_tokens_to_ids(None), InputError, "NoneType"),
        (lambda t: t.decode([5, 301]), InputError, "id 301 at position 1 .* 301 tokens"),
        (lambda t: t.batch_decode([[5], [-1]]), InputError, "id -1 at position 0"),
        (lambda t: t.decode([10**30]), InputError, "outside the vocabulary"),
        (lambda t: t.decode(["a"]), InputError, "'a' at position 0 is no integer"),
        (lambda t: t.decode(None), InputError, "None"),
        (lambda t: t.decode([[5, [6]]]), InputError, "position 1 is no integer"),
        (lambda t: t.batch_decode(5), InputError, "rows of ids, got int"),
        (lambda t: t.convert_ids_to_tokens(301), InputError, "id 301"),
        (lambda t: t.convert_ids_to_tokens([1, 301]), InputError, "id 301 at position 1"),
        (lambda t: t(["a", "the station"], return_tensors="pt"), InputError, "padding=True"),
        (lambda t: t(["", "the station"], return_tensors="pt"), InputError, "0 to"),
        (lambda t: t(["a", "the station"], return_tensors="np"), InputError, "padding=True"),
        (lambda t: t("a", return_tensors="tf"), ConfigError, "'tf'"),
        (lambda t: t("a", padding="short"), ConfigError, "padding .*'short'"),
        (lambda t: t("a", padding=[]), ConfigError, "padding"),
        (lambda t: t("a", truncation="short"), ConfigError, "truncation .*'short'"),
        (lambda t: t("a", padding_side="top"), ConfigError, "'top'"),
        (lambda t: t("a", max_length=0), ConfigError, "max_length .*got 0"),
        (lambda t: t("a", max_length=-3, truncation=True), ConfigError, "got -3"),
        (lambda t: t("a", max_length="8"), ConfigError, "got '8'"),
        (lambda t: t("a", max_length=True), ConfigError, "got True"),
        (lambda t: t("a", max_length=float("inf")), ConfigError, "got inf"),
        (lambda t: t("a", padding=True, pad_to_multiple_of=0), ConfigError, "pad_to_multiple_of"),
        (lambda t: t("a", padding=True, truncation=True, max_length=6, pad_to_multiple_of=4), ConfigError, "6 .*4"),
        (lambda t: t.pad([]), InputError, "input_ids"),
        (lambda t: t.pad({"ids": [1]}), InputError, "input_ids"),
        (lambda t: t.pad([{"input_ids": [1], "labels": [1]}, {"input_ids": [1]}]), InputError, "encoding 1 .*labels"),
        (lambda t: t.pad({"input_ids": [[1], [2]], "labels": [[1]]}), InputError, "labels has 1 rows"),
        (lambda t: t.add_tokens([5]), ConfigError, "5"),
        (lambda t: t.add_special_tokens({"paddingtoken": "x"}), ConfigError, "paddingtoken"),
        (lambda t: t.add_special_tokens({"extra_special_tokens": "x"}), ConfigError, "list"),
    ],
)
def test_bad_calls(fresh, call, error, message):
    with pytest.raises(error, match=message):
        call(fresh)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(paddingside="left", foo=1), ConfigError, "'foo', 'paddingside'"),
        (dict(padding_side="top"), ConfigError, "'top'"),
        (dict(model_max_length=0), ConfigError, "model_max_length"),
        (dict(pad_token=5), ConfigError, "5"),
        (dict(sp_model_kwargs={"nbest": 5}), ConfigError, "'nbest'"),
        (dict(sp_model_kwargs={"enable_sampling": True, "nbest_size": 0}), ConfigError, "nbest_size"),
        (dict(sp_model_kwargs={"alpha": "x"}), ConfigError, "alpha"),
        (dict(legacy=False), UnsupportedError, "legacy"),
        (dict(extra_special_tokens={"image": "<i>"}), UnsupportedError, "extra_special_tokens"),
        (dict(added_tokens_decoder={"-1": "x"}), ConfigError, "-1"),
        (dict(added_tokens_decoder={"x": "y"}), ConfigError, "added_tokens_decoder"),
        (dict(added_tokens_decoder=[1]), ConfigError, "added_tokens_decoder"),
        (dict(added_tokens_decoder={"300": {"lstrip": True}}), ConfigError, "content"),
    ],
)
def test_bad_options(vocab, options, error, message):
    with pytest.raises(error, match=message):
        BertGenerationTokenizer(vocab, **options)


def test_missing_and_corrupt_files(tmp_path, vocab):
    with pytest.raises(CheckpointError, match=r"spiece\.model.*nowhere"):
        BertGenerationTokenizer(tmp_path / "nowhere.model")
    with pytest.raises(CheckpointError, match=r"nowhere"):
        BertGenerationTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no spiece\.model"):
        BertGenerationTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="vocab_file"):
        BertGenerationTokenizer(None)
    for content in (b"", b"no model", b"\0" * 100):
        (tmp_path / "spiece.model").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"spiece\.model is (no usable sentencepiece model|empty)"):
            BertGenerationTokenizer.from_pretrained(tmp_path)
    shutil.copy(vocab, tmp_path / "spiece.model")
    for name, wrong in (
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": 5}}),
        ("tokenizer_config.json", {"padding_side": "middle"}),
        ("special_tokens_map.json", {"bos_token": 5}),
        ("added_tokens.json", {"a": [1]}),
        ("added_tokens.json", {"a": -1}),
    ):
        for content in ("{", "[1]", "[" * 100000, json.dumps(wrong)):
            (tmp_path / name).write_text(content)
            with pytest.raises(CheckpointError, match=str(tmp_path)):
                BertGenerationTokenizer.from_pretrained(tmp_path)
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match="is a file"):
        BertGenerationTokenizer(vocab).save_pretrained(tmp_path / "spiece.model")
    with pytest.raises(CheckpointError, match="no directory"):
        BertGenerationTokenizer(vocab).save_vocabulary(tmp_path / "nowhere")


HOSTILE = """
import random, sys
from bertgen.errors import CheckpointError
from bertgen.tokenizer import BertGenerationTokenizer
good, path = open(sys.argv[1], "rb").read(), sys.argv[2]
loaded = refused = 0
for case in range(200):
    draw, data = random.Random(case), bytearray(good)
    at = draw.randrange(min(len(good), 6000))
    if case % 4 == 0:
        del data[at:]
    elif case % 4 == 1:
        data[at : at + draw.randrange(40)] = draw.randbytes(draw.randrange(40))
    else:
        for _ in range(draw.randint(1, 9)):
            data[draw.randrange(len(data)) if case % 4 == 2 else draw.randrange(6000)] = draw.randrange(256)
    open(path, "wb").write(data)
    print("case", case, flush=True)
    try:
        tokenizer = BertGenerationTokenizer(path)
        texts = ["the station", "\\ufb00 \\uff1cs\\uff1e \\U0001f600", "a</s>b", "\\0", "x" * 2000, ""] * 12
        rows = tokenizer.encode_batch(texts) + tokenizer.encode_batch(texts[:6])
        assert all(0 <= index < len(tokenizer) for row in rows for index in row)
        tokenizer.batch_decode(rows), tokenizer.get_vocab()
        loaded += 1
    except CheckpointError:
        refused += 1
assert loaded > 10 and refused > 10, (loaded, refused)
assert not {"torch", "transformers", "huggingface_hub"} & set(sys.modules)
"""


def test_no_mutated_model_kills_the_process(vocab, tmp_path):
    """Each gives ids inside the vocabulary or CheckpointError; one that does kill it is the last case printed."""
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, vocab, str(tmp_path / "mutated.model")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-20:] + done.stderr[-2000:]
