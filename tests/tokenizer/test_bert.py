"""BertTokenizer's own options against transformers', its vocab.txt, and the warning about cased vocabularies."""

import itertools
import json
import warnings

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from bertgen import BertTokenizer
from bertgen.errors import CheckpointError, ConfigError, UnsupportedError
from tests.support.fast_tokenizers import assert_equivalent, near_text, write_bert_vocabulary
from tests.support.tokenizer_checks import fuzz

Theirs = transformers.BertTokenizer
OPTIONS = [
    dict(do_lower_case=lower, strip_accents=strip, tokenize_chinese_chars=chinese)
    for lower, strip, chinese in itertools.product([False, True], [None, False, True], [False, True])
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bert_vocabulary(tmp_path_factory.mktemp("bert") / "uncased")


@pytest.fixture(scope="module")
def cased(tmp_path_factory):
    return write_bert_vocabulary(tmp_path_factory.mktemp("bert") / "cased", cased=True)


@pytest.fixture(scope="module")
def pairs(cased):
    return [(BertTokenizer.from_pretrained(cased, **o), Theirs.from_pretrained(cased, **o)) for o in OPTIONS]


@fuzz
@given(text=near_text("ÄÖ", "漢字kanji", "Straße"), which=st.integers(0, len(OPTIONS) - 1))
def test_options_as_transformers(pairs, text, which):
    ours, theirs = pairs[which]
    assert ours.tokenize(text) == theirs.tokenize(text)
    ids = theirs.encode(text)
    assert ours.encode(text) == ids and ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("options", OPTIONS[::5])
def test_options_are_saved(cased, tmp_path, options):
    ours = BertTokenizer.from_pretrained(cased, **options)
    ours.save_pretrained(tmp_path)
    for loaded in (BertTokenizer.from_pretrained(tmp_path), Theirs.from_pretrained(tmp_path)):
        assert {name: getattr(loaded, name) for name in options} == options
        assert_equivalent(ours, loaded)


def test_pairs_and_types(folder):
    ours = BertTokenizer.from_pretrained(folder)
    assert ours.model_input_names == ["input_ids", "token_type_ids", "attention_mask"]
    batch = ours(["d", "a"], ["a b", "c"], padding=True)
    a, b, c, d = ours.convert_tokens_to_ids(["a", "b", "c", "d"])
    assert batch.input_ids == [[2, d, 3, a, b, 3], [2, a, 3, c, 3, 0]]
    assert batch.token_type_ids == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert batch.attention_mask == [[1] * 6, [1] * 5 + [0]]
    assert ours.encode("d a b", max_length=4, truncation=True) == [2, d, a, 3]


def test_sources_of_a_vocabulary(folder, tmp_path):
    """A file under two names, a table, a tokenizer.json, and a path in place of a directory."""
    path = folder / "vocab.txt"
    first = BertTokenizer(path)
    first.save_pretrained(tmp_path)
    table = {token: index for index, token in enumerate(path.read_text().split("\n")[:-1])}
    for other in (
        BertTokenizer(str(path)),
        BertTokenizer(vocab=table),
        BertTokenizer(vocab_file=path),
        BertTokenizer(tokenizer_file=tmp_path / "tokenizer.json"),
        BertTokenizer.from_pretrained(path),
        BertTokenizer.from_pretrained(tmp_path / "tokenizer.json"),
        Theirs(vocab=table),
    ):
        assert_equivalent(first, other)
    assert BertTokenizer.from_pretrained(path, do_lower_case=False).do_lower_case is False


def test_odd_lines_of_a_vocabulary_as_transformers(tmp_path):
    lines = "[UNK]\r\na \n##b\nc\u2028d\ne\xa0\n\nx\x0bz\n[CLS]\n[SEP]\n[PAD]\n[MASK]\nä"
    (tmp_path / "vocab.txt").write_bytes(lines.encode())
    ours, theirs = BertTokenizer.from_pretrained(tmp_path), Theirs.from_pretrained(tmp_path)
    assert ours.get_vocab() == theirs.get_vocab() and len(ours) == 12
    assert ours.encode("ab e ä") == theirs.encode("ab e ä")


def test_the_vocabulary_is_saved_without_added_tokens(folder, tmp_path):
    ours = BertTokenizer.from_pretrained(folder)
    ours.add_tokens("newword")
    (path,) = ours.save_vocabulary(tmp_path, "en")
    assert path == str(tmp_path / "en-vocab.txt")
    assert (tmp_path / "en-vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()


def test_files_of_transformers_4(folder, tmp_path):
    """As version 4 saved them, slow and fast."""
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    config = {
        "added_tokens_decoder": {str(i): token | {"content": name} for i, name in enumerate(names)},
        "clean_up_tokenization_spaces": True,
        "cls_token": "[CLS]",
        "do_basic_tokenize": True,
        "do_lower_case": False,
        "extra_special_tokens": {},
        "mask_token": "[MASK]",
        "model_max_length": 512,
        "never_split": None,
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
        "unk_token": "[UNK]",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    special = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]"}
    # What the first file says does not come from the other one.
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special | {"unk_token": "[UNK]", "bos_token": "[B]"}))
    ours, theirs = BertTokenizer.from_pretrained(tmp_path), Theirs.from_pretrained(tmp_path)
    assert_equivalent(ours, theirs)
    assert ours.do_lower_case is False and ours.model_max_length == 512 and ours.clean_up_tokenization_spaces
    ids = ours.encode("the isn 't , a", add_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids)


