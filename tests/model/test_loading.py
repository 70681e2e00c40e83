"""Files of models that are something else than their names say, that lie, or that are not there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bertgen import (
    AutoTokenizer,
    BertGenerationTokenizer,
    BertTokenizer,
    CheckpointError,
    ConfigError,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    Generator,
    RobertaTokenizer,
    UnsupportedError,
)
from bertgen.cli import main
from bertgen.config import read_json
from tests.support.bert_checkpoint import make_bert
from tests.support.fast_tokenizers import write_roberta_vocabulary
from tests.support.model_kinds import HALVES, KINDS, TINY
from tests.support.tiny_models import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*is a pickle", "ignore:Detected pickle protocol")

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 437986065\n" % (b"0" * 64)
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>config.json - main</title></head></html>\n"
NAME = "decoder.bert.encoder.layer.1.output.dense.weight"


@pytest.fixture
def saved(tmp_path, tiny_checkpoint) -> Path:
    """A model with its tokenizer."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def as_bin(folder: Path, state) -> Path:
    """The weights as a pickle, in place of those that are there."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def as_shards(folder: Path) -> None:
    EncoderDecoderModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="40KB")


# Something else in their place


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a pointer of git-LFS, the 437986065 bytes of the file itself are not there: `git lfs pull`"),
        (POINTER[:45], "is a pointer of git-LFS, the file itself is not there"),
        (PAGE, "is a web page"),
        (b"", "is empty"),
    ],
)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "spiece.model", "tokenizer_config.json"]
)
def test_what_is_not_the_file_itself_is_said(saved, name, content, message):
    (saved / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} {message}"):
        Generator(saved)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json", "shard"])
def test_pointers_in_place_of_other_weights(saved, name):
    as_shards(saved)
    if name == "shard":
        name = sorted(path.name for path in saved.glob("model-0*"))[1]
    elif name.endswith(".bin"):
        for path in saved.glob("model*"):
            path.unlink()
    (saved / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=f"{name} is a pointer of git-LFS"):
        EncoderDecoderModel.from_pretrained(saved)


def test_pointers_in_place_of_vocabularies(tmp_path):
    (tmp_path / "bert").mkdir()
    make_bert(tmp_path / "bert")
    write_roberta_vocabulary(tmp_path / "roberta")
    for kind, folder, name in (
        (BertTokenizer, "bert", "vocab.txt"),
        (RobertaTokenizer, "roberta", "vocab.json"),
        (RobertaTokenizer, "roberta", "merges.txt"),
    ):
        path = tmp_path / folder / name
        content = path.read_bytes()
        path.write_bytes(POINTER)
        for load in (kind.from_pretrained, AutoTokenizer.from_pretrained):
            with pytest.raises(CheckpointError, match=f"{name} is a pointer of git-LFS"):
                load(tmp_path / folder)
        path.write_bytes(content)
    (tmp_path / "roberta/tokenizer.json").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"tokenizer.json is a pointer of git-LFS"):
        RobertaTokenizer.from_pretrained(tmp_path / "roberta")
    (tmp_path / "own").write_bytes(POINTER)
    for load in (BertGenerationTokenizer, BertTokenizer):
        with pytest.raises(CheckpointError, match="own is a pointer of git-LFS"):
            load(tmp_path / "own")


def test_links_and_directories_in_place_of_files(saved):
    (saved / "model.safetensors").rename(saved / "weights")
    (saved / "model.safetensors").symlink_to(saved / "weights")
    EncoderDecoderModel.from_pretrained(saved)
    (saved / "weights").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is a link to .*weights, which does not exist"):
        EncoderDecoderModel.from_pretrained(saved)
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"model.safetensors is a directory; expected a file"):
        EncoderDecoderModel.from_pretrained(saved)


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_files_that_may_not_be_read(saved):
    (saved / "config.json").chmod(0)
    with pytest.raises(CheckpointError, match=r"config.json cannot be read: Permission denied"):
        EncoderDecoderModel.from_pretrained(saved)


# JSON


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "is not valid JSON"),
        ('{"a":' * 100_000, "is not valid JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ("3", "must hold a JSON object, got int"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "is not valid JSON"),
        ("\ufeff{}", "is not valid JSON"),
    ],
)
def test_json_of_any_depth_and_kind(saved, name, content, message):
    (saved / name).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{name} {message}"):
        Generator(saved)


def test_json_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 33)  # takes no room on the disk
    with pytest.raises(CheckpointError, match=r"config.json has 8589934592 bytes; .* at most"):
        read_json(tmp_path / "config.json")


def test_deep_headers_of_safetensors(saved):
    for header in (b"[" * 100_000, b'{"a":' * 100_000, b"\xff" * 20, b"[]", b'{"a": 3}'):
        (saved / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(CheckpointError, match=r"model.safetensors"):
            EncoderDecoderModel.from_pretrained(saved)


# Weights


FOREIGN = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64]


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", FOREIGN)
def test_a_weight_of_another_dtype_is_an_error(saved, dtype, layout):
    """Once it was left out, and the layer had random weights."""
    state = load_file(saved / "model.safetensors")
    state[NAME] = state[NAME].to(dtype)
    if layout == "bin":
        as_bin(saved, state)
    else:
        save_file(state, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{NAME} holds {dtype}, which is not a dtype of weights"):
        EncoderDecoderModel.from_pretrained(saved)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_of_a_half_under_any_name(kind, tmp_path):
    theirs = {"bert": transformers.BertForPreTraining, "roberta": transformers.RobertaForMaskedLM}.get(
        kind, transformers.BertGenerationDecoder
    )
    theirs(transformers.AutoConfig.for_model(kind, **TINY)).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = next(name for name in state if name.endswith("layer.0.attention.self.query.weight"))
    save_file(state | {name: state[name].to(torch.int8)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for cls in HALVES[kind][1:]:
        with pytest.raises(CheckpointError, match=r"layer.0.attention.self.query.weight holds torch.int8"):
            cls.from_pretrained(tmp_path)


def test_numbers_that_are_no_weights_are_left_out(saved):
    state = load_file(saved / "model.safetensors")
    state["encoder.embeddings.position_ids"] = torch.arange(20)[None]
    state["encoder.embeddings.token_type_ids"] = torch.zeros(1, 20, dtype=torch.int64)
    state["counter"] = torch.tensor(3)
    save_file(state, saved / "model.safetensors")
    EncoderDecoderModel.from_pretrained(saved)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_other_floats_are_weights(saved, dtype):
    state = load_file(saved / "model.safetensors")
    stored = {name: tensor.to(dtype) for name, tensor in state.items()}
    save_file(stored, saved / "model.safetensors")
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "dtype": None}))
    model = EncoderDecoderModel.from_pretrained(saved)
    assert model.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert torch.equal(model.get_parameter(NAME), stored[NAME].to(model.dtype))
    if dtype == torch.float8_e4m3fn:
        save_file({**stored, f"{NAME}_scale_inv": torch.ones(1)}, saved / "model.safetensors")
        with pytest.raises(UnsupportedError, match=f"{NAME} is {dtype} with a scale"):
            EncoderDecoderModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(48, 96, device="meta"),
        torch.zeros(48, 96).to_sparse(),
        torch.zeros(1).expand(1 << 40),
        torch.quantize_per_tensor(torch.zeros(48, 96), 0.1, 0, torch.qint8),
    ],
    ids=["meta", "sparse", "a terabyte of one value", "quantized"],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_in_pickles_that_are_no_weights(saved, tensor):
    as_bin(saved, load_file(saved / "model.safetensors") | {NAME: tensor})
    with pytest.raises(CheckpointError, match=NAME):
        EncoderDecoderModel.from_pretrained(saved)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_cut_anywhere(saved, legacy):
    path = as_bin(saved, load_file(saved / "model.safetensors"))
    if legacy:
        torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for size in (1, 3, 4, 10, 100, 1000, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"pytorch_model.bin"):
            EncoderDecoderModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02.",
        b"\x80\x02}q\x00.",
        b"\x80\x02]q\x00.",
        b"\x80\x02K\x01.",
        b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".",
        b"\x80\x02cbuiltins\nbytearray\nM\x00\x00\x85R.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" * 100_000 + b"." ,
        b"not a pickle at all",
        b"PK\x03\x04 and no archive",
        pickle.dumps({"a": 1}),
        pickle.dumps([torch.zeros(2)]),
    ],
)  # fmt: skip
def test_pickles_of_anything(saved, content):
    as_bin(saved, {}).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin|holds no weight"):
        EncoderDecoderModel.from_pretrained(saved)


def test_a_pickle_with_names_that_are_none(saved):
    as_bin(saved, {3: torch.zeros(2)})
    with pytest.raises(CheckpointError, match="a tensor named 3, which is not a string"):
        EncoderDecoderModel.from_pretrained(saved)


def test_an_archive_that_would_grow(saved):
    """A megabyte that says it is a gigabyte."""
    path = as_bin(saved, {"x": torch.zeros(1 << 20)})
    with zipfile.ZipFile(path) as archive:
        content = {item.filename: archive.read(item) for item in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin has \d+ bytes and claims to hold 4\d+"):
        EncoderDecoderModel.from_pretrained(saved)


# Configurations


def rewrite(folder: Path, half: str, **options) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[half] |= options
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("layers", [2_000_000_000, 3])
def test_layers_without_weights_are_never_made(saved, half, layers):
    rewrite(saved, half, num_hidden_layers=layers)
    with pytest.raises(CheckpointError, match=f"needs {layers} layers, the weights are of 2"):
        EncoderDecoderModel.from_pretrained(saved)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_size", 2_000_000_000, "hidden_size is 2000000000, no weight has a side of more than"),
        ("vocab_size", 2_000_000_000, r"has shape .*needs .*2000000000"),
        ("intermediate_size", 2_000_000_000, r"has shape .*needs .*2000000000"),
        ("max_position_embeddings", 2_000_000_000, r"has shape .*needs .*2000000000"),
        ("num_hidden_layers", 2**31, "must be an integer from 0"),
        ("num_hidden_layers", 1e9, "must be an integer from 0"),
        ("hidden_size", -1, "must be an integer from 1"),
    ],
)
def test_sizes_that_the_weights_do_not_have(saved, name, value, message):
    for half in ("encoder", "decoder"):
        rewrite(saved, half, **{name: value})
    with pytest.raises((CheckpointError, ValueError), match=message):
        EncoderDecoderModel.from_pretrained(saved)


@pytest.mark.parametrize("value", [["bert"], {"a": 1}, 3, None])
def test_a_kind_that_is_no_text(saved, value):
    rewrite(saved, "decoder", model_type=value)
    with pytest.raises(UnsupportedError, match="decoder is of kind"):
        Generator(saved)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "model_type": value}))
    with pytest.raises(UnsupportedError, match="is a checkpoint of kind"):
        EncoderDecoderModel.from_pretrained(saved)


def test_padding_that_has_no_row(saved):
    rewrite(saved, "encoder", pad_token_id=10_000)
    with pytest.raises(ConfigError, match=r"pad_token_id 10000 has no row: vocab_size is \d+"):
        EncoderDecoderModel.from_pretrained(saved)


def test_halves_without_layers_generate(saved):
    for half in ("encoder", "decoder"):
        rewrite(saved, half, num_hidden_layers=0)
    model = EncoderDecoderModel.from_pretrained(saved)
    theirs = transformers.EncoderDecoderModel.from_pretrained(saved)
    ids = torch.tensor([[5, 6]])
    assert torch.equal(model.generate(ids, max_new_tokens=5), theirs.generate(ids, max_new_tokens=5))


def test_what_is_missing_is_not_made_larger_than_all_there_is(tmp_path):
    make_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "type_vocab_size": 2_000_000_000}))
    state = load_file(tmp_path / "model.safetensors")
    name = next(name for name in state if "token_type_embeddings" in name)
    del state[name]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"token_type_embeddings.weight is missing.*\(2000000000, 32\): more val"):
        HALVES["bert"][1].from_pretrained(tmp_path)


# Names


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Requested URLs; no server answers."""
    urls: list[str] = []

    def nobody(url: str, **options):
        urls.append(url)
        raise ConnectionError("Name or service not known")

    def never(*_, **__):
        raise AssertionError("a download of what nobody answers for")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", nobody)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", never)
    return urls


