"""Files of BertGenerationTokenizer: written and read by bertgen and transformers, missing, corrupt and hostile."""

import copy
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import transformers
from transformers import BertGenerationTokenizer as Theirs

from bertgen.errors import CheckpointError, ConfigError
from bertgen.tokenizer import BertGenerationTokenizer
from tests.support.sentencepiece_tokenizers import corpus
from tests.support.transformers_version import reads_additional_special_tokens

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
    """transformers adds "<::::>" after the last piece unless the file says that there is none."""
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
        pytest.param(
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
            marks=reads_additional_special_tokens,
        ),
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
