"""Loading and saving: every file layout, to and from transformers, and files that must raise an error."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bertgen import (
    BackendError,
    BertGenerationConfig,
    BertGenerationDecoder,
    BertGenerationEncoder,
    CheckpointError,
    ConfigError,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
)
from bertgen.checkpoint import parse_size
from tests.support.reference_models import make_model_pair
from tests.support.tiny_models import TINY, distance, tiny

LAYOUTS = {
    "safetensors": {},
    "sharded safetensors": dict(max_shard_size="20KB"),
    "bin": dict(safe_serialization=False),
    "sharded bin": dict(safe_serialization=False, max_shard_size=20_000),
}
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
MASK = (IDS != 0).long()
LABELS = torch.tensor([[4, 5, 6], [7, 8, 1]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK, labels=LABELS).logits


@pytest.fixture
def saved(tmp_path) -> Path:
    tiny().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.filterwarnings("ignore:.*is a pickle")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_we_save_loads_in_transformers_and_here(tmp_path, layout):
    model = make_model_pair(5).model
    model.save_pretrained(tmp_path, **LAYOUTS[layout])
    assert distance(logits(EncoderDecoderModel.from_pretrained(tmp_path)), logits(model)) == 0
    if "bin" not in layout:  # transformers 5 writes and prefers safetensors only
        assert distance(logits(transformers.EncoderDecoderModel.from_pretrained(tmp_path)), logits(model)) <= 2e-5
    if "sharded" in layout:
        assert len([p for p in tmp_path.iterdir() if "-of-" in p.name]) > 2


@pytest.mark.filterwarnings("ignore:.*is a pickle")
@pytest.mark.parametrize("layout", ["safetensors", "sharded safetensors", "bin", "gamma and beta"])
def test_what_transformers_saves_loads_here(tmp_path, layout):
    oracle = make_model_pair(7).oracle
    oracle.save_pretrained(tmp_path, **({"max_shard_size": "20KB"} if "sharded" in layout else {}))
    if layout in ("bin", "gamma and beta"):
        state = oracle.state_dict()
        state["encoder.embeddings.position_ids"] = torch.arange(24)[None]  # a buffer of older versions
        if layout == "gamma and beta":
            state = {_legacy(name): tensor for name, tensor in state.items()}
        (tmp_path / "model.safetensors").unlink()
        torch.save(state, tmp_path / "pytorch_model.bin")
    assert distance(logits(EncoderDecoderModel.from_pretrained(tmp_path)), logits(oracle)) <= 2e-5


def _legacy(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def test_configurations_survive_a_round_trip_through_transformers(tmp_path, saved):
    transformers.EncoderDecoderModel.from_pretrained(saved).save_pretrained(tmp_path / "theirs")
    ours, theirs = (EncoderDecoderConfig.from_pretrained(p) for p in (saved, tmp_path / "theirs"))
    assert ours == theirs
    assert json.loads((saved / "config.json").read_text())["architectures"] == ["EncoderDecoderModel"]


def test_halves_load_alone_and_from_each_other(tmp_path):
    model = tiny().eval()
    model.encoder.save_pretrained(tmp_path / "encoder")
    model.decoder.save_pretrained(tmp_path / "decoder")
    encoder = BertGenerationEncoder.from_pretrained(tmp_path / "encoder")
    assert torch.equal(encoder(IDS).last_hidden_state, model.encoder(IDS).last_hidden_state)
    theirs = transformers.BertGenerationDecoder.from_pretrained(tmp_path / "decoder")
    states = encoder(IDS).last_hidden_state
    with torch.no_grad():
        decoder = BertGenerationDecoder.from_pretrained(tmp_path / "decoder")
        a, b = (m(LABELS, encoder_hidden_states=states).logits for m in (decoder, theirs))
        assert distance(a, b) <= 2e-5
        # A decoder out of an encoder's checkpoint: cross-attention and head are new, the rest is there.
        decoder = BertGenerationDecoder.from_pretrained(tmp_path / "encoder", is_decoder=True, add_cross_attention=True)
        assert torch.equal(decoder.bert.embeddings.word_embeddings.weight, encoder.embeddings.word_embeddings.weight)
        assert decoder.bert.encoder.layer[0].crossattention.self.query.weight.std() > 0.01
        assert not decoder.lm_head.bias.any() and decoder(LABELS).logits.isfinite().all()
    body = BertGenerationEncoder.from_pretrained(tmp_path / "decoder")
    assert torch.equal(
        body.encoder.layer[1].output.dense.weight, model.decoder.bert.encoder.layer[1].output.dense.weight
    )


@pytest.mark.parametrize("written", ["both", "decoder", "encoder"])
def test_tied_checkpoints_load_from_either_half_or_both(tmp_path, written, caplog):
    model = tiny(tie_encoder_decoder=True).eval()
    model.tie_weights()
    model.save_pretrained(tmp_path, deduplicate=written == "decoder")
    file = tmp_path / "model.safetensors"
    if written == "encoder":  # the other half, without the record of what was left out
        state = load_file(file)
        shared = {
            n for n in state if n.startswith("decoder.bert.") and "encoder." + n.removeprefix("decoder.bert.") in state
        }
        save_file({n: t for n, t in state.items() if n not in shared}, file)
    if written == "both":
        assert distance(logits(transformers.EncoderDecoderModel.from_pretrained(tmp_path)), logits(model)) <= 2e-5
    loaded = EncoderDecoderModel.from_pretrained(tmp_path)
    assert distance(logits(loaded), logits(model)) == 0
    assert loaded.num_parameters() == model.num_parameters()
    assert ("transformers 5 cannot load" in caplog.text) == (written == "decoder")
    assert "missing" not in caplog.text


def test_deduplicated_files_are_half_the_size(tmp_path):
    model = tiny(tie_encoder_decoder=True)
    model.tie_weights()
    sizes = []
    for deduplicate in (False, True):
        model.save_pretrained(tmp_path, deduplicate=deduplicate)
        sizes.append((tmp_path / "model.safetensors").stat().st_size)
    shared = sum(p.numel() for p in model.encoder.parameters()) * 4
    assert abs(sizes[0] - sizes[1] - shared) < 8000


def test_missing_and_unexpected_weights_are_named(saved, caplog):
    state = load_file(saved / "model.safetensors")
    name = "decoder.bert.encoder.layer.1.output.dense.weight"
    del state[name]
    state["encoder.pooler.dense.weight"] = torch.zeros(2)
    save_file(state, saved / "model.safetensors")
    model = EncoderDecoderModel.from_pretrained(saved)
    assert f"missing, initialised at random: {name}\n" in caplog.text
    assert "not used: encoder.pooler.dense.weight\n" in caplog.text
    weight = dict(model.named_parameters())[name]
    assert weight.isfinite().all() and 0.01 < weight.std() < 0.03
    assert torch.equal(model.decoder.bert.encoder.layer[1].output.dense.bias, state[name[:-6] + "bias"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_of_loading_and_saving(saved, tmp_path, dtype):
    model = EncoderDecoderModel.from_pretrained(saved, dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    model.save_pretrained(tmp_path / "again")
    assert {t.dtype for t in load_file(tmp_path / "again/model.safetensors").values()} == {model.dtype}
    assert EncoderDecoderModel.from_pretrained(tmp_path / "again", dtype="auto").dtype == model.dtype
    assert EncoderDecoderModel.from_pretrained(tmp_path / "again", dtype=torch.float32).dtype == torch.float32


def test_half_the_bytes_in_the_file_and_the_same_dtype_after_loading(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path, stored_dtype="float16")
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    loaded = EncoderDecoderModel.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    for a, b in zip(loaded.parameters(), model.parameters()):
        assert torch.equal(a, b.half().float())


def test_generation_config_goes_along(saved):
    model = EncoderDecoderModel.from_pretrained(saved)
    assert model.generation_config.decoder_start_token_id == 2
    model.generation_config = GenerationConfig(num_beams=3, eos_token_id=1, pad_token_id=0, bos_token_id=2)
    model.save_pretrained(saved)
    assert EncoderDecoderModel.from_pretrained(saved).generation_config == model.generation_config
    assert transformers.GenerationConfig.from_pretrained(saved).num_beams == 3


def test_hub_ids_are_found_in_the_cache(saved, tmp_path):
    """The layout of huggingface_hub's cache, filled by hand: no network."""
    snapshot = tmp_path / "cache/models--owner--name/snapshots/abc"
    shutil.copytree(saved, snapshot)
    refs = tmp_path / "cache/models--owner--name/refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    model = EncoderDecoderModel.from_pretrained("owner/name", cache_dir=tmp_path / "cache", local_files_only=True)
    assert distance(logits(model), logits(EncoderDecoderModel.from_pretrained(saved))) == 0
    with pytest.raises(CheckpointError, match="owner/other"):
        EncoderDecoderModel.from_pretrained("owner/other", cache_dir=tmp_path / "cache", local_files_only=True)
    with pytest.raises(CheckpointError, match="owner/name"):
        EncoderDecoderModel.from_pretrained(
            "owner/name", revision="v2", cache_dir=tmp_path / "cache", local_files_only=True
        )


