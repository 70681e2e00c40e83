"""`bertgen info`: versions, backends and the shape of a model."""

import dataclasses
import json
import re
import sys

import torch

import bertgen
from bertgen import cli
from bertgen.ops import extension
from bertgen.ops.slow_paths import slow_paths


def test_info(tiny_checkpoint, capsys):
    assert cli.main(["info", "--json", "--model", str(tiny_checkpoint)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["bertgen"] == bertgen.__version__ and found["versions"]["torch"] == torch.__version__
    assert f"{torch.get_num_threads()} threads" in found["devices"]["cpu"]
    missing = "reference: plain torch, the C++ extension cannot be used"
    loaded = extension.available()
    assert found["ops"]["attention"].startswith("cpp in inference, else reference" if loaded else missing)
    assert found["ops"]["decode_attention"].startswith("cpp, else reference" if loaded else missing)
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


def test_info_marks_slow_paths(capsys, monkeypatch):
    for name in ("BERTGEN_REQUIRE_EXT", "BERTGEN_WITHOUT_EXT", "BERTGEN_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(extension, "_reason", "it was taken away")
    (expected,) = slow_paths("cpu")
    monkeypatch.setenv("BERTGEN_REQUIRE_EXT", "1")  # info describes what is missing, and does not need it
    assert cli.main(["info", "--json"]) == 0
    marked = json.loads(capsys.readouterr().out)["slow paths"][expected.unused]
    assert marked == {**dataclasses.asdict(expected), "message": str(expected)}
    assert cli.main(["info"]) == 0
    out, err = capsys.readouterr()
    assert f"slow paths\n  {expected.unused}  {expected}\n" in out and err == ""

    monkeypatch.setenv("BERTGEN_WITHOUT_EXT", "1")
    assert cli.main(["info"]) == 0
    assert "slow paths: none\n" in capsys.readouterr().out


def steps_told(capsys) -> tuple[dict, str]:
    """What info says of steps, as JSON and as a table."""
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["steps"]
    assert cli.main(["info"]) == 0
    (table,) = re.findall(r"^steps\n((?:  .*\n)+)", capsys.readouterr().out, re.MULTILINE)
    return found, table


def test_info_says_how_steps_run(capsys, monkeypatch):
    monkeypatch.setattr("bertgen.ops.registry._backend", "auto")
    monkeypatch.setattr(extension, "why_not", lambda: None)
    found, table = steps_told(capsys)
    assert found["cpu"] == {"run": "cpp", "why not": None}
    assert re.search(r"^  cpu +several in one C\+\+ call", table, re.MULTILINE)
    monkeypatch.setattr(extension, "why_not", lambda: "it was taken away")
    found, table = steps_told(capsys)
    assert found["cpu"] == {"run": "plain", "why not": "it was taken away"}
    assert re.search(r"^  cpu +one by one from Python: it was taken away$", table, re.MULTILINE)


def test_info_says_how_steps_run_on_gpus(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for name, value in {"_backend": "auto", "WHY_NOT_TRITON": None}.items():
        monkeypatch.setattr(f"bertgen.ops.registry.{name}", value)
    found, table = steps_told(capsys)
    assert found["cuda:1"] == {"run": "graphs", "why not": None}
    assert re.search(r"^  cuda:0 +as CUDA graphs of two steps$", table, re.MULTILINE)
    monkeypatch.setenv("BERTGEN_GRAPHS", "0")
    found, table = steps_told(capsys)
    assert found["cuda:0"] == {"run": "plain", "why not": "BERTGEN_GRAPHS=0 is set"}
    assert re.search(r"^  cuda:1 +one by one from Python: BERTGEN_GRAPHS=0 is set$", table, re.MULTILINE)


def test_info_names_the_variable_that_chose_the_instructions(capsys, monkeypatch):
    monkeypatch.setattr(extension, "why_not", lambda: None)
    monkeypatch.setattr(extension, "instruction_set", lambda: "portable")
    monkeypatch.setenv("BERTGEN_CPU", "portable")
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["extension"]["C++"] == "loaded, instructions: portable (BERTGEN_CPU)"


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
