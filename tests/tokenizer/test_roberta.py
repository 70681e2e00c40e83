"""RobertaTokenizer's own options against transformers', and its two files."""

import json

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from bertgen import RobertaTokenizer
from bertgen.errors import CheckpointError, ConfigError, UnsupportedError
from bertgen.tokenizer import AddedToken
from tests.support.fast_tokenizers import assert_equivalent, near_text, write_roberta_vocabulary
from tests.support.tokenizer_checks import fuzz

Theirs = transformers.RobertaTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_roberta_vocabulary(tmp_path_factory.mktemp("roberta") / "vocabulary")


@pytest.fixture(scope="module")
def pairs(folder):
    options = [dict(add_prefix_space=value, trim_offsets=value) for value in (False, True)]
    return [(RobertaTokenizer.from_pretrained(folder, **o), Theirs.from_pretrained(folder, **o)) for o in options]


@fuzz
@given(text=near_text("Ġthe", "  the", "\u2028"), prefix=st.booleans())
def test_any_text_survives(pairs, text, prefix):
    """Every byte has a token: decoding gives the text back."""
    ours, theirs = pairs[prefix]
    ids = theirs.encode(text)
    assert ours.encode(text) == ids and ours.tokenize(text) == theirs.tokenize(text)
    assert ours.decode(ids) == theirs.decode(ids)
    if not prefix:
        assert ours.decode(ours.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("prefix", [False, True])
def test_options_are_saved(folder, tmp_path, prefix):
    options = dict(add_prefix_space=prefix, trim_offsets=not prefix)
    ours = RobertaTokenizer.from_pretrained(folder, **options)
    ours.save_pretrained(tmp_path)
    for loaded in (RobertaTokenizer.from_pretrained(tmp_path), Theirs.from_pretrained(tmp_path)):
        assert {name: getattr(loaded, name) for name in options} == options
        assert_equivalent(ours, loaded)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"]
    assert {name: saved[name] for name in options} == options


def test_pairs_and_types(folder):
    ours = RobertaTokenizer.from_pretrained(folder)
    assert ours.model_input_names == ["input_ids", "attention_mask"]
    batch = ours(["the", "a"], ["ab", "a"], padding=True, return_token_type_ids=True)
    first, second = ours.encode_batch(["the", "ab"], add_special_tokens=False)
    assert batch.input_ids[0] == [0, *first, 2, 2, *second, 2]
    assert batch.token_type_ids == [[0] * len(batch.input_ids[0])] * 2
    assert batch.input_ids[1][6:] == [1] * (len(batch.input_ids[0]) - 6)


def test_sources_of_a_vocabulary(folder, tmp_path):
    """Files under two names, tables, a tokenizer.json."""
    files = folder / "vocab.json", folder / "merges.txt"
    first = RobertaTokenizer(*files)
    first.save_pretrained(tmp_path)
    vocab = json.loads(files[0].read_text())
    merges = [tuple(line.split(" ")) for line in files[1].read_text().split("\n")[1:-1]]
    for other in (
        RobertaTokenizer(vocab_file=str(files[0]), merges_file=str(files[1])),
        RobertaTokenizer(vocab, merges),
        RobertaTokenizer(tokenizer_file=tmp_path / "tokenizer.json"),
        RobertaTokenizer.from_pretrained(tmp_path / "tokenizer.json"),
        Theirs(vocab=vocab, merges=merges),
    ):
        assert_equivalent(first, other)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["model"]["merges"] = [" ".join(pair) for pair in saved["model"]["merges"]]  # as older versions wrote them
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    assert_equivalent(RobertaTokenizer.from_pretrained(tmp_path), Theirs.from_pretrained(tmp_path))


def test_the_vocabulary_is_saved_without_added_tokens(folder, tmp_path):
    ours = RobertaTokenizer.from_pretrained(folder)
    ours.add_tokens("newword")
    paths = ours.save_vocabulary(tmp_path, "en")
    assert paths == (str(tmp_path / "en-vocab.json"), str(tmp_path / "en-merges.txt"))
    assert json.loads((tmp_path / "en-vocab.json").read_text()) == json.loads((folder / "vocab.json").read_text())
    assert len(RobertaTokenizer(*paths)) == 400 and RobertaTokenizer(*paths).encode("the") == ours.encode("the")


def test_files_of_transformers_4(folder, tmp_path):
    """The mask of version 4 takes the space before it with it."""
    RobertaTokenizer.from_pretrained(folder).save_vocabulary(tmp_path)
    token = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": True}
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    decoder = {str(i): token | {"content": name, "lstrip": name == "<mask>"} for i, name in enumerate(names)}
    config = {"add_prefix_space": False, "added_tokens_decoder": decoder, "clean_up_tokenization_spaces": True}
    config |= {"errors": "replace", "trim_offsets": True, "tokenizer_class": "RobertaTokenizer", "mask_token": "<mask>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = RobertaTokenizer.from_pretrained(tmp_path), Theirs.from_pretrained(tmp_path)
    assert_equivalent(ours, theirs)
    masked = ours.encode("a <mask> b", add_special_tokens=False)
    assert masked == theirs.encode("a <mask> b", add_special_tokens=False)
    assert ours.convert_ids_to_tokens(masked) == ["a", "<mask>", "Ġb"]
    ids = ours.encode("the isn 't , a")
    # Spaces are in the tokens of this class, so cleaning up would take out those of the text.
    assert ours.decode(ids) == theirs.decode(ids) and " 't , a" in ours.decode(ids)
    assert " 't , a" in ours.decode(ids, clean_up_tokenization_spaces=True)


def test_bytes_that_are_no_text(folder):
    ours, theirs = RobertaTokenizer.from_pretrained(folder), Theirs.from_pretrained(folder)
    ids = ours.encode("😀", add_special_tokens=False)
    assert len(ids) == 4 and ours.decode(ids[:-1]) == theirs.decode(ids[:-1]) == "\ufffd"


@pytest.mark.parametrize("missing", ["sep_token", "cls_token"])
def test_one_special_token_less(folder, tmp_path, missing):
    ours = RobertaTokenizer.from_pretrained(folder, **{missing: None})
    a = ours.encode("a", add_special_tokens=False)
    assert ours.encode("a") == (a + [2] if missing == "cls_token" else [0] + a)
    ours.save_pretrained(tmp_path)
    assert RobertaTokenizer.from_pretrained(tmp_path).encode("a", "a") == ours.encode("a", "a")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigError, "RobertaTokenizer needs vocab and merges, or a tokenizer_file"),
        (dict(vocab={"a": 0}), ConfigError, "needs vocab and merges"),
        (dict(merges=[]), ConfigError, "needs vocab and merges"),
        (dict(vocab={"a": 0}, merges=[("a", "b")]), ConfigError, "`b` out of vocabulary"),
        (dict(vocab={"a": 0}, merges=[("a",)]), ConfigError, "cannot be a vocabulary of RobertaTokenizer"),
        (dict(vocab="/no/such/vocab.json", merges="/no/such/merges.txt"), CheckpointError, "/no/such/vocab.json"),
        (dict(vocab={"a": 0}, merges=[], errors="strict"), UnsupportedError, "'strict'"),
        (dict(vocab={"a": 0}, merges=[], do_lower_case=True), ConfigError, "no option 'do_lower_case'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        RobertaTokenizer(**options)


@pytest.mark.parametrize(("name", "content"), [("vocab.json", "{"), ("vocab.json", "[1]"), ("merges.txt", "a b c\n")])
def test_corrupt_files(folder, tmp_path, name, content):
    RobertaTokenizer.from_pretrained(folder).save_vocabulary(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{name} .*cannot be a vocabulary"):
        RobertaTokenizer.from_pretrained(tmp_path, mask_token=AddedToken("<mask>", lstrip=True))