@pytest.mark.parametrize(
    "name",
    ["./mode", "../mode", "/nowhere/mode", "~/nowhere-mode", "a/b/c", "mode/", "here/mode", "C:/mode", ".\\mode"],
)
@pytest.mark.parametrize("load", [Generator, EncoderDecoderModel.from_pretrained, AutoTokenizer.from_pretrained])
def test_a_path_that_does_not_exist_is_never_asked_for(name, load, asked, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory: "):
        load(name)
    assert not asked


def test_directories_of_similar_names_are_proposed(saved, monkeypatch, asked):
    monkeypatch.chdir(saved.parent)
    with pytest.raises(CheckpointError, match=r"no such directory: ./mdoel; did you mean model\?"):
        Generator("./mdoel")
    with pytest.raises(CheckpointError, match=rf"; did you mean {saved}\?"):
        Generator(saved.parent / "mode")
    with pytest.raises(CheckpointError, match=rf"no such directory.*; {saved.parent} has no mode"):
        Generator(saved.parent / "mode" / "best")
    with pytest.raises(CheckpointError, match=r"no directory 'dmeo' here \(did you mean demo\?\), and"):
        Generator("dmeo")
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["mistyped", "owner/mistyped"])
def test_a_name_is_asked_for_once(name, asked, capsys):
    """Six times with pauses, file by file, it took half a minute."""
    begun = time.monotonic()
    with pytest.raises(
        CheckpointError, match=f"no directory '{name}' here, and .* could not be fetched from the hub: N"
    ):
        Generator(name)
    assert len(asked) == 1
    assert main(["run", "--model", name, "text"]) == 3
    assert f"no directory '{name}' here" in capsys.readouterr().err
    assert len(asked) == 2 and time.monotonic() - begun < 20


