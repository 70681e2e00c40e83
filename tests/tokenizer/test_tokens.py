"""AddedToken: strings that are one token at any place of a text, with flags, against transformers'."""

import copy
import itertools

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertGenerationTokenizer as Theirs

from bertgen.errors import InputError
from bertgen.tokenizer import AddedToken, BertGenerationTokenizer
from tests.support.fast_tokenizers import assert_equivalent
from tests.support.sentencepiece_tokenizers import near_text
from tests.support.tokenizer_checks import add, fuzz, utf8

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
