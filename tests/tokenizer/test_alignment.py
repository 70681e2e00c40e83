"""Alignment: the text, word and characters of each token, against transformers."""

from __future__ import annotations

import pickle
import random

import pytest

from bertgen import (
    BertGenerationTokenizer,
    UnsupportedError,
)
from bertgen.hub import DEMO_MODEL
from tests.support.tokenizer_pairs import EXTRA_COLUMNS, TEXTS

WORDS = ["Hello", "worlds", "naïve", "a.b", "x", "über", "中文", "don't", "12-3", "🙂", "zzz", "", "ﬁne"]


def random_call(r, split):
    """Texts and options of one call: one text or several, pairs, truncation, padding on either side."""
    count = r.randint(1, 4)

    def one_text():
        return r.choices(WORDS, k=r.randint(1, 6)) if split else r.choice(TEXTS)

    texts, seconds = [one_text() for _ in range(count)], [one_text() for _ in range(count)]
    if r.random() < 0.4:
        texts, seconds = texts[0], seconds[0]
    inputs = (texts,) if r.random() < 0.5 else (texts, seconds)
    options = dict(padding=r.choice([False, True, "max_length"]), max_length=r.randint(8, 14))
    options["truncation"] = True
    if r.random() < 0.5:
        options["padding_side"] = r.choice(["left", "right"])
    return inputs, options


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_alignments_equal_transformers(fast_pair, seed, split):
    ours, theirs = fast_pair
    inputs, options = random_call(random.Random(seed), split)
    one = ours(*inputs, **options, is_split_into_words=split, **EXTRA_COLUMNS)
    other = theirs(*inputs, **options, is_split_into_words=split, **EXTRA_COLUMNS)
    assert dict(one) == dict(other)
    assert one.is_fast == other.is_fast and one.n_sequences == other.n_sequences
    for i in range(len(other.encodings)):
        assert one.tokens(i) == other.tokens(i)
        assert one.sequence_ids(i) == other.sequence_ids(i)
        assert one.word_ids(i) == other.word_ids(i)
        for token, (sequence, word) in enumerate(zip(other.sequence_ids(i), other.word_ids(i), strict=True)):
            assert one.token_to_sequence(i, token) == other.token_to_sequence(i, token)
            assert one.token_to_word(i, token) == other.token_to_word(i, token)
            assert one.token_to_chars(i, token) == other.token_to_chars(i, token)
            if word is not None:
                assert one.word_to_tokens(i, word, sequence) == other.word_to_tokens(i, word, sequence)
                assert one.word_to_chars(i, word, sequence) == other.word_to_chars(i, word, sequence)
        for char in range(12):
            assert one.char_to_token(i, char) == other.char_to_token(i, char)
            assert one.char_to_word(i, char) == other.char_to_word(i, char)
    assert dict(ours(*inputs, **options, is_split_into_words=split)) == dict(
        theirs(*inputs, **options, is_split_into_words=split)
    )


@pytest.mark.parametrize("seed", range(40))
def test_rows_of_pieces_equal_transformers(demo_pair, seed):
    ours, theirs = demo_pair
    split = seed % 2 == 1
    inputs, options = random_call(random.Random(seed), split)
    columns = dict(return_special_tokens_mask=True, return_length=True, is_split_into_words=split)
    assert dict(ours(*inputs, **options, **columns)) == dict(theirs(*inputs, **options, **columns))


@pytest.mark.parametrize("text", [*TEXTS, "Wo ist　der  Bahnhof? <pad> </s>x", "ABC ｆｕｌｌ"])
def test_offsets_of_pieces_are_those_of_their_characters(demo_pair, text):
    ours = demo_pair[0]
    encoding = ours(text, return_offsets_mapping=True)
    assert encoding.encodings[0].ids == encoding.input_ids == ours.encode(text)
    assert len(encoding.offset_mapping) == len(encoding.input_ids) and encoding.sequence_ids() == [0] * len(
        encoding.input_ids
    )
    end = 0
    for (start, stop), token in zip(encoding.offset_mapping, encoding.tokens(), strict=True):
        assert end <= start <= stop <= len(text)
        end = stop
        if token.isascii():
            assert text[start:stop].strip() == token or not text.isascii()
    with pytest.raises(UnsupportedError, match="is_split_into_words=True"):
        encoding.word_ids()
    words = ours(["Hello", "über", "x"], is_split_into_words=True)
    assert sorted(set(words.word_ids())) == [0, 1, 2]


def test_offsets_of_pieces_in_a_text_with_added_tokens(demo_pair):
    ours = pickle.loads(pickle.dumps(demo_pair[0]))
    ours.add_tokens(["<new>"])
    text = "one <new>two<new> three"
    encoding = ours(text, "second <new>", return_offsets_mapping=True)
    columns = encoding.offset_mapping, encoding.tokens(), encoding.sequence_ids()
    places = [text[start:end] for (start, end), token, s in zip(*columns, strict=True) if token == "<new>" and s == 0]
    assert places == ["<new>", "<new>"] and encoding.n_sequences == 2
    assert encoding.char_to_token(text.index("two")) is not None
    sampled = BertGenerationTokenizer(
        DEMO_MODEL / "spiece.model", sp_model_kwargs=dict(enable_sampling=True, nbest_size=-1, alpha=0.1)
    )
    with pytest.raises(UnsupportedError, match="enable_sampling"):
        sampled(text, return_offsets_mapping=True)