def test_saving_leaves_other_files_and_removes_old_weights(saved):
    (saved / "README.md").write_text("mine")
    tiny().save_pretrained(saved, max_shard_size="20KB")
    names = {p.name for p in saved.iterdir()}
    assert "README.md" in names and "model.safetensors" not in names and "model.safetensors.index.json" in names
    tiny().save_pretrained(saved)
    assert not [n for n in os.listdir(saved) if "-of-" in n or "index" in n]


def test_saved_files_have_the_modes_of_other_files(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    tiny().save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "other").stat().st_mode
    modes = {p.stat().st_mode for p in (tmp_path / "model").iterdir()}
    assert modes == {(tmp_path / "other/file").stat().st_mode}


def test_a_save_that_fails_leaves_the_directory_as_it_was(saved, monkeypatch):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    model = tiny(tie_encoder_decoder=False)
    monkeypatch.setattr("bertgen.checkpoint.save_file", _disk_full)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def _disk_full(*_, **__):
    raise OSError("disk full")


def _safetensors(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


ONE = b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HOSTILE = {
    "empty": b"",
    "header longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "header of 2^63": (2**63).to_bytes(8, "little"),
    "bad json": _safetensors(b"{nope"),
    "offset past the end": _safetensors(b"{" + ONE + b"}"),
    "hole": _safetensors(b"{" + ONE.replace(b"[0,4]", b"[4,8]") + b"}", bytes(8)),
    "negative shape": _safetensors(b"{" + ONE.replace(b"[1]", b"[-1]") + b"}", bytes(4)),
    "name twice": _safetensors(b"{" + ONE + b"," + ONE + b"}", bytes(4)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_safetensors_are_refused(saved, case):
    (saved / "model.safetensors").write_bytes(HOSTILE[case])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        EncoderDecoderModel.from_pretrained(saved)


@pytest.mark.parametrize("size", [0.1, 0.5, 0.99])
def test_truncated_weights_are_refused(saved, size):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * size)])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        EncoderDecoderModel.from_pretrained(saved)


