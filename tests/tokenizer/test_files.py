"""Files of tokenizers: options of the download, unknown keys, paths in a file, older files."""

import json

import pytest

from bertgen.errors import CheckpointError
from bertgen.tokenizer import AutoTokenizer, BertGenerationTokenizer, files


def test_hub_options_reach_the_download(vocab, monkeypatch):
    requests = []

    def resolve(path_or_id, filename, hub, *, required=True):
        requests.append((path_or_id, filename, required, hub))
        return vocab if filename == "spiece.model" else None

    monkeypatch.setattr(files, "resolve_file", resolve)
    hub = dict(revision="main", cache_dir="c", token="t", local_files_only=True)
    assert len(AutoTokenizer.from_pretrained("a/b", **hub)) == 301
    assert {filename for _, filename, _, _ in requests} >= {"spiece.model", "tokenizer_config.json", "config.json"}
    assert all(options == hub for _, _, _, options in requests)


def test_unknown_keys_of_a_file_are_named(vocab, tmp_path, ours):
    ours.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"backend": "x", "paddingside": "left"}))
    with pytest.warns(UserWarning, match="unknown keys paddingside"):
        BertGenerationTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"image_token": "<image>"}))
    with pytest.raises(CheckpointError, match="image_token"):
        BertGenerationTokenizer.from_pretrained(tmp_path)


def test_a_path_in_a_file_is_never_opened(vocab, tmp_path, ours):
    ours.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"vocab_file": "/etc/hostname"}))
    assert BertGenerationTokenizer.from_pretrained(tmp_path).get_vocab() == ours.get_vocab()
    config["sp_model_kwargs"] = {"model_file": "/etc/hostname"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="model_file"):
        BertGenerationTokenizer.from_pretrained(tmp_path)


def test_additional_special_tokens_of_an_old_map(kind, tmp_path):
    """transformers 5 decodes them although special tokens are to be skipped."""
    kind.ours.from_pretrained(kind.folder).save_vocabulary(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["[E]"]}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[E]": 400}))
    ours, theirs = kind.ours.from_pretrained(tmp_path), kind.theirs.from_pretrained(tmp_path)
    ids = theirs.encode("a [E]", add_special_tokens=False)
    assert ours.encode("a [E]", add_special_tokens=False) == ids and ids[-1] == 400
    assert ours.extra_special_tokens == ["[E]"] and "E" not in ours.decode(ids, skip_special_tokens=True)
