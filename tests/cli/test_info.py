"""`bertgen info`: versions, backends and the shape of a model."""

import json
import re
import sys

import torch

import bertgen
from bertgen import cli
from bertgen.ops import extension


def test_info(tiny_checkpoint, capsys):
    assert cli.main(["info", "--json", "--model", str(tiny_checkpoint)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["bertgen"] == bertgen.__version__ and found["versions"]["torch"] == torch.__version__
    assert f"{torch.get_num_threads()} threads" in found["devices"]["cpu"]
    assert found["ops"]["attention"].startswith("reference: ")
    expected = "cpp in float32" if extension.available() else "reference: plain torch, the C++ extension cannot be used"
    assert found["ops"]["decode_attention"].startswith(expected)
    expected = "cpp, all layers in one call" if extension.available() else "layer by layer"
    assert found["ops"]["decoder_step"].startswith(expected)
    model = bertgen.EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    assert found["model"]["parameters"] == model.num_parameters()
    assert found["model"]["encoder"] == "2 layers, hidden 48, 4 heads, 48 positions, vocabulary 64"
    assert found["model"]["bytes on disk"] == (tiny_checkpoint / "model.safetensors").stat().st_size
    assert found["model"]["tokenizer"] == "64 tokens" and found["model"]["dtype"] == "float32"
    assert "transformers" not in sys.modules or found["versions"]["transformers"]

    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "model" not in out.splitlines() and re.search(r"^  bertgen +0", out, re.MULTILINE)


def test_info_with_checks_where_no_kernel_runs(capsys):
    assert cli.main(["info", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["check"] == {
        "none": "no kernel runs here, only reference implementations: nothing to compare"
    }
    assert cli.main(["info", "--check", "bias_gelu", "no_such"]) == 2
    assert "--check no_such: there are checks of attention" in capsys.readouterr().err


def test_info_of_a_missing_model(capsys):
    assert cli.main(["info", "--model", "/no/such/model"]) == 3
    assert capsys.readouterr().out == ""