class _Canary:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:.*is a pickle")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_runs_no_code(saved, tmp_path, zipped):
    (saved / "model.safetensors").unlink()
    payload = {"encoder.embeddings.word_embeddings.weight": _Canary(tmp_path / "ran")}
    if zipped:
        torch.save(payload, saved / "pytorch_model.bin")
    else:
        (saved / "pytorch_model.bin").write_bytes(pickle.dumps(payload))
    with pytest.raises(CheckpointError, match="pytorch_model.bin"):
        EncoderDecoderModel.from_pretrained(saved)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/passwd.safetensors", "a/../../x.safetensors", "C:\\x.safetensors", "x\0.safetensors",
     "..", "", "model.py", ".safetensors", 7, None],
)  # fmt: skip
def test_shard_names_that_leave_the_directory_are_refused_before_any_open(saved, shard):
    state = load_file(saved / "model.safetensors")
    save_file(state, saved.parent / "model.safetensors")  # the file that "../" would reach
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(state, shard)}))
    with pytest.raises(CheckpointError, match="plain file name"):
        EncoderDecoderModel.from_pretrained(saved)


def test_sharded_checkpoints_with_gaps_are_refused(tmp_path):
    tiny().save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(p for p in tmp_path.iterdir() if "-of-" in p.name)[1]
    kept = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        EncoderDecoderModel.from_pretrained(tmp_path)
    shard.write_bytes(kept)
    state = load_file(shard)
    state.popitem()
    save_file(state, shard)
    with pytest.raises(CheckpointError, match="which no shard has"):
        EncoderDecoderModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(saved, value):
    state = load_file(saved / "model.safetensors")
    state["decoder.lm_head.bias"][3] = value
    save_file(state, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder\.lm_head\.bias"):
        EncoderDecoderModel.from_pretrained(saved)


def test_weights_that_do_not_fit_the_configuration_are_named(saved):
    with pytest.raises(CheckpointError, match=r"embeddings\.word_embeddings.*\(40, 32\).*\(50, 32\)"):
        encoder = dict(TINY, vocab_size=50)
        decoder = dict(TINY, is_decoder=True, add_cross_attention=True)
        EncoderDecoderModel.from_pretrained(saved, config=EncoderDecoderConfig(encoder=encoder, decoder=decoder))
    with pytest.raises(CheckpointError, match="no weight of a BertGenerationEncoder"):
        (saved.parent / "other").mkdir()
        save_file({"x": torch.zeros(2)}, saved.parent / "other/model.safetensors")
        BertGenerationEncoder.from_pretrained(saved.parent / "other", config=BertGenerationConfig(**TINY))


def test_missing_files_and_bad_options_are_named(saved, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        EncoderDecoderModel.from_pretrained(tmp_path / "nowhere/at/all")
    with pytest.raises(CheckpointError, match="is a file"):
        EncoderDecoderModel.from_pretrained(saved / "config.json")
    with pytest.raises(ConfigError, match="int8"):
        EncoderDecoderModel.from_pretrained(saved, dtype="int8")
    with pytest.raises(ConfigError, match="tie_encoder_decoderr"):
        EncoderDecoderModel.from_pretrained(saved, tie_encoder_decoderr=True)
    with pytest.raises(BackendError, match="cuda:77"):
        EncoderDecoderModel.from_pretrained(saved, device=77)
    (saved / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json must hold a JSON object"):
        EncoderDecoderModel.from_pretrained(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        EncoderDecoderModel.from_pretrained(saved)
    (saved / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json; it holds: generation_config"):
        EncoderDecoderModel.from_pretrained(saved)
    tiny().config.save_pretrained(_made(tmp_path / "empty"))
    with pytest.raises(CheckpointError, match="has no weights: looked for model.safetensors"):
        EncoderDecoderModel.from_pretrained(tmp_path / "empty")


@pytest.mark.parametrize(
    "size, expected", [(5, 5), ("200KB", 200_000), ("5GB", 5 * 10**9), ("1.5 MiB", 3 * 2**19), ("2gib", 2**31)]
)
def test_sizes(size, expected):
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", [0, -1, "0GB", "GB", "5", "5XB", None])
def test_sizes_without_meaning_are_refused(size):
    with pytest.raises(ConfigError, match="max_shard_size"):
        parse_size(size)


@pytest.mark.long
def test_mutated_safetensors_raise_or_load_within_memory(saved):
    """2,000 random mutations in one child process with 4 GiB of address space and a limit on its time."""
    script = Path(__file__).with_name("support") / "mutate_safetensors.py"
    result = subprocess.run([sys.executable, script, saved, "2000"], capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "2000 tried" in result.stdout
