"""Which text, word and characters a token is of, and the other questions that programs ask a tokenizer."""

from __future__ import annotations

import pickle
import random

import pytest
import torch
import transformers

from bertgen import (
    AutoTokenizer,
    BertGenerationTokenizer,
    BertTokenizer,
    ConfigError,
    InputError,
    RobertaTokenizer,
    UnsupportedError,
)
from bertgen.hub import DEMO_MODEL

WORDS = ["Hello", "worlds", "naïve", "a.b", "x", "über", "中文", "don't", "12-3", "🙂", "zzz", "", "ﬁne"]
TEXTS = ["Hello worlds", "", " a  b ", "naïve über 中文!", "don't 🙂 x\ty", "[MASK] zzz <mask> Hello", "ﬁne ½ x"]
PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] hello world ##s na ##ive a . b x uber 中 文 don ' t 12 - 3 ##b ! fine".split()


def bert(folder):
    (folder / "vocab.txt").write_text("\n".join(PIECES), encoding="utf-8")
    return BertTokenizer.from_pretrained(folder), transformers.BertTokenizer.from_pretrained(folder)


def roberta(folder, **options):
    from tokenizers import ByteLevelBPETokenizer

    library = ByteLevelBPETokenizer()
    library.train_from_iterator(TEXTS * 3, 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    library.save_model(str(folder))
    transformers.RobertaTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt").save_pretrained(folder)
    return (kind.from_pretrained(folder, **options) for kind in (RobertaTokenizer, transformers.RobertaTokenizer))


@pytest.fixture(scope="module", params=["bert", "roberta", "roberta with prefix space", "roberta untrimmed"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "bert":
        return tuple(bert(folder))
    options = {"roberta": {}, "roberta untrimmed": {"trim_offsets": False}}.get(
        request.param, {"add_prefix_space": True}
    )
    return tuple(roberta(folder, **options))


@pytest.fixture(scope="module")
def pieces():
    kinds = (BertGenerationTokenizer, transformers.BertGenerationTokenizer)
    return tuple(kind(f"{DEMO_MODEL}/spiece.model") for kind in kinds)


def random_call(r, split):
    """Texts and options of one call: one text or several, pairs, truncation, padding on either side."""
    count = r.randint(1, 4)

    def some():
        return r.choices(WORDS, k=r.randint(1, 6)) if split else r.choice(TEXTS)

    texts, seconds = [some() for _ in range(count)], [some() for _ in range(count)]
    if r.random() < 0.4:
        texts, seconds = texts[0], seconds[0]
    given = (texts,) if r.random() < 0.5 else (texts, seconds)
    options = dict(padding=r.choice([False, True, "max_length"]), max_length=r.randint(8, 14))
    options["truncation"] = True
    if r.random() < 0.5:
        options["padding_side"] = r.choice(["left", "right"])
    return given, options


ASKED = dict(return_offsets_mapping=True, return_special_tokens_mask=True, return_length=True)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_rows_and_where_they_come_from_equal_transformers(pair, seed, split):
    ours, theirs = pair
    given, options = random_call(random.Random(seed), split)
    one = ours(*given, **options, is_split_into_words=split, **ASKED)
    other = theirs(*given, **options, is_split_into_words=split, **ASKED)
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
    assert dict(ours(*given, **options, is_split_into_words=split)) == dict(
        theirs(*given, **options, is_split_into_words=split)
    )


def test_tensors_of_everything_equal_transformers(pair):
    ours, theirs = pair
    one, other = (kind(TEXTS, padding=True, return_tensors="pt", **ASKED) for kind in pair)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert ours(TEXTS[0], return_length=True) == theirs(TEXTS[0], return_length=True)
    one, other = (kind(TEXTS[0]).convert_to_tensors("pt", prepend_batch_axis=True) for kind in pair)
    assert all(torch.equal(one[key], other[key]) for key in other)
    assert ours(TEXTS)[1].tokens == theirs(TEXTS)[1].tokens and ours(TEXTS).data == theirs(TEXTS).data


@pytest.mark.parametrize("seed", range(40))
def test_rows_of_pieces_equal_transformers(pieces, seed):
    ours, theirs = pieces
    split = seed % 2 == 1
    given, options = random_call(random.Random(seed), split)
    asked = dict(return_special_tokens_mask=True, return_length=True, is_split_into_words=split)
    assert dict(ours(*given, **options, **asked)) == dict(theirs(*given, **options, **asked))


@pytest.mark.parametrize("text", [*TEXTS, "Wo ist　der  Bahnhof? <pad> </s>x", "ABC ｆｕｌｌ"])
def test_pieces_know_their_characters(pieces, text):
    ours = pieces[0]
    found = ours(text, return_offsets_mapping=True)
    assert found.encodings[0].ids == found.input_ids == ours.encode(text)
    assert len(found.offset_mapping) == len(found.input_ids) and found.sequence_ids() == [0] * len(found.input_ids)
    end = 0
    for (start, stop), token in zip(found.offset_mapping, found.tokens(), strict=True):
        assert end <= start <= stop <= len(text)
        end = stop
        if token.isascii():
            assert text[start:stop].strip() == token or not text.isascii()
    with pytest.raises(UnsupportedError, match="is_split_into_words=True"):
        found.word_ids()
    words = ours(["Hello", "über", "x"], is_split_into_words=True)
    assert sorted(set(words.word_ids())) == [0, 1, 2]


def test_pieces_in_a_text_with_added_tokens_know_their_characters(pieces):
    ours = pickle.loads(pickle.dumps(pieces[0]))
    ours.add_tokens(["<new>"])
    text = "one <new>two<new> three"
    found = ours(text, "second <new>", return_offsets_mapping=True)
    places = [
        text[a:b] for (a, b), token, s in zip(found.offset_mapping, found.tokens(), found.sequence_ids(), strict=True)
        if token == "<new>" and s == 0
    ]  # fmt: skip
    assert places == ["<new>", "<new>"] and found.n_sequences == 2
    assert found.char_to_token(text.index("two")) is not None
    sampled = BertGenerationTokenizer(
        DEMO_MODEL / "spiece.model", sp_model_kwargs=dict(enable_sampling=True, nbest_size=-1, alpha=0.1)
    )
    with pytest.raises(UnsupportedError, match="enable_sampling"):
        sampled(text, return_offsets_mapping=True)


def test_helpers_for_ids_equal_transformers(pieces, pair):
    ours, theirs = pieces
    for one, two in (([5, 6, 7], None), ([5, 6, 7], [8, 9])):
        for name in (
            "build_inputs_with_special_tokens", "create_token_type_ids_from_sequences", "get_special_tokens_mask",
        ):  # fmt: skip
            assert getattr(ours, name)(one, two) == getattr(theirs, name)(one, two), name
        for strategy in ("longest_first", "only_first", "only_second"):
            if strategy == "only_second" and two is None:
                continue
            for side in ("right", "left"):
                ours.truncation_side = theirs.truncation_side = side
                for removed, stride in ((0, 0), (1, 0), (2, 1)):
                    options = dict(num_tokens_to_remove=removed, truncation_strategy=strategy, stride=stride)
                    assert ours.truncate_sequences(one, two, **options) == theirs.truncate_sequences(
                        one, two, **options
                    )
        ours.truncation_side = theirs.truncation_side = "right"
        for options in (dict(), dict(padding="max_length", max_length=9, return_special_tokens_mask=True)):
            assert dict(ours.prepare_for_model(one, two, **options)) == dict(
                theirs.prepare_for_model(one, two, **options)
            )
    ours, theirs = pair
    row = ours("x", "a")["input_ids"]
    assert ours.get_special_tokens_mask(row, already_has_special_tokens=True) == theirs.get_special_tokens_mask(
        row, already_has_special_tokens=True
    )
    first, second = ours.encode("x", add_special_tokens=False), ours.encode("a", add_special_tokens=False)
    assert ours.build_inputs_with_special_tokens(first, second) == row
    assert (
        ours.get_special_tokens_mask(first, second)
        == ours("x", "a", return_special_tokens_mask=True).special_tokens_mask
    )
    assert ours.prepare_for_model(first, second) == ours("x", "a")
    with pytest.raises(InputError, match="no second text"):
        ours.get_special_tokens_mask(row, second, already_has_special_tokens=True)


def test_attributes_equal_transformers(pieces, pair):
    for ours, theirs in (pieces, pair):
        for name in (
            "is_fast", "max_len_single_sentence", "max_len_sentences_pair", "pad_token_type_id", "all_special_ids",
            "added_tokens_encoder", "extra_special_tokens", "extra_special_tokens_ids",
        ):  # fmt: skip
            assert getattr(ours, name) == getattr(theirs, name), name
        assert ours.get_added_vocab() == theirs.get_added_vocab()


def test_extra_special_tokens_are_set_by_their_ids(pieces):
    ours, theirs = pickle.loads(pickle.dumps(pieces[0])), BertGenerationTokenizer
    theirs = transformers.BertGenerationTokenizer(f"{DEMO_MODEL}/spiece.model")
    ours.extra_special_tokens_ids = theirs.extra_special_tokens_ids = [20, 21]
    for name in ("extra_special_tokens", "all_special_tokens", "all_special_ids", "extra_special_tokens_ids"):
        assert getattr(ours, name) == getattr(theirs, name), name
    ids = ours.encode("Where is") + [20, 21]
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True) == "Where is"
    assert ours.additional_special_tokens_ids == [20, 21]
    ours.additional_special_tokens = ["<a>"]
    assert ours.extra_special_tokens == ["<a>"] and ours.encode("<a>") == [len(ours) - 1]
    with pytest.raises(InputError, match="outside the vocabulary"):
        ours.extra_special_tokens_ids = [10**6]


def test_what_is_not_there_is_refused_by_its_name(pieces):
    ours = pieces[0]
    for option in (dict(return_overflowing_tokens=True), dict(stride=2)):
        with pytest.raises(UnsupportedError, match=next(iter(option))):
            ours("a", max_length=4, **option)
    assert ours("a", return_overflowing_tokens=False, stride=0, verbose=False) == ours("a")
    with pytest.raises(ConfigError, match="return_tensor"):
        ours("a", return_tensor="pt")
    for call in (
        lambda: ours.pad({"input_ids": [1]}).word_ids(),
        lambda: pickle.loads(pickle.dumps(ours("a"))).tokens(),
    ):
        with pytest.raises(UnsupportedError, match="only an encoding that a tokenizer call returned"):
            call()
    with pytest.raises(InputError, match="must be a list of words"):
        ours("a b", is_split_into_words=True)
    with pytest.raises(InputError, match="text 1 must be a list of words"):
        ours([["a"], "b"], is_split_into_words=True)


def test_names_of_older_versions(pieces):
    ours = AutoTokenizer.from_pretrained("demo")
    assert ours.encode_plus("a", "b", padding=True) == ours("a", "b", padding=True)
    assert ours.batch_encode_plus([("a", "b"), ("c", "d")]) == ours(["a", "c"], ["b", "d"])
    labels = pieces[1]("a", text_target="c", text_pair_target="d")["labels"]
    assert ours("a", text_target="c", text_pair_target="d")["labels"] == labels


def test_tokens_of_a_pair_with_the_special_ones_around(tmp_path):
    ours, theirs = bert(tmp_path)
    for options in ({}, {"pair": "a . b"}, {"add_special_tokens": True}, {"pair": "a", "add_special_tokens": True}):
        assert ours.tokenize("hello worlds", **options) == theirs.tokenize("hello worlds", **options)


def test_an_empty_text_with_a_second_one_is_padded(pieces):
    ours, theirs = pieces
    for options in ({"padding": "max_length", "max_length": 9}, {"padding": True, "pad_to_multiple_of": 8}):
        assert dict(ours("", "hello", **options)) == dict(theirs("", "hello", **options))
        assert dict(ours("", **options)) == dict(theirs("", **options))


def test_sides_and_lengths_are_checked_when_they_are_set(pieces):
    tokenizer = pieces[0]
    for name, value in (("truncation_side", "up"), ("padding_side", None), ("model_max_length", "512")):
        before = getattr(tokenizer, name)
        with pytest.raises(ConfigError, match=name):
            setattr(tokenizer, name, value)
        assert getattr(tokenizer, name) == before


def test_ids_stay_integers(pieces):
    encoding = pieces[0]("hello", return_tensors="pt")
    with pytest.raises(InputError, match="got the dtype torch.float16: ids are integers"):
        encoding.to(torch.float16)
    assert encoding.to("cpu").input_ids.dtype is torch.int64
