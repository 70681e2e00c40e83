"""Files of BertTokenizer and RobertaTokenizer: written and read by bertgen and transformers, missing and corrupt."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer

from bertgen.errors import CheckpointError
from bertgen.tokenizer import AddedToken, files
from tests.support.fast_tokenizers import (
    assert_equivalent,
)
from tests.support.transformers_version import reads_additional_special_tokens

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


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(files, id=name, marks=[reads_additional_special_tokens] if name == "decoder" else [])
        for name, files in OLD_FILES.items()
    ],
)
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
    requests = []

    def resolve(path_or_id, filename, hub, *, required=True):
        requests.append((path_or_id, filename, hub))
        return tmp_path / filename if (tmp_path / filename).exists() else None

    monkeypatch.setattr(files, "resolve_file", resolve)
    hub = dict(revision="main", cache_dir="c", token="t", local_files_only=True)
    assert len(kind.ours.from_pretrained("a/b", **hub)) == 400
    assert {name for _, name, _ in requests} >= {"tokenizer.json", "tokenizer_config.json"}
    assert all(path == "a/b" and options == hub for path, _, options in requests)


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
