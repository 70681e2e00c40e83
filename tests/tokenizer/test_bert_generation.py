"""BertGenerationTokenizer against transformers': text to ids and back, added tokens, byte pieces, sampling."""

import random

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertGenerationTokenizer as Theirs

from bertgen import TextStreamer
from bertgen.errors import ConfigError
from bertgen.tokenizer import BertGenerationTokenizer
from tests.support.sentencepiece_tokenizers import corpus, near_text, train
from tests.support.tokenizer_checks import assert_ids_of_any_type_decode, fuzz, utf8

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


def test_ids_of_other_types(theirs, ours):
    assert_ids_of_any_type_decode(ours, theirs)
    assert ours.batch_decode([5, 6]) == theirs.batch_decode([5, 6])
    assert ours.batch_decode([[], [5]]) == theirs.batch_decode([[], [5]])
    assert ours.decode([]) == ""


def test_clean_up_as_transformers(theirs, vocab):
    ours = BertGenerationTokenizer(vocab, clean_up_tokenization_spaces=True)
    ids = ours.encode("a . b ? c ! d , e ' s n't i 'm a 's i 've o 're a")
    cleaned = theirs.decode(ids, clean_up_tokenization_spaces=True)
    assert ours.decode(ids) == cleaned != ours.decode(ids, clean_up_tokenization_spaces=False) == theirs.decode(ids)


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


@fuzz
@given(text=near_text("\r\n", "   ").filter(utf8))
def test_a_model_that_keeps_white_space_as_transformers(exact_vocab, text):
    ours, theirs = BertGenerationTokenizer(exact_vocab), Theirs(exact_vocab)
    ids = theirs.encode(text)
    assert ours.encode(text) == ids and ours.decode(ids) == theirs.decode(ids)


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
    samples = {tuple(row) for row in tokenizer.encode_batch([text] * 100)}
    assert len(samples) > 5
    assert {tokenizer.decode(list(row)) for row in samples} == {text}
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
