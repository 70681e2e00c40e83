"""Where the files of a model are found: directories, names that are paths or hub ids, the cache of the hub."""

from __future__ import annotations

import os

import pytest

from bertgen import CheckpointError, ConfigError
from bertgen.hub import (
    DEMO_MODEL,
    HUB_OPTIONS,
    HubOptions,
    as_path,
    check_file,
    local_directory,
    resolve_file,
    split_hub_options,
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("value", [None, "", 5, b"bytes", "nul\0", ["list"]])
def test_what_is_not_a_path_is_named_with_its_argument(value):
    with pytest.raises(ConfigError, match="directory must be a path or a hub id, got"):
        as_path(value, "directory")


def test_a_path_begins_in_the_home_directory(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert as_path("~/model") == here / "model"
    with pytest.raises(ConfigError, match="no such home directory"):
        as_path("~nobody-of-this-name")


def test_demo_is_the_model_of_the_package_unless_a_directory_has_that_name(here):
    assert local_directory("demo") == DEMO_MODEL and (DEMO_MODEL / "config.json").is_file()
    (here / "demo").mkdir()
    assert local_directory("demo").resolve() == here / "demo"


@pytest.mark.parametrize("name", ["bert-base", "google/roberta2roberta_L-24_bbc", "a.b_c/d-1"])
def test_names_of_repositories_are_hub_ids(here, name):
    assert local_directory(name) is None


@pytest.mark.parametrize("name", ["./model", "model/", "a/b/c", "/no/such", "C:/model", "folder\\model", "~/none"])
def test_names_that_can_only_be_paths_are_not_looked_up_on_the_hub(here, name):
    with pytest.raises(CheckpointError, match="no such directory"):
        local_directory(name)


def test_a_name_below_an_existing_directory_is_a_path(here):
    (here / "models").mkdir()
    with pytest.raises(CheckpointError, match="no such directory: models/mine"):
        local_directory("models/mine")


@pytest.mark.parametrize("name, message", [("https://a/b", "is a URL"), ("a b", "is not a hub id"), ("-a", "is not a")])
def test_other_names_are_refused(here, name, message):
    with pytest.raises(CheckpointError, match=message):
        local_directory(name)


def test_similar_names_and_missing_parents_are_hints(here):
    (here / "my-model").mkdir()
    with pytest.raises(CheckpointError, match="did you mean my-model"):
        local_directory("./my-mdoel")
    with pytest.raises(CheckpointError, match=f"{here} has no wrong$"):
        local_directory(here / "wrong/my-model")


def test_a_file_is_not_a_directory_of_a_model(here):
    (here / "weights.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is a file; expected the directory of a model"):
        local_directory("./weights.bin")


def test_a_file_of_a_directory_is_found_or_named(here):
    (here / "model/sub").mkdir(parents=True)
    (here / "model/config.json").write_text("{}")
    (here / "model/sub/config.json").write_text("{}")
    assert resolve_file("./model", "config.json").resolve() == here / "model/config.json"
    result = resolve_file("./model", "config.json", {"subfolder": "sub"})
    assert result.resolve() == here / "model/sub/config.json"
    assert resolve_file("./model", "other.json", required=False) is None
    with pytest.raises(CheckpointError, match=r"has no other\.json; it holds: config.json, sub"):
        resolve_file("./model", "other.json")


def test_the_best_model_of_a_training_is_a_hint(here):
    (here / "run/best").mkdir(parents=True)
    (here / "run/best/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="best has one, the best checkpoint of a training run"):
        resolve_file("./run", "config.json")


def test_files_of_the_cache_are_found_without_a_network(here):
    snapshot = here / "cache/models--owner--name/snapshots/abc"
    snapshot.mkdir(parents=True)
    (here / "cache/models--owner--name/refs").mkdir()
    (here / "cache/models--owner--name/refs/main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    hub = dict(cache_dir=here / "cache", local_files_only=True)
    assert resolve_file("owner/name", "config.json", hub) == snapshot / "config.json"
    assert resolve_file("owner/name", "other.json", hub, required=False) is None
    with pytest.raises(CheckpointError, match=r"owner/name's other\.json was not found in the local cache"):
        resolve_file("owner/name", "other.json", hub)
    with pytest.raises(CheckpointError, match="no directory 'owner/another' here"):
        resolve_file("owner/another", "config.json", hub, required=False)


def test_hub_options_are_separated_from_the_others():
    options = dict(revision="v1", dtype="float32", cache_dir=None, use_auth_token="t", low_cpu_mem_usage=True)
    others, hub = split_hub_options(options)
    assert others == {"dtype": "float32"} and hub == {"revision": "v1", "token": "t"}
    assert set(hub) <= set(HUB_OPTIONS) and len(HUB_OPTIONS) == 6


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("revision", 5, "a str"),
        ("cache_dir", 5, "a path"),
        ("token", 5, "a str, True or False"),
        ("local_files_only", "no", "True or False"),
    ],
)
def test_a_hub_option_of_another_type_is_named(name, value, expected):
    with pytest.raises(ConfigError, match=f"^{name} must be {expected}, got {value!r}$"):
        HubOptions(**{name: value})


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 12\n", "pointer of git-LFS, the 12 bytes of the file"),
        (b" <!DOCTYPE html><html>", "is a web page"),
    ],
)
def test_files_without_the_content_are_named(here, content, message):
    (here / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        check_file(here / "file")


def test_directories_and_broken_links_are_no_files(here):
    with pytest.raises(CheckpointError, match="is a directory; expected a file"):
        check_file(here)
    os.symlink(here / "gone", here / "link")
    with pytest.raises(CheckpointError, match="is a link to .*gone, which does not exist"):
        check_file(here / "link")
    (here / "file").write_text("{}")
    assert check_file(here / "file") == here / "file"
