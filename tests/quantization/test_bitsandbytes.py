"""Checkpoints with 4-bit weights by bitsandbytes."""

from __future__ import annotations

import json
import math

import pytest
import torch

from bertgen import CheckpointError, EncoderDecoderModel, Int4Config, UnsupportedError
from bertgen.layers.linear import Int4Linear
from bertgen.quantization.bitsandbytes import from_bitsandbytes
from bertgen.quantization.int4 import dequantize, quantize
from tests.support.bitsandbytes_checkpoints import convert_folder
from tests.support.int4_models import QUERY, edit_tensors, logits


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_rounding_equals_bitsandbytes(kind, nested, tmp_path):
    functional = pytest.importorskip("bitsandbytes", reason="compares with bitsandbytes").functional
    torch.manual_seed(4)
    weight = torch.randn(96, 320) * 0.02
    packed, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    expected = functional.dequantize_4bit(packed, state)
    config = Int4Config(kind, scales="absmax", double_quant=nested)
    got = dequantize(*quantize(weight, config), config)
    if nested:  # a mean summed in another order may round a scale to a neighbour of 256
        assert float((got - expected).abs().max()) <= 0.02 * float(weight.abs().max())
        assert float((got != expected).float().mean()) < 0.02 or float((got - expected).abs().max()) < 1e-6
    else:
        assert torch.equal(got, expected)
    layer = {"layer.weight": packed} | {f"layer.weight.{k}": t for k, t in state.as_dict(packed=True).items()}
    converted = from_bitsandbytes(layer, kind)
    assert torch.equal(dequantize(converted["layer.packed"], converted["layer.scale"], None, config), expected)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind, block", [("nf4", 64), ("fp4", 64), ("nf4", 128)])
def test_checkpoints_of_bitsandbytes_load(saved, tmp_path, kind, nested, block):
    meant = convert_folder(saved, kind, nested, block)
    model = EncoderDecoderModel.from_pretrained(saved)
    assert model.quantization == Int4Config(kind, scales="absmax", double_quant=nested, compute_dtype="float32")
    for name, module in model.named_modules():
        if isinstance(module, Int4Linear):
            assert torch.equal(module.to_linear().weight, meant[f"{name}.weight"]), name
    model.save_pretrained(tmp_path / "ours")
    assert torch.equal(logits(EncoderDecoderModel.from_pretrained(tmp_path / "ours")), logits(model))


def with_metadata(state: torch.Tensor, **values) -> torch.Tensor:
    """The metadata of a layer with other values."""
    return torch.tensor(list(json.dumps({**json.loads(bytes(state.tolist())), **values}).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("weight.absmax", None, "query.weight.absmax is missing beside"),
        ("weight.quant_map", None, "query.weight.quant_map is missing beside"),
        ("weight", None, "query.weight is missing beside"),
        ("weight.quant_state.bitsandbytes__nf4", None, "quant_state.bitsandbytes__nf4 is missing beside"),
        (
            "weight.absmax",
            lambda t: t[:-1].clone(),
            r"query.weight: its absmax has the shape \(63,\), expected \(64,\)",
        ),
        ("weight.absmax", lambda t: t * math.nan, "query.scale holds values that are not finite"),
        ("weight.absmax", lambda t: t.to(torch.uint8), "no nested_absmax"),
        ("weight", lambda t: t[:-1].clone(), "query.weight: it has 2047 bytes, for 64 x 64 weights it takes 2048"),
        ("weight.quant_map", lambda t: t.flip(0), "which are not the values of nf4"),
        ("weight.quant_state.bitsandbytes__nf4", lambda t: t[:-1].clone(), "is not JSON"),
        ("weight.quant_state.bitsandbytes__nf4", lambda t: torch.full((100_000,), ord("[")).byte(), "is not JSON"),
        (
            "weight.quant_state.bitsandbytes__nf4",
            lambda t: with_metadata(t, shape=[2**40, 2**40]),
            "it has 2048 bytes, for",
        ),
        ("weight.quant_state.bitsandbytes__nf4", lambda t: with_metadata(t, blocksize=2**70), "query.weight"),
        ("weight.quant_state.bitsandbytes__nf4", lambda t: with_metadata(t, blocksize=[64]), "its blocksize is"),
        ("weight", lambda t: t.to(torch.complex64), "query.weight"),
        ("weight.absmax", lambda t: t.bool(), "query.weight"),
    ],
)
def test_corrupt_checkpoints_of_bitsandbytes_are_named(saved, part, change, message):
    convert_folder(saved, "nf4")

    def corrupt(state):
        tensor = state.pop(f"{QUERY}.{part}")
        if change is not None:
            state[f"{QUERY}.{part}"] = change(tensor)

    edit_tensors(saved, corrupt)
    with pytest.raises(CheckpointError, match=message):
        EncoderDecoderModel.from_pretrained(saved)


def test_weights_in_8_bits_are_rejected(saved):
    edit_tensors(saved, lambda state: state.update({f"{QUERY}.SCB": torch.ones(64)}))
    config = json.loads((saved / "config.json").read_text())
    for options, message in ((dict(load_in_8bit=True), "load_in_8bit"), (dict(load_in_4bit=True), "query.SCB")):
        config["quantization_config"] = {"quant_method": "bitsandbytes", **options}
        (saved / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedError, match=message):
            EncoderDecoderModel.from_pretrained(saved)
