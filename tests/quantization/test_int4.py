"""4-bit weights: the definition, bit for bit; quantized models are saved and loaded; what is rejected."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bertgen import (
    BackendError,
    BertGenerationConfig,
    BertGenerationDecoder,
    BertGenerationEncoder,
    CheckpointError,
    ConfigError,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    InputError,
    Int4Config,
    UnsupportedError,
)
from bertgen.cli import main
from bertgen.layers.linear import Int4Linear
from bertgen.quantization.int4 import CODEBOOKS, codebook, dequantize, quantize, signal_to_noise
from bertgen.trainer.initialization import make_model
from bertgen.trainer.options import TrainingConfig
from tests.support.bitsandbytes_checkpoints import CODES, in_blocks
from tests.support.int4_models import HALF, QUERY, each_kind, edit_tensors, logits, make_float_model

pytestmark = pytest.mark.filterwarnings("ignore:pytorch_model.bin is a pickle")


# The definition


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@each_kind
def test_values_equal_the_definition_bit_for_bit(config, dtype):
    torch.manual_seed(1)
    packed, scale, zero = quantize((torch.randn(3, 128) * 0.02).to(dtype), config)
    got = dequantize(packed, scale, zero, config)
    book = codebook(config.format, packed.device)
    book = None if book is None else book.to(dtype).double()
    for n in range(3):
        for k in range(128):
            byte, group = int(packed[n, k // 2]), k // config.group_size
            nibble = byte >> 4 if k % 2 else byte & 15
            level = book[nibble] if book is not None else nibble - (8 if zero is None else int(zero[n, group]))
            assert got[n, k] == torch.tensor(float(level) * float(scale[n, group]), dtype=torch.float64).to(dtype)


@each_kind
def test_every_weight_is_rounded_to_the_nearest_level_of_its_scale(config):
    torch.manual_seed(2)
    weight = torch.randn(8, 128)
    weight[0] = 0.0
    packed, scale, zero = quantize(weight, config)
    if config.double_quant:
        scale = quantize(weight, Int4Config("nf4", scales="absmax"))[1]  # levels are chosen before scales are rounded
    error = (dequantize(packed, scale, zero, config) - weight).abs()
    levels = codebook(config.format, weight.device)
    groups = scale.repeat_interleave(config.group_size, 1)[..., None]
    if levels is None:
        levels = torch.arange(16.0) - (8 if zero is None else zero.repeat_interleave(config.group_size, 1)[..., None])
    least = (levels * groups - weight[..., None]).abs().amin(-1)
    assert not bool((error > least * 1.0001 + 1e-6).any()) and not error[0].any()


@pytest.mark.parametrize("config", [Int4Config(), Int4Config(symmetric=False), Int4Config("nf4"), Int4Config("fp4")])
def test_searched_scales_are_never_worse(config):
    torch.manual_seed(3)
    weight = torch.randn(16, 256)
    simple = Int4Config(config.format, symmetric=config.symmetric, scales="absmax")
    errors = [(dequantize(*quantize(weight, c), c) - weight).view(16, -1, 64).square().sum(2) for c in (config, simple)]
    assert bool((errors[0] <= errors[1] * (1 + 1e-5)).all()) and errors[0].sum() < errors[1].sum()
    assert signal_to_noise(weight, config) > signal_to_noise(weight, simple) > 17


def test_the_size_of_chunks_changes_no_result(monkeypatch):
    weight = torch.randn(12, 192)
    whole = quantize(weight, Int4Config(symmetric=False))
    monkeypatch.setattr("bertgen.quantization.int4._CHUNK", 5 * 64)
    assert all(torch.equal(a, b) for a, b in zip(whole, quantize(weight, Int4Config(symmetric=False))))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codebooks_and_blocks_that_cross_rows(kind):
    """Rows of 96 weights in blocks of 64."""
    assert torch.equal(torch.tensor(CODEBOOKS[kind]), CODES[kind] + 0.0)
    weight = torch.randn(4, 96)
    config = Int4Config(kind, scales="absmax")
    packed, scale, _ = quantize(weight, config)
    assert scale.shape == (4, 3) and torch.equal(dequantize(packed, scale, None, config), in_blocks(weight, kind)[1])


# Models


@each_kind
def test_models_are_quantized_saved_and_loaded_bit_for_bit(config, saved, tmp_path):
    model = EncoderDecoderModel.from_pretrained(saved, quantization_config=config)
    plain = EncoderDecoderModel.from_pretrained(saved)
    assert model.quantization == config and plain.quantization is None
    assert model.num_parameters() == plain.num_parameters() and model.dtype == torch.float32
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            ours = model.get_submodule(name)
            assert all(
                a is b is None or torch.equal(a, b)
                for a, b in zip((ours.packed, ours.scale, ours.zero), quantize(module.weight, config))
            )
    model.save_pretrained(tmp_path / "four", safe_serialization=config.symmetric)
    again = EncoderDecoderModel.from_pretrained(tmp_path / "four")
    assert again.quantization == config and torch.equal(logits(again), logits(model))
    state = model.state_dict()
    assert all(torch.equal(t, state[name]) and t.dtype == state[name].dtype for name, t in again.state_dict().items())
    expected = logits(model)
    assert again.dequantize() is again and again.quantization is None
    assert float((logits(again) - expected).abs().max()) <= 1e-5
    with torch.inference_mode():
        assert float((logits(model) - expected).abs().max()) <= 1e-5  # query, key and value are fused here
    again.save_pretrained(tmp_path / "back")
    assert "quantization_config" not in json.loads((tmp_path / "back/config.json").read_text())
    assert EncoderDecoderModel.from_pretrained(tmp_path / "back").quantization is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes(saved, tmp_path, dtype):
    model = EncoderDecoderModel.from_pretrained(saved, dtype=dtype, quantization_config=Int4Config())
    assert model.dtype == dtype and logits(model).dtype == dtype
    model.save_pretrained(tmp_path / "four")
    again = EncoderDecoderModel.from_pretrained(tmp_path / "four")
    assert again.dtype == dtype and torch.equal(logits(again), logits(model))
    wide = EncoderDecoderModel.from_pretrained(tmp_path / "four", dtype="float32")
    assert float((logits(wide) - logits(model)).abs().max()) <= 0.2
    computed = EncoderDecoderModel.from_pretrained(
        saved, quantization_config=Int4Config(compute_dtype=str(dtype).removeprefix("torch."))
    )
    assert logits(computed).dtype == torch.float32


def test_halves_alone(tmp_path):
    torch.manual_seed(0)
    decoder = BertGenerationDecoder(BertGenerationConfig(**HALF, is_decoder=True))
    decoder.save_pretrained(tmp_path / "decoder")
    for cls in (BertGenerationDecoder, BertGenerationEncoder):
        model = cls.from_pretrained(tmp_path / "decoder", quantization_config=Int4Config())
        assert sum(isinstance(m, Int4Linear) for m in model.modules()) == 12
        model.save_pretrained(tmp_path / cls.__name__)
        again = cls.from_pretrained(tmp_path / cls.__name__)
        ids = torch.arange(3, 9)[None]
        assert torch.equal(again(ids)[0], model(ids)[0])
    body = BertGenerationEncoder.from_pretrained(tmp_path / "BertGenerationDecoder")  # written by another class
    assert torch.equal(body(ids)[0], again(ids)[0])


def test_shared_halves_stay_shared_and_are_written_once(tmp_path):
    make_float_model(tie_encoder_decoder=True).save_pretrained(tmp_path / "float")
    model = EncoderDecoderModel.from_pretrained(tmp_path / "float", quantization_config=Int4Config())
    for deduplicate in (False, True):
        model.save_pretrained(tmp_path / "four", deduplicate=deduplicate)
        again = EncoderDecoderModel.from_pretrained(tmp_path / "four")
        assert torch.equal(logits(again), logits(model))
        for one in (model, again, again.dequantize()):
            pair = one.encoder.encoder.layer[0].output.dense, one.decoder.bert.encoder.layer[0].output.dense
            assert all(p is q for p, q in zip(pair[0].parameters(), pair[1].parameters(), strict=True))
    assert not any(name.startswith("encoder.") for name in load_file(tmp_path / "four/model.safetensors"))


def test_the_output_layer_is_an_option(saved, tmp_path):
    model = EncoderDecoderModel.from_pretrained(saved, quantization_config=Int4Config(head=True))
    assert isinstance(model.get_output_embeddings(), Int4Linear)
    assert isinstance(model.decoder.bert.embeddings.word_embeddings, nn.Embedding)
    model.save_pretrained(tmp_path / "four")
    again = EncoderDecoderModel.from_pretrained(tmp_path / "four")
    assert torch.equal(logits(again), logits(model)) and isinstance(again.decoder.head.decoder, Int4Linear)
    assert again.decoder.head.decoder.bias is again.decoder.head.bias
    with pytest.raises(UnsupportedError, match="output layer is in 4 bits"):
        again.decoder.resize_token_embeddings(90)
    again.dequantize()  # tied again, to a weight that was not rounded
    assert again.decoder.head.decoder.weight is again.decoder.bert.embeddings.word_embeddings.weight


def test_modules_can_be_skipped(saved, tmp_path):
    config = Int4Config(skip=["crossattention", "encoder.encoder.layer.0", "output.dense"])
    model = EncoderDecoderModel.from_pretrained(saved, quantization_config=config)
    rounded = [name for name, module in model.named_modules() if isinstance(module, Int4Linear)]
    assert rounded and all(
        "crossattention" not in name and "output.dense" not in name and not name.startswith("encoder.encoder.layer.0.")
        for name in rounded
    )
    assert any(name.startswith("decoder.bert.encoder.layer.1.") for name in rounded)
    model.save_pretrained(tmp_path / "four")
    assert torch.equal(logits(EncoderDecoderModel.from_pretrained(tmp_path / "four")), logits(model))
    with pytest.raises(ConfigError, match="skip has 'layer.7'"):
        EncoderDecoderModel.from_pretrained(saved, quantization_config=Int4Config(skip=["layer.7"]))


# What is rejected


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("scale", None, "query.scale is missing beside"),
        ("zero", None, "query: zero is missing, the format has symmetric=False"),
        ("packed", lambda t: t[1:].clone(), r"query: packed is uint8 \(63, 32\), expected uint8 \(64, 32\)"),
        ("packed", lambda t: t.int(), "query: packed is int32"),
        ("scale", lambda t: t.repeat(1, 4), "64 columns in 4 groups, which may have 32, 64, 128"),
        ("scale", lambda t: t[1:].clone(), r"scale is float32 \(63, 1\)"),
        ("scale", lambda t: t * math.inf, "query.scale holds values that are not finite"),
        ("zero", lambda t: t + 20, "zero holds values other than the integers 0 to 15"),
        ("zero", lambda t: t.repeat(1, 2), r"zero is float32 \(64, 2\), expected \(64, 1\)"),
        ("zero", lambda t: t * math.nan, "zero holds values other than the integers 0 to 15|not finite"),
        ("scale", lambda t: t.repeat(1, 2), "query: scale is float32 .*: groups of 32, expected 64"),
    ],
)
def test_corrupt_checkpoints_are_named(saved, tmp_path, part, change, message):
    model = EncoderDecoderModel.from_pretrained(saved, quantization_config=Int4Config(symmetric=False))
    model.save_pretrained(tmp_path / "four")

    def corrupt(state):
        tensor = state.pop(f"{QUERY}.{part}")
        if change is not None:
            state[f"{QUERY}.{part}"] = change(tensor)

    edit_tensors(tmp_path / "four", corrupt)
    with pytest.raises(CheckpointError, match=message):
        EncoderDecoderModel.from_pretrained(tmp_path / "four")


@pytest.mark.parametrize(
    "value, error, message",
    [
        ("int4", ConfigError, "quantization_config must be .* got 'int4'"),
        ([], ConfigError, r"quantization_config must be .* got \[\]"),
        (4, ConfigError, "quantization_config must be .* got 4"),
        ({"quant_method": "gptq"}, UnsupportedError, "quantized by 'gptq'"),
        ({"quant_method": None}, UnsupportedError, "quantized by 'None'"),
        ({"quant_method": "bertgen", "bits": 4}, ConfigError, "no option 'bits'"),
        ({"quant_method": "bertgen", "format": "int3"}, ConfigError, "format must be .* got 'int3'"),
        ({"quant_method": "bertgen", "symmetric": False}, CheckpointError, "zero is missing, .* symmetric=False"),
        ({"quant_method": "bertgen", "group_size": 32}, CheckpointError, "groups of 64, expected 32"),
        (None, CheckpointError, "config.json has no quantization_config"),
    ],
)
def test_a_wrong_quantization_config_in_a_checkpoint_is_named(saved, tmp_path, value, error, message):
    EncoderDecoderModel.from_pretrained(saved, quantization_config=Int4Config()).save_pretrained(tmp_path / "four")
    config = json.loads((tmp_path / "four/config.json").read_text())
    (tmp_path / "four/config.json").write_text(json.dumps(config | {"quantization_config": value}))
    with pytest.raises(error, match=message):
        EncoderDecoderModel.from_pretrained(tmp_path / "four")


def test_zero_points_of_a_symmetric_format_are_rejected(saved, tmp_path):
    model = EncoderDecoderModel.from_pretrained(saved, quantization_config=Int4Config(symmetric=False))
    model.save_pretrained(tmp_path / "four")
    config = json.loads((tmp_path / "four/config.json").read_text())
    config["quantization_config"] = {"quant_method": "bertgen", "format": "nf4"}
    (tmp_path / "four/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="zero is present, the format has symmetric=True"):
        EncoderDecoderModel.from_pretrained(tmp_path / "four")


def test_an_absent_device_is_named(saved):
    with pytest.raises(BackendError, match="'cuda:99' does not exist: this machine has"):
        EncoderDecoderModel.from_pretrained(saved, quantization_config=Int4Config(), device="cuda:99")


def test_weights_that_cannot_be_quantized_are_named(saved, tmp_path, tiny_checkpoint):
    with pytest.raises(InputError, match=r"weight: a weight of (48|96) columns has no groups of 64 \(skip="):
        EncoderDecoderModel.from_pretrained(tiny_checkpoint, quantization_config=Int4Config())
    with pytest.raises(InputError, match="weight: a weight of 64 columns has no groups of 128"):
        EncoderDecoderModel.from_pretrained(saved, quantization_config=Int4Config(group_size=128))
    model = EncoderDecoderModel.from_pretrained(saved, quantization_config=Int4Config())
    model.save_pretrained(tmp_path / "four")
    with pytest.raises(ConfigError, match=r"quantized already \(int4\)"):
        EncoderDecoderModel.from_pretrained(tmp_path / "four", quantization_config=Int4Config("nf4"))
    with pytest.raises(InputError, match="in 4 bits already"):
        Int4Linear.from_linear(model.encoder.encoder.layer[0].output.dense)
    config = json.loads((tmp_path / "four/config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "four/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="is quantized, but config.json has no quantization_config"):
        EncoderDecoderModel.from_pretrained(tmp_path / "four")


def test_models_with_two_formats_cannot_be_saved(saved, tmp_path):
    model = EncoderDecoderModel.from_pretrained(saved, quantization_config=Int4Config())
    model.decoder = EncoderDecoderModel.from_pretrained(saved, quantization_config=Int4Config("nf4")).decoder
    with pytest.raises(UnsupportedError, match="in one format, these are in 2"):
        model.save_pretrained(tmp_path / "mixed")


def test_packed_weights_are_not_trained(saved, tmp_path):
    model = EncoderDecoderModel.from_pretrained(saved, quantization_config=Int4Config())
    for module in (model, model.encoder.encoder.layer[0].output.dense):
        assert module.requires_grad_(False) is module
        with pytest.raises(UnsupportedError, match="have no gradient; dequantize"):
            module.requires_grad_(True)
    x = torch.randn(3, 64, requires_grad=True)
    model.encoder.encoder.layer[0].intermediate.dense(x).sum().backward()  # the input has a gradient, for adapters
    assert x.grad.isfinite().all()
    model.save_pretrained(tmp_path / "four")
    config = TrainingConfig(train="x", output="y", steps=1, model=str(tmp_path / "four"))
    with pytest.raises(UnsupportedError, match=r"weights in 4 bits \(int4\), which have no gradient"):
        make_model(config, None)


# The command


def test_command(tmp_path, capsys):
    out = tmp_path / "small"
    assert main(["convert", "--model", "demo", "--int4", "--output", str(out)]) == 0
    assert sum(path.stat().st_size for path in out.iterdir()) <= 8_000_000
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.uint8, torch.float16}
    capsys.readouterr()
    assert main(["run", "--model", str(out), "--quiet", "Where is the station?"]) == 0
    assert capsys.readouterr().out == "Wo ist der Bahnhof?\n"
    for options, expected in (("", "int8"), ("--compute-dtype input", None), ("--format nf4", None)):
        other = tmp_path / f"other{options}"
        assert main(["convert", "--model", "demo", "--int4", *options.split(), "--output", str(other)]) == 0
        assert json.loads((other / "config.json").read_text())["quantization_config"]["compute_dtype"] == expected
        capsys.readouterr()
        assert main(["run", "--model", str(other), "--quiet", "Where is the station?"]) == 0
        assert capsys.readouterr().out == "Wo ist der Bahnhof?\n"
    assert main(["convert", "--model", str(out), "--int4", "--output", str(tmp_path / "twice")]) == 2
    assert "quantized already" in capsys.readouterr().err
    assert main(["convert", "--model", "demo", "--format", "nf4", "--output", str(tmp_path / "x")]) == 2
    assert "need --int4" in capsys.readouterr().err
    assert main(["convert", "--model", "demo", "--int4", "--to", "bart", "--output", str(tmp_path / "x")]) == 2
    assert "not for bart" in capsys.readouterr().err
    options = [
        "--format",
        "int4",
        "--asymmetric",
        "--group-size",
        "128",
        "--scales",
        "absmax",
        "--skip",
        "pooler.dense",
    ]
    assert main(["convert", "--model", "demo", "--int4", *options, "--output", str(tmp_path / "y")]) == 2
    assert "skip has 'pooler.dense'" in capsys.readouterr().err
    assert main(["convert", "--model", str(out), "--to", "bart", "--output", str(tmp_path / "bart")]) == 0


# Memory

MEMORY = """
    import sys
    from bertgen import EncoderDecoderModel, Int4Config
    import bertgen.model

    def kilobytes(name):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(name))

    before = kilobytes("VmRSS")
    model = EncoderDecoderModel.from_pretrained(sys.argv[1], quantization_config=Int4Config(scales="absmax"))
    print(before, kilobytes("VmHWM"), kilobytes("VmRSS"), sum(p.nbytes for p in model.parameters()) >> 10)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the figures of Linux")
def test_loading_never_holds_all_float_weights(tmp_path, record_property):
    """24 + 24 layers of hidden size 1024, 1.6 GB in float16: the peak is below 1.6 times the memory after loading.

    That also holds without the memory of the interpreter.
    """
    half = dict(vocab_size=50358, max_position_embeddings=512)
    with torch.device("meta"):
        model = EncoderDecoderModel(
            EncoderDecoderConfig(
                encoder=BertGenerationConfig(**half),
                decoder=BertGenerationConfig(**half, is_decoder=True, add_cross_attention=True),
            )
        )
    config = model.config.to_dict() | {"dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("decoder.lm_head.decoder."):
            state[name] = torch.empty(tensor.shape, dtype=torch.float16).fill_(0.01)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    del state
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, peak, now, weights = map(int, done.stdout.split())
    record_property(
        "count",
        f"int4 loading: {before >> 10} MiB before, peak {peak >> 10}, then {now >> 10}; weights {weights >> 10}",
    )
    assert weights < now - before and peak < 1.6 * now and peak - before < 1.6 * weights
