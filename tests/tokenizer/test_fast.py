"""FastTokenizer, as BertTokenizer and RobertaTokenizer, against transformers': text to ids and back, added tokens."""

import itertools

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgen.errors import InputError
from bertgen.tokenizer import AddedToken
from bertgen.tokenizer.vocabulary import SPECIAL_NAMES
from tests.support.fast_tokenizers import assert_equivalent, corpus, near_text
from tests.support.tokenizer_checks import add, assert_ids_of_any_type_decode, fuzz

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


def test_a_batch_takes_one_call_of_the_library(fresh_fast):
    """What makes it fast: no call per text or per row."""
    calls = []

    class Counting:
        def __init__(self, library):
            self.library = library

        def __getattr__(self, name):
            actual = getattr(self.library, name)
            return (
                (lambda *a, **k: calls.append(name) or actual(*a, **k))
                if name.startswith(("enc", "dec")) and callable(actual)
                else actual
            )

    fresh_fast._library = Counting(fresh_fast._library)
    ids = fresh_fast.encode_batch(corpus())
    assert calls == ["encode_batch_fast"]
    fresh_fast.batch_decode(ids, skip_special_tokens=True)
    assert calls == ["encode_batch_fast", "decode_batch"]


def test_ids_of_other_types(both):
    ours, theirs = both
    assert_ids_of_any_type_decode(ours, theirs)
    assert ours.batch_decode([[], [5]]) == ["", ours.decode(5)]


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


def test_split_special_tokens_can_be_changed(fresh_fast):
    text = f"a{fresh_fast.sep_token}b"
    whole = fresh_fast.encode(text)
    fresh_fast.split_special_tokens = True
    assert fresh_fast.encode(text).count(fresh_fast.sep_token_id) == whole.count(fresh_fast.sep_token_id) - 1
    fresh_fast.split_special_tokens = False
    assert fresh_fast.encode(text) == whole


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


def test_a_token_that_becomes_special_keeps_its_id(fresh_fast):
    assert fresh_fast.add_tokens("[t]") == 1
    assert fresh_fast.add_special_tokens({"extra_special_tokens": ["[t]"]}) == 0
    assert fresh_fast.convert_tokens_to_ids("[t]") == 400 and fresh_fast.decode([400], skip_special_tokens=True) == ""
    assert fresh_fast.extra_special_tokens == ["[t]"]


def test_special_tokens_can_be_set_to_known_tokens_only(fresh_fast):
    fresh_fast.bos_token = fresh_fast.cls_token  # as for a decoder that starts with [CLS]
    assert fresh_fast.bos_token_id == fresh_fast.cls_token_id
    fresh_fast.pad_token_id = fresh_fast.sep_token_id
    assert fresh_fast.pad_token == fresh_fast.sep_token
    # Unlike transformers, where a call goes on with the tokens it knew first.
    fresh_fast.cls_token = fresh_fast.mask_token
    assert fresh_fast.encode("a")[0] == fresh_fast.mask_token_id
    fresh_fast.cls_token = None
    assert (
        fresh_fast.cls_token_id is None
        and fresh_fast.encode("a")[-1] == fresh_fast.sep_token_id != fresh_fast.encode("a")[0]
    )
    assert fresh_fast.num_special_tokens_to_add() == 1
    # Unlike transformers, where it silently gets the id of the unknown token.
    with pytest.raises(InputError, match=r"'\[NONE\]' is not in the vocabulary"):
        fresh_fast.pad_token = "[NONE]"