def test_a_name_without_a_network_by_choice(tmp_path):
    with pytest.raises(CheckpointError, match="no directory 'mistyped' here, and .*mistyped"):
        Generator("mistyped", cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match="no directory 'mistyped' here, and .* not found in the local cache"):
        Generator("mistyped", cache_dir=tmp_path, local_files_only=True)


def test_a_repository_that_is_not_there(monkeypatch):
    import httpx2

    def nothing(url, **options):
        response = httpx2.Response(404, request=httpx2.Request("HEAD", url))
        raise huggingface_hub.errors.RepositoryNotFoundError("Repository Not Found", response=response)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", nothing)
    with pytest.raises(CheckpointError, match="no directory 'demoo' here.*, and the hub has no repository of"):
        EncoderDecoderModel.from_pretrained("demoo")


def test_a_file_in_place_of_its_directory(saved):
    with pytest.raises(CheckpointError, match=rf"is a file; expected the directory of a model, here {saved}, or"):
        EncoderDecoderModel.from_pretrained(saved / "model.safetensors")


def test_the_demo_with_a_stroke(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert EncoderDecoderModel.from_pretrained("demo/").config.decoder.vocab_size > 0


def test_files_in_the_cache_need_no_network(asked, tmp_path, monkeypatch):
    snapshot = tmp_path / "cache/models--owner--name/snapshots/abc"
    tiny().save_pretrained(snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("abc")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name, **_: str(snapshot / name))
    EncoderDecoderModel.from_pretrained("owner/name", cache_dir=tmp_path / "cache")
    assert len(asked) <= 3  # the files that it does not have


def test_two_names_of_one_weight_must_agree(saved):
    """`gamma` is an older name of a normalization's weight."""
    state = load_file(saved / "model.safetensors")
    name = next(name for name in state if name.endswith("LayerNorm.weight"))
    older = name.replace("weight", "gamma")
    save_file({**state, older: state[name].clone()}, saved / "model.safetensors")
    EncoderDecoderModel.from_pretrained(saved)
    save_file({**state, older: state[name] * 2}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{older} and {name}|{name} and {older}"):
        EncoderDecoderModel.from_pretrained(saved)


def test_a_weight_in_two_shards(saved):
    as_shards(saved)
    first, second, *_ = sorted(saved.glob("model-*.safetensors"))
    (name, tensor), *_ = load_file(first).items()
    save_file({**load_file(second), name: tensor * 2}, second)
    with pytest.raises(CheckpointError, match=f"{second.name} has '{name}', which another shard has as well"):
        EncoderDecoderModel.from_pretrained(saved)


def test_values_that_another_dtype_does_not_have(saved):
    state = load_file(saved / "model.safetensors")
    name = next(name for name in state if name.endswith("query.weight"))
    save_file({**state, name: state[name] * 1e9}, saved / "model.safetensors")
    EncoderDecoderModel.from_pretrained(saved)
    with pytest.raises(CheckpointError, match=f"{name} holds values that are not finite in float16"):
        EncoderDecoderModel.from_pretrained(saved, dtype=torch.float16)


def test_a_dtype_in_a_file_that_is_no_text(saved):
    values = read_json(saved / "config.json")
    (saved / "config.json").write_text(json.dumps({**values, "dtype": ["float16"]}))
    assert EncoderDecoderModel.from_pretrained(saved).dtype is torch.float32


@pytest.mark.parametrize("place", ["https://huggingface.co/owner/name", "s3://bucket/model", "file:///model"])
def test_a_url_is_no_place_of_a_model(place, asked):
    with pytest.raises(CheckpointError, match="is a URL; expected the directory of a model or a hub id"):
        EncoderDecoderModel.from_pretrained(place)
    assert not asked


@pytest.mark.parametrize("load", [EncoderDecoderModel, EncoderDecoderConfig, AutoTokenizer, GenerationConfig])
def test_a_name_that_no_file_can_have(load, asked):
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        load.from_pretrained("x" * 5000)
    assert not asked


def test_a_file_in_place_of_a_model_is_no_vocabulary_either(tmp_path, recwarn):
    (tmp_path / "vocab.txt").write_text(
        "".join(f"{word}\n" for word in ("[PAD] [UNK] [CLS] [SEP] Where is Café").split())
    )
    with pytest.raises(CheckpointError, match="vocab.txt is a file; expected the directory of a model"):
        Generator(tmp_path / "vocab.txt")
    assert not recwarn.list
