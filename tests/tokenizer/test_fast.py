"""What BertTokenizer and RobertaTokenizer have in common, against transformers' own on two small vocabularies."""

import copy
import itertools
import json
import pickle
import random
import threading
from pathlib import Path
from typing import NamedTuple

import numpy
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from bertgen import BertTokenizer, RobertaTokenizer
from bertgen.errors import CheckpointError, ConfigError, InputError, UnsupportedError
from bertgen.tokenizer import AddedToken, files
from bertgen.tokenizer.base import NO_LIMIT
from bertgen.tokenizer.vocabulary import SPECIAL_NAMES

BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
fuzz = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), database=None)


def corpus() -> list[str]:
    """Sentences of made-up words, some in upper case, with punctuation, digits and letters beyond ASCII."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdeilnorstuäöé", k=draw.randint(1, 7))) for _ in range(300)]
    words += [word.capitalize() for word in words[:100]]
    words += ["the", "station", "newtok", "1", "23", "don't", "isn't", "漢字"]
    ends = [".", "?", "!", ", so", " :", ""]
    return [" ".join(draw.choices(words, k=draw.randint(1, 9))) + draw.choice(ends) for _ in range(1000)]


def write_bert_vocabulary(folder: Path, *, cased: bool = False, special: list[str] = BERT_SPECIAL) -> Path:
    """A vocab.txt of 400 tokens in a new folder, which is returned."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.model.save(str(folder))
    return folder


