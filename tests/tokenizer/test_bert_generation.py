"""BertGenerationTokenizer against transformers': text to ids and back, added tokens, byte pieces, sampling."""

import copy
import itertools
import random

import numpy
import pytest
import sentencepiece
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgen import TextStreamer
from bertgen.errors import ConfigError, InputError
from bertgen.tokenizer import AddedToken, BertGenerationTokenizer
from bertgen.tokenizer.vocabulary import SPECIAL_NAMES
from tests.support.sentencepiece_tokenizers import (
    Theirs,
    corpus,
    near_text,
    train,
)
from tests.support.tokenizer_checks import fuzz, utf8

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
def test_byte_pieces_give_the_same_text_by_ids_and_by_tokens(tmp_path_factory, text):
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