def test_clean_up_as_transformers(folder):
    ours, theirs = BertTokenizer.from_pretrained(folder), Theirs.from_pretrained(folder)
    ids = ours.encode("a . b ? c ! d , e ' s do n't i 'm a 's i 've o 're a")
    for clean in (None, False, True):
        assert ours.decode(ids, clean_up_tokenization_spaces=clean) == theirs.decode(
            ids, clean_up_tokenization_spaces=clean
        )


def test_no_special_tokens(folder):
    """Unlike transformers, where a tokenizer without them takes the ids 2 and 3."""
    ours = BertTokenizer.from_pretrained(folder, cls_token=None, sep_token=None, pad_token=None)
    assert ours("a", "b").input_ids == ours.convert_tokens_to_ids(["a", "b"]) and ours.num_special_tokens_to_add() == 0
    with pytest.raises(ConfigError, match="pad_token"):
        ours(["a", "b"], padding=True)


def test_no_special_token_survives_saving(folder, tmp_path):
    BertTokenizer.from_pretrained(folder, sep_token=None).save_pretrained(tmp_path)
    again = BertTokenizer.from_pretrained(tmp_path)
    assert again.sep_token is None and again.encode("a") == [2, *again.convert_tokens_to_ids(["a"])]


# -- upper case -------------------------------------------------------------------------------------------------------


def test_a_cased_vocabulary_made_lower_case_warns(cased, tmp_path):
    """The translation checkpoints of Google: a cased vocab.txt and no file that says do_lower_case=False."""
    with pytest.warns(UserWarning, match="do_lower_case=False is probably right") as caught:
        ours = BertTokenizer.from_pretrained(cased)
    assert len(caught) == 1 and ours.do_lower_case is True
    assert ours.encode("Äu") == Theirs.from_pretrained(cased).encode("Äu")
    with pytest.warns(UserWarning, match="do_lower_case"):
        BertTokenizer(cased / "vocab.txt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for lower in (False, True):
            BertTokenizer.from_pretrained(cased, do_lower_case=lower).save_pretrained(tmp_path)
            assert BertTokenizer.from_pretrained(tmp_path).do_lower_case is lower


def test_an_uncased_vocabulary_does_not_warn(folder):
    tokens = (folder / "vocab.txt").read_text().split("\n")
    assert any(token != token.lower() for token in tokens) and not any("Station" in token for token in tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert BertTokenizer.from_pretrained(folder).do_lower_case is True


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigError, "BertTokenizer needs vocab, or a tokenizer_file"),
        (dict(vocab={"a": 0}, tokenizer_file="x"), CheckpointError, "no tokenizer.json at x"),
        (dict(vocab={"a": -1}), ConfigError, "cannot be a vocabulary of BertTokenizer"),
        (dict(vocab={"a": "x"}), ConfigError, "cannot be a vocabulary"),
        (dict(vocab="/no/such/vocab.txt"), CheckpointError, "/no/such/vocab.txt"),
        (dict(vocab={"a": 0}, never_split=["x"]), UnsupportedError, "never_split"),
        (dict(vocab={"a": 0}, do_basic_tokenize=False), UnsupportedError, "do_basic_tokenize"),
        (dict(vocab={"a": 0}, merges=[]), ConfigError, "no option 'merges'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        BertTokenizer(**options)


def test_two_vocabularies(folder, tmp_path):
    BertTokenizer(folder / "vocab.txt").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="needs vocab, or a tokenizer_file instead; got 2"):
        BertTokenizer(folder / "vocab.txt", tokenizer_file=tmp_path / "tokenizer.json")


def test_a_vocabulary_that_is_no_text(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"[UNK]\n\xff\xfe\n")
    with pytest.raises(CheckpointError, match=r"vocab\.txt cannot be a vocabulary of BertTokenizer"):
        BertTokenizer.from_pretrained(tmp_path)


def test_a_vocabulary_without_the_unknown_token(tmp_path):
    """It loads, as in transformers, and encodes what it knows."""
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    ours = BertTokenizer.from_pretrained(tmp_path)
    assert ours.encode("a b", add_special_tokens=False) == [0, 1] and len(ours) == 7
    with pytest.raises(CheckpointError, match=r"cannot encode: .*\[UNK\]"):
        ours.encode_batch(["a", "x"])


def test_another_unknown_token():
    options = dict(vocab={"<unk>": 0, "a": 1, "[UNK]": 2}, unk_token="<unk>")
    ours, theirs = BertTokenizer(**options), Theirs(**options)
    assert ours.encode("a x") == theirs.encode("a x") and 0 in ours.encode("x")


def test_a_long_word_is_unknown(folder):
    ours = BertTokenizer.from_pretrained(folder)
    assert ours.tokenize("a" * 101) == ["[UNK]"] != ours.tokenize("a" * 100)