def write_roberta_vocabulary(folder: Path) -> Path:
    """A vocab.json of 400 tokens and its merges.txt in a new folder, which is returned."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = dict(vocab_size=400, special_tokens=ROBERTA_SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(**options))
    tokenizer.model.save(str(folder))
    return folder


class Kind(NamedTuple):
    """A class here, the same in transformers, and a folder that both load."""

    ours: type
    theirs: type
    folder: Path

    def load(self, **options):
        return self.ours.from_pretrained(self.folder, **options), self.theirs.from_pretrained(self.folder, **options)


@pytest.fixture(scope="session")
def kinds(tmp_path_factory) -> dict[str, Kind]:
    folder = tmp_path_factory.mktemp("vocabularies")
    return {
        "bert": Kind(BertTokenizer, transformers.BertTokenizer, write_bert_vocabulary(folder / "bert")),
        "roberta": Kind(RobertaTokenizer, transformers.RobertaTokenizer, write_roberta_vocabulary(folder / "roberta")),
    }


@pytest.fixture(scope="session", params=["bert", "roberta"])
def kind(request, kinds) -> Kind:
    return kinds[request.param]


@pytest.fixture(scope="session")
def both(kind):
    """One tokenizer of each side that no test may change."""
    return kind.load()


@pytest.fixture
def fresh(kind):
    return kind.ours.from_pretrained(kind.folder)


ODD = [
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\xa0",
    "\u3000",
    "\u200b",
    "\u200d",
    "\0",
    "\x85",
    "\ufffd",
    "ﬀ",
    "ＡＢ",
    "e\u0301",
]
ODD += ["漢字", "仮名カナ", "한국어", "😀", "👩‍👩‍👧", "🇩🇪", "<", ">", "[", "]", "##", "Ġ", "İ", "ß", "ǅ", "x" * 120]


def near_text(*tokens: str) -> st.SearchStrategy[str]:
    """Text in which the given tokens, pieces of them, white space and odd Unicode are likely."""
    words = ["the ", "The", "station", " don't.", "abc", "Äé", "naïve"]
    part = st.sampled_from([*BERT_SPECIAL, *ROBERTA_SPECIAL, *tokens, *ODD, *words]) | st.text(max_size=4)
    return st.lists(part, max_size=10).map("".join).filter(lambda text: text.isascii() or utf8(text))


def utf8(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def assert_same(a, b) -> None:
    """Equal in type, dtype, shape and value."""
    assert type(a) is type(b)
    if isinstance(a, (numpy.ndarray, torch.Tensor)):
        assert a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    else:
        assert a == b


def assert_equivalent(ours, theirs) -> None:
    """The same vocabulary, options and results."""
    assert ours.get_vocab() == theirs.get_vocab() and len(ours) == len(theirs)
    assert ours.all_special_tokens == theirs.all_special_tokens
    for name in ("model_max_length", "padding_side", "truncation_side", "model_input_names", "special_tokens_map"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert {i: AddedToken.of(t) for i, t in theirs.added_tokens_decoder.items()} == {
        i: AddedToken.of(t) for i, t in ours.added_tokens_decoder.items()
    }
    texts = [*corpus()[:20], "a<s>[M]the[E] Newword x[F] <mask> [MASK]y", "Äé ", "  ", ""]
    assert dict(ours(texts, padding=True)) == dict(theirs(texts, padding=True))
    assert dict(ours(texts[0], texts[1])) == dict(theirs(texts[0], texts[1]))
    rows = theirs(texts)["input_ids"]
    for skip in (False, True):
        assert ours.batch_decode(rows, skip) == theirs.batch_decode(rows, skip_special_tokens=skip)


# -- text to ids and back ---------------------------------------------------------------------------------------------


@settings(fuzz, max_examples=120)
@given(text=near_text())
def test_one_text_as_transformers(both, text):
    ours, theirs = both
    assert ours.tokenize(text) == theirs.tokenize(text)
    ids = theirs.encode(text)
    assert ours.encode(text) == ids == ours.encode_batch([text])[0]
    assert ours.encode_batch([text], add_special_tokens=False)[0] == theirs.encode(text, add_special_tokens=False)
    for skip, clean in itertools.product([False, True], [False, True, None]):
        options = dict(skip_special_tokens=skip, clean_up_tokenization_spaces=clean)
        assert ours.decode(ids, **options) == theirs.decode(ids, **options)
    options = dict(skip_special_tokens=True)
    assert ours.convert_ids_to_tokens(ids, **options) == theirs.convert_ids_to_tokens(ids, **options)
    tokens = theirs.convert_ids_to_tokens(ids)
    assert ours.convert_tokens_to_ids(tokens) == ids
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)


def test_a_corpus_as_transformers(both):
    ours, theirs = both
    texts = corpus()
    ids = theirs(texts)["input_ids"]
    assert ours.encode_batch(texts) == ours(texts).input_ids == ids
    assert ours.encode_batch(iter(texts[:3])) == ids[:3] and ours.encode_batch([]) == []
    assert ours.batch_decode(ids) == theirs.batch_decode(ids)
    assert ours.decode_batch(ids, skip_special_tokens=True) == theirs.batch_decode(ids, skip_special_tokens=True)


@fuzz
@given(ids=st.lists(st.lists(st.integers(0, 399), max_size=12), min_size=1, max_size=5), skip=st.booleans())
def test_any_ids_decode_as_transformers(both, ids, skip):
    ours, theirs = both
    assert ours.batch_decode(ids, skip_special_tokens=skip) == theirs.batch_decode(ids, skip_special_tokens=skip)
    assert ours.decode(ids, skip) == [ours.decode(row, skip) for row in ids]


def test_a_batch_takes_one_call_of_the_library(fresh):
    """What makes it fast: no call per text or per row."""
    calls = []

    class Counting:
        def __init__(self, library):
            self.library = library

        def __getattr__(self, name):
            found = getattr(self.library, name)
            return (
                (lambda *a, **k: calls.append(name) or found(*a, **k))
                if name.startswith(("enc", "dec")) and callable(found)
                else found
            )

    fresh._library = Counting(fresh._library)
    ids = fresh.encode_batch(corpus())
    assert calls == ["encode_batch_fast"]
    fresh.batch_decode(ids, skip_special_tokens=True)
    assert calls == ["encode_batch_fast", "decode_batch"]


def test_ids_of_other_kinds(both):
    ours, theirs = both
    rows = [[5, 6, 7], [8, 9, 10]]
    for ids in (
        rows,
        torch.tensor(rows),
        numpy.array(rows),
        [torch.tensor(row) for row in rows],
        tuple(map(tuple, rows)),
    ):
        assert ours.batch_decode(ids) == ours.decode(ids) == theirs.decode(rows)
    for one in ([5, 6], torch.tensor([5, 6]), numpy.array([5, 6]), [numpy.int64(5), torch.tensor(6)], (5, 6)):
        assert ours.decode(one) == theirs.decode([5, 6])
    assert ours.decode(5) == ours.decode(torch.tensor(5)) == theirs.decode(5)
    # Unlike transformers, which returns one text for no row.
    assert ours.batch_decode([]) == [] and ours.batch_decode([[], [5]]) == ["", ours.decode(5)]


def test_vocabulary_as_transformers(both):
    ours, theirs = both
    assert_equivalent(ours, theirs)
    assert ours.vocab_size == theirs.vocab_size == 400
    for name in SPECIAL_NAMES:
        assert getattr(ours, name) == getattr(theirs, name)
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id")
    assert ours.all_special_ids == theirs.all_special_ids
    tokens = [ours.sep_token, "no such token", ours.unk_token]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_ids("\ud800") == ours.unk_token_id
    assert [ours.num_special_tokens_to_add(pair) for pair in (False, True)] == [
        theirs.num_special_tokens_to_add(pair) for pair in (False, True)
    ]


@fuzz
@given(text=near_text("[A]"))
def test_split_special_tokens_as_transformers(kind, text):
    ours, theirs = kind.load(split_special_tokens=True)
    for tokenizer in (ours, theirs):
        tokenizer.add_tokens("[A]")
    assert ours.encode(text) == theirs.encode(text) and ours.tokenize(text) == theirs.tokenize(text)
    assert not set(ours.all_special_ids) - {ours.unk_token_id} & set(ours.encode(text, add_special_tokens=False))


def test_split_special_tokens_can_be_changed(fresh):
    text = f"a{fresh.sep_token}b"
    whole = fresh.encode(text)
    fresh.split_special_tokens = True
    assert fresh.encode(text).count(fresh.sep_token_id) == whole.count(fresh.sep_token_id) - 1
    fresh.split_special_tokens = False
    assert fresh.encode(text) == whole


# -- added tokens -----------------------------------------------------------------------------------------------------

ADDITIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("ordinary"), st.lists(st.sampled_from(["[A]", "new tok", "@", "zzz", "漢", "Új"]), min_size=1)
        ),
        st.tuples(st.just("special"), st.lists(st.sampled_from(["[S]", "#", "ÄÖ"]), min_size=1)),
        st.tuples(st.just("flags"), st.lists(st.booleans(), min_size=4, max_size=4)),
        st.tuples(st.just("named"), st.sampled_from([("mask_token", "[M]"), ("sep_token", "|"), ("bos_token", "[B]")])),
        st.tuples(st.just("extra"), st.just(["[E1]", "[E2]"])),
    ),
    max_size=4,
    unique_by=lambda addition: addition[0],
)
ADDED = [
    "[A]",
    "[A][A]",
    "new tok",
    "@",
    "＠",
    "zzz",
    "ZZZ",
    "漢",
    "Új",
    "új",
    "[S]",
    "#",
    "äö",
    "[F]",
    " [F] ",
    "[F]x",
    "[f]",
]
ADDED += ["[M]", "|", "[B]", "[E1]", "[E2]"]


def add(tokenizer, token_class, additions) -> list[int]:
    counts = []
    for what, value in additions:
        if what in ("ordinary", "special"):
            counts.append(tokenizer.add_tokens(value, special_tokens=what == "special"))
        elif what == "flags":
            flags = dict(zip(("lstrip", "rstrip", "single_word", "normalized"), value, strict=True))
            counts.append(tokenizer.add_tokens(token_class("[F]", **flags)))
        elif what == "named":
            counts.append(tokenizer.add_special_tokens({value[0]: value[1]}))
        else:
            counts.append(tokenizer.add_special_tokens({"extra_special_tokens": value}))
    return counts


@fuzz
@given(additions=ADDITIONS, texts=st.lists(near_text(*ADDED), min_size=1, max_size=5))
def test_added_tokens_as_transformers(kind, additions, texts):
    ours, theirs = kind.load()
    before = len(ours)
    assert sum(add(ours, AddedToken, additions)) == len(ours) - before
    add(theirs, transformers.AddedToken, additions)
    assert ours.get_vocab() == theirs.get_vocab() and len(ours) == len(theirs)
    assert ours.all_special_tokens == theirs.all_special_tokens and ours.all_special_ids == theirs.all_special_ids
    assert [ours.tokenize(text) for text in texts] == [theirs.tokenize(text) for text in texts]
    ids = [theirs.encode(text, add_special_tokens=False) for text in texts]
    assert ours.encode_batch(texts, add_special_tokens=False) == ids
    for skip in (False, True):
        assert ours.batch_decode(ids, skip) == theirs.batch_decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)))
def test_flags_of_an_added_token_as_transformers(kind, flags):
    ours, theirs = kind.load()
    add(ours, AddedToken, [("flags", [*flags, True])])
    add(theirs, transformers.AddedToken, [("flags", [*flags, True])])
    lefts, rights = ["", "a", "a ", "a  ", "</s>", "[SEP] "], ["", "b", " b", "  b", "</s>", "[F]", " [F]", "."]
    for left, right in itertools.product(lefts, rights):
        assert ours.tokenize(f"{left}[F]{right}") == theirs.tokenize(f"{left}[F]{right}")


def test_special_tokens_with_flags_as_transformers(kind):
    """The mask of RoBERTa takes the space before it with it."""
    options = dict(lstrip=True, rstrip=False, normalized=False)
    ours = kind.ours.from_pretrained(kind.folder, mask_token=AddedToken("[M]", **options), eos_token="new")
    theirs = kind.theirs.from_pretrained(
        kind.folder, mask_token=transformers.AddedToken("[M]", **options), eos_token="new"
    )
    assert_equivalent(ours, theirs)
    assert ours.tokenize("a  [M] b new") == theirs.tokenize("a  [M] b new")


def test_a_token_added_as_special_is_one_whatever_its_flag(kind):
    ours, theirs = kind.load()
    ours.add_tokens(AddedToken("[X]", rstrip=True), special_tokens=True)
    theirs.add_tokens(transformers.AddedToken("[X]", rstrip=True), special_tokens=True)
    assert_equivalent(ours, theirs)
    ids = theirs.encode("a [X] b")
    assert 400 in ids and ours.encode("a [X] b") == ids
    assert ours.decode(ids, True) == theirs.decode(ids, skip_special_tokens=True) != ours.decode(ids)


def test_tokens_of_the_vocabulary_are_not_counted(fresh):
    """transformers counts "a" here: code that adds as many rows to an embedding would add one too many."""
    assert fresh.add_tokens(["a", "brandnew", ""]) == 1 and len(fresh) == 401
    assert fresh.add_tokens("brandnew") == 0 and fresh.encode("brandnew", add_special_tokens=False) == [400]


def test_a_token_that_becomes_special_keeps_its_id(fresh):
    assert fresh.add_tokens("[t]") == 1
    assert fresh.add_special_tokens({"extra_special_tokens": ["[t]"]}) == 0
    assert fresh.convert_tokens_to_ids("[t]") == 400 and fresh.decode([400], skip_special_tokens=True) == ""
    assert fresh.extra_special_tokens == ["[t]"]


def test_special_tokens_can_be_set_to_known_tokens_only(fresh):
    fresh.bos_token = fresh.cls_token  # as for a decoder that starts with [CLS]
    assert fresh.bos_token_id == fresh.cls_token_id
    fresh.pad_token_id = fresh.sep_token_id
    assert fresh.pad_token == fresh.sep_token
    # Unlike transformers, where a call goes on with the tokens it knew first.
    fresh.cls_token = fresh.mask_token
    assert fresh.encode("a")[0] == fresh.mask_token_id
    fresh.cls_token = None
    assert fresh.cls_token_id is None and fresh.encode("a")[-1] == fresh.sep_token_id != fresh.encode("a")[0]
    assert fresh.num_special_tokens_to_add() == 1
    # Unlike transformers, where it silently gets the id of the unknown token.
    with pytest.raises(InputError, match=r"'\[NONE\]' is not in the vocabulary"):
        fresh.pad_token = "[NONE]"


# -- calls ------------------------------------------------------------------------------------------------------------

OPTIONS = st.fixed_dictionaries(
    {},
    optional=dict(
        padding=st.sampled_from([False, True, "longest", "max_length", "do_not_pad"]),
        truncation=st.sampled_from([None, False, True, "longest_first", "only_first", "only_second"]),
        max_length=st.sampled_from([4, 5, 6, 8, 9, 30]),
        pad_to_multiple_of=st.sampled_from([1, 4]),
        padding_side=st.sampled_from(["left", "right"]),
        return_tensors=st.sampled_from(["pt", "np"]),
        return_attention_mask=st.booleans(),
        return_token_type_ids=st.booleans(),
        add_special_tokens=st.booleans(),
    ),
)
TEXT = near_text()
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)
INPUTS = st.one_of(
    st.tuples(TEXT),
    st.tuples(TEXT, TEXT),
    st.tuples(st.lists(TEXT, min_size=1, max_size=4)),
    PAIRS.map(lambda pairs: tuple(map(list, zip(*pairs, strict=True)))),
    st.tuples(st.lists(TEXT | st.tuples(TEXT, TEXT), min_size=1, max_size=4)),
    PAIRS.map(lambda pairs: ([a for a, _ in pairs], None, [b for _, b in pairs])),
)


@pytest.fixture(scope="module")
def callers(kind):
    return kind.load()


def called(tokenizer, inputs, options):
    """What a call returns, or the exception; that counts as one which has only some of the rows, for their lengths."""
    try:
        found = tokenizer(*inputs, **options)
    except Exception as error:
        return error
    if options.get("return_tensors") and any(value.dtype == object or 0 in value.shape for value in found.values()):
        rows = tokenizer(*inputs, **{name: value for name, value in options.items() if name != "return_tensors"})
        if any(len({len(row) for row in value}) > 1 for value in rows.values() if value and isinstance(value[0], list)):
            return ValueError("rows of different lengths")
    return found


@settings(fuzz, max_examples=150)
@given(inputs=INPUTS, options=OPTIONS, side=st.sampled_from(["left", "right"]), limit=st.sampled_from([None, 6]))
@pytest.mark.filterwarnings("ignore:truncation without max_length", "ignore:`max_length` is ignored")
def test_calls_as_transformers(callers, inputs, options, side, limit):
    ours, theirs = callers
    for tokenizer in callers:
        tokenizer.truncation_side, tokenizer.model_max_length = side, limit or NO_LIMIT
    found, expected = called(ours, inputs, options), called(theirs, inputs, options)
    if isinstance(expected, Exception):
        assert isinstance(found, ValueError), f"{found!r} instead of {expected!r}"
        return
    if isinstance(found, ConfigError) and "special tokens" in str(found):  # see the test after the next
        return
    assert list(found) == list(expected)
    for key in expected:
        assert_same(found[key], expected[key])


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("truncation", ["longest_first", "only_first", "only_second"])
def test_pairs_are_truncated_as_transformers_does(callers, truncation, side, special):
    ours, theirs = callers
    for tokenizer in callers:
        tokenizer.truncation_side, tokenizer.model_max_length = side, NO_LIMIT
    texts = ["", "the", "the station", "a b c d e"]
    for first, second in itertools.product(texts, [*texts, None]):
        count = ours.num_special_tokens_to_add(bool(second)) if special else 1
        for limit in range(count, len(ours.encode(first, second)) + 1):
            options = dict(truncation=truncation, max_length=limit, add_special_tokens=special)
            found, expected = called(ours, (first, second), options), called(theirs, (first, second), options)
            if isinstance(expected, Exception):
                assert isinstance(found, InputError) and "truncation" in str(found)
            else:
                assert dict(found) == dict(expected)


def test_a_limit_below_the_special_tokens(fresh):
    """transformers returns the whole text there, however long it is."""
    with pytest.raises(ConfigError, match="max_length 1 is less than the 2 special tokens"):
        fresh("the station", max_length=1)
    with pytest.raises(ConfigError, match="max_length 2 is less than"):
        fresh(["a", ("a", "b")], truncation=True, max_length=2)
    assert fresh("the", max_length=1, add_special_tokens=False).input_ids == fresh.encode("the")[1:2]


@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_corners_of_a_call(both):
    ours, theirs = both
    for inputs, options in (
        (("",), {}),
        (("",), dict(padding="max_length", max_length=4)),
        (("",), dict(padding="max_length", max_length=4, add_special_tokens=False)),
        (("",), dict(return_tensors="pt", add_special_tokens=False)),
        (("a", ""), dict(return_token_type_ids=True)),
        (([("a", "")],), dict(return_token_type_ids=True)),
        ((["a"], [""]), dict(return_token_type_ids=True)),
        (("a b c d",), dict(max_length=3)),
        (("a b c d",), dict(max_length=3, padding=True)),
        (("a b c d",), dict(max_length=9, padding="max_length")),
        (("a", "b"), dict(return_token_type_ids=True, add_special_tokens=False)),
        ((None, None, "a b"), {}),
        (("a", None, "b"), dict(add_special_tokens=False)),
        ((("a", "b"),), {}),
        (("a b",), dict(truncation=transformers.tokenization_utils_base.TruncationStrategy.ONLY_FIRST, max_length=3)),
        (("a b",), dict(padding=transformers.utils.PaddingStrategy.MAX_LENGTH, max_length=6)),
    ):
        found, expected = ours(*inputs, **options), theirs(*inputs, **options)
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])


def test_the_collator_of_transformers_takes_it(both):
    batches = []
    for tokenizer in both:
        features = [dict(tokenizer(a, text_target=b)) for a, b in (("the station", "a"), ("the", "b c d"))]
        batches.append(transformers.DataCollatorForSeq2Seq(tokenizer, return_tensors="pt")(features))
    assert batches[0].keys() == batches[1].keys()
    for key in batches[0]:
        assert_same(batches[0][key], batches[1][key])


def test_threads_share_one_tokenizer(fresh):
    """A call leaves nothing in the tokenizer; in transformers the truncation of one thread is that of another."""
    texts = corpus()[:50]
    expected = {limit: fresh(texts, truncation=True, max_length=limit, padding=True) for limit in range(3, 9)}
    wrong = []

    def work(limit):
        for _ in range(20):
            if fresh(texts, truncation=True, max_length=limit, padding=True) != expected[limit]:
                wrong.append(limit)

    threads = [threading.Thread(target=work, args=(limit,)) for limit in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- files ------------------------------------------------------------------------------------------------------------


def alter(tokenizer, token_class) -> None:
    """Additions of every kind."""
    tokenizer.add_tokens(["Newword", token_class("[F]", lstrip=True)])
    tokenizer.add_special_tokens({"mask_token": "[M]", "extra_special_tokens": ["[E]"]})


OTHER_OPTIONS = dict(model_max_length=40, padding_side="left", truncation_side="left", model_input_names=["input_ids"])


@pytest.mark.parametrize("altered", [False, True])
@pytest.mark.parametrize("options", [{}, OTHER_OPTIONS], ids=["default", "other"])
def test_what_it_saves_loads_here_and_in_transformers(kind, tmp_path, altered, options):
    ours = kind.ours.from_pretrained(kind.folder, **options)
    if altered:
        alter(ours, AddedToken)
    directory = tmp_path / "new" / "dir"
    paths = ours.save_pretrained(directory)
    names = {"tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in directory.iterdir()} == names == {Path(path).name for path in paths}
    again = kind.ours.from_pretrained(directory)
    for loaded in (
        kind.theirs.from_pretrained(directory),
        transformers.AutoTokenizer.from_pretrained(directory),
        again,
    ):
        assert_equivalent(ours, loaded)
    again.save_pretrained(directory)  # over itself
    assert_equivalent(kind.ours.from_pretrained(directory), kind.theirs.from_pretrained(directory))
    prefixed = ours.save_pretrained(tmp_path, "en")
    assert sorted(Path(path).name for path in prefixed) == ["en-tokenizer.json", "en-tokenizer_config.json"]


def test_its_tokenizer_json_does_all_by_itself(kind, tmp_path):
    """Programs that read nothing else get the special tokens around a text as well."""
    ours = kind.ours.from_pretrained(kind.folder)
    ours.save_pretrained(tmp_path)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for inputs in (("the station",), ("the", "station")):
        encoding = library.encode(*inputs)
        assert encoding.ids == ours(*inputs).input_ids
        assert encoding.type_ids == ours(*inputs, return_token_type_ids=True).token_type_ids


@pytest.mark.parametrize("altered", [False, True])
@pytest.mark.parametrize("options", [{}, OTHER_OPTIONS], ids=["default", "other"])
def test_what_transformers_saves_loads_here(kind, tmp_path, altered, options):
    theirs = kind.theirs.from_pretrained(kind.folder, **options)
    if altered:
        alter(theirs, transformers.AddedToken)
    theirs.save_pretrained(tmp_path)
    kind.theirs.from_pretrained(tmp_path).save_pretrained(tmp_path)  # adds further keys
    ours = kind.ours.from_pretrained(tmp_path)
    assert_equivalent(ours, theirs)
    overrides = dict(model_max_length=9, pad_token="Newword", bos_token="[B]")
    again, expected = (one.from_pretrained(tmp_path, **overrides) for one in (kind.ours, kind.theirs))
    assert_equivalent(again, expected)


def test_the_side_of_the_last_padding_is_in_the_file(kind, tmp_path):
    theirs = kind.theirs.from_pretrained(kind.folder)
    theirs.padding_side = "left"
    theirs(["a", "b c"], padding=True)
    theirs.save_pretrained(tmp_path)
    assert (
        kind.ours.from_pretrained(tmp_path).padding_side == kind.theirs.from_pretrained(tmp_path).padding_side == "left"
    )
    assert kind.ours.from_pretrained(tmp_path, padding_side="right").padding_side == "right"


OLD_CONFIG = {"model_max_length": 40, "clean_up_tokenization_spaces": True, "extra_special_tokens": {}}
MASK = {"content": "[M]", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
OLD_FILES = {
    "bare": {},
    "added": {"added_tokens.json": {"[B]": 400, "Newword": 401}, "tokenizer_config.json": {"bos_token": "[B]"}},
    "map": {
        "special_tokens_map.json": {"mask_token": MASK, "bos_token": "[B]"},
        "added_tokens.json": {"[B]": 401, "[M]": 400},
        "tokenizer_config.json": {"max_len": 40},
    },
    "decoder": {
        "tokenizer_config.json": OLD_CONFIG
        | {
            "mask_token": "[M]",
            "additional_special_tokens": ["[E]"],
            "added_tokens_decoder": {
                "400": MASK | {"special": True},
                "401": MASK | {"content": "[E]", "special": True},
            },
        }
    },
    "typed": {"tokenizer_config.json": OLD_CONFIG | {"mask_token": MASK | {"__type": "AddedToken"}}},
}


def test_additional_special_tokens_of_an_old_map(kind, tmp_path):
    """transformers 5 decodes them although special tokens are to be skipped."""
    kind.ours.from_pretrained(kind.folder).save_vocabulary(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["[E]"]}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[E]": 400}))
    ours, theirs = kind.ours.from_pretrained(tmp_path), kind.theirs.from_pretrained(tmp_path)
    ids = theirs.encode("a [E]", add_special_tokens=False)
    assert ours.encode("a [E]", add_special_tokens=False) == ids and ids[-1] == 400
    assert ours.extra_special_tokens == ["[E]"] and "E" not in ours.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("files", OLD_FILES.values(), ids=OLD_FILES)
@pytest.mark.parametrize("unified", [False, True])
def test_older_files_as_transformers_reads_them(kind, tmp_path, files, unified):
    """Folders of transformers 3 and 4: the files of the vocabulary or a tokenizer.json, and up to three others."""
    if unified:
        kind.ours.from_pretrained(kind.folder).save_pretrained(tmp_path)
        (tmp_path / "tokenizer_config.json").unlink()
    else:
        kind.ours.from_pretrained(kind.folder).save_vocabulary(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    ours, theirs = kind.ours.from_pretrained(tmp_path), kind.theirs.from_pretrained(tmp_path)
    assert_equivalent(ours, theirs)
    ids = ours.encode("the isn't .")
    assert ours.decode(ids) == theirs.decode(ids)


def test_hub_options_reach_the_download(kind, tmp_path, monkeypatch):
    kind.ours.from_pretrained(kind.folder).save_pretrained(tmp_path)
    asked = []

    def resolve(path_or_id, filename, hub=None, *, required=True):
        asked.append((path_or_id, filename, hub))
        return tmp_path / filename if (tmp_path / filename).exists() else None

    monkeypatch.setattr(files, "resolve_file", resolve)
    hub = dict(revision="main", cache_dir="c", token="t", local_files_only=True)
    assert len(kind.ours.from_pretrained("a/b", **hub)) == 400
    assert {name for _, name, _ in asked} >= {"tokenizer.json", "tokenizer_config.json"}
    assert all(path == "a/b" and options == hub for path, _, options in asked)


def test_a_path_in_a_file_is_never_opened(kind, tmp_path):
    kind.ours.from_pretrained(kind.folder).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= dict.fromkeys(("vocab_file", "merges_file", "tokenizer_file"), "/etc/hostname")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert len(kind.ours.from_pretrained(tmp_path)) == 400


def test_copies(kind, tmp_path):
    fresh = kind.ours.from_pretrained(kind.folder, padding_side="left")
    fresh.add_tokens("newword")
    texts = [f"the newword{fresh.sep_token}", "station"]
    pickled = pickle.dumps(fresh)
    assert fresh.decode([400]) == "newword"
    assert len(pickle.dumps(fresh)) == len(pickled)  # without what is made on first use
    for other in (pickle.loads(pickled), pickle.loads(pickle.dumps(fresh)), copy.deepcopy(fresh)):
        assert other(texts, padding=True) == fresh(texts, padding=True)
        assert other.get_vocab() == fresh.get_vocab() and other.special_tokens_map == fresh.special_tokens_map
        other.add_tokens("another")
        assert other.encode("another", add_special_tokens=False) == [401] and other.decode([401]) == "another"
        assert "another" not in fresh.get_vocab() and 401 not in fresh.encode("another")
        other.save_pretrained(tmp_path)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t(None), InputError, "NoneType"),
        (lambda t: t([]), InputError, "no text"),
        (lambda t: t(["a", None]), InputError, "text 1 must be a str, got NoneType"),
        (lambda t: t(["a"], "b"), InputError, "list of 1"),
        (lambda t: t("a\ud800b"), InputError, r"text 0 .*U\+D800 at position 1"),
        (lambda t: t("a", "\ud800"), InputError, r"U\+D800 at position 0"),
        (lambda t: t.encode_batch(["a"] * 70 + ["\udfff"]), InputError, r"text 70 .*U\+DFFF"),
        (lambda t: t.encode_batch("the"), InputError, "list of texts, got str"),
        (lambda t: t.encode_batch(["a", ("b", "c")]), InputError, "text 1 must be a str, got tuple"),
        (lambda t: t.tokenize(b"the"), InputError, "bytes"),
        (lambda t: t.tokenize("\ud800"), InputError, "position 0"),
        (lambda t: t.convert_tokens_to_ids(None), InputError, "NoneType"),
        (lambda t: t.decode([5, 400]), InputError, "id 400 at position 1 .* 400 tokens"),
        (lambda t: t.batch_decode([[5], [-1]]), InputError, "id -1 at position 0"),
        (lambda t: t.decode([10**30]), InputError, "outside the vocabulary"),
        (lambda t: t.decode(["a"]), InputError, "'a' at position 0 is no integer"),
        (lambda t: t.decode([5, 6.0]), InputError, "6.0 at position 1 is no integer"),
        (lambda t: t.decode([5.0, 5]), InputError, "5.0 at position 0 is no integer"),
        (lambda t: t.decode(None), InputError, "None"),
        (lambda t: t.decode([[5, [6]]]), InputError, "position 1 is no integer"),
        (lambda t: t.convert_ids_to_tokens([1, 400]), InputError, "id 400 at position 1"),
        (lambda t: t(["a", "the station a"], return_tensors="pt"), InputError, "padding=True"),
        (lambda t: t("a", padding="short"), ConfigError, "padding .*'short'"),
        (lambda t: t("a b c", "d e", truncation="only_second", max_length=5), InputError, "longest_first"),
        (
            lambda t: t(["a", "a b c"], truncation="only_second", max_length=4),
            InputError,
            "text 1 has . tokens too many",
        ),
        (lambda t: t.add_tokens([5]), ConfigError, "5"),
        (lambda t: t.add_tokens(["\ud800"]), ConfigError, "Unicode"),
        (lambda t: t.add_special_tokens({"paddingtoken": "x"}), ConfigError, "paddingtoken"),
    ],
)
def test_bad_calls(fresh, call, error, message):
    with pytest.raises(error, match=message):
        call(fresh)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(dolowercase=True, foo=1), ConfigError, "Tokenizer has no option 'dolowercase', 'foo'"),
        (dict(padding_side="top"), ConfigError, "'top'"),
        (dict(model_max_length=0), ConfigError, "model_max_length"),
        (dict(pad_token=5), ConfigError, "5"),
        (dict(extra_special_tokens={"image": "<i>"}), UnsupportedError, "extra_special_tokens"),
        (dict(added_tokens_decoder={"x": "y"}), ConfigError, "added_tokens_decoder"),
        # Unlike transformers, which gives it the id 400.
        (dict(added_tokens_decoder={"402": "[A]"}), ConfigError, r"'\[A\]' the id 402, but it must be 400"),
        (dict(added_tokens_decoder={"7": "[A]"}), ConfigError, "the id 7"),
    ],
)
def test_bad_options(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind.ours.from_pretrained(kind.folder, **options)


def test_missing_files(kind, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        kind.ours.from_pretrained(tmp_path / "nowhere")
    for name in kind.ours.VOCABULARY_FILES[1].values():
        with pytest.raises(CheckpointError, match=rf"has no {name}; it holds: .*; tokenizer\.json would do instead"):
            kind.ours.from_pretrained(tmp_path)
        (tmp_path / name).write_text("x")
    with pytest.raises(CheckpointError, match=r"nowhere\.json"):
        kind.ours(tokenizer_file=tmp_path / "nowhere.json")
    with pytest.raises(CheckpointError, match="is a file"):
        kind.ours.from_pretrained(kind.folder).save_pretrained(tmp_path / name)
    with pytest.raises(CheckpointError, match="no directory"):
        kind.ours.from_pretrained(kind.folder).save_vocabulary(tmp_path / "nowhere")


def test_corrupt_files(kind, tmp_path):
    kind.ours.from_pretrained(kind.folder).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    good = json.loads(path.read_text())
    other = "BPE" if kind.ours.MODEL == "WordPiece" else "WordPiece"
    for wrong in (
        {"model": None},
        {"model": []},
        {"model": {}},
        {"model": good["model"] | {"type": other}},
        {"model": good["model"] | {"vocab": [["a", 1]]}},
        {"model": good["model"] | {"vocab": {"a": -1}}},
        {"model": good["model"] | {"vocab": {"a": "x"}}},
        {"added_tokens": [{"content": "x"}]},
        {"added_tokens": [{"id": 0, "content": 5}]},
        {"added_tokens": 5},
        {"padding": {}},
    ):
        path.write_text(json.dumps(good | wrong))
        (tmp_path / "tokenizer_config.json").write_text("{}")
        with pytest.raises(CheckpointError, match=str(tmp_path)):
            kind.ours.from_pretrained(tmp_path)
    for content in (b"", b"{", b"[1]", b"\xff\xfe", path.read_bytes()[:500]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=str(tmp_path)):
            kind.ours.from_pretrained(tmp_path)
    path.write_text(json.dumps(good))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text(json.dumps({"bos_token": 5}))
        with pytest.raises(CheckpointError, match=str(tmp_path)):
            kind.ours.from_pretrained(tmp_path)
        (tmp_path / name).unlink()
