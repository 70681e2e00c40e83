"""`--dtype` of every command: a checkpoint in another dtype than its own; what is refused."""

import json

import pytest
import torch

from bertgen import EncoderDecoderModel, Generator, Int4Config, cli
from bertgen.cli.options import make_generator
from bertgen.convert import convert

SIXTEEN = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture
def call(tiny_checkpoint, tmp_path, capsys):
    """Calls a command with the tiny checkpoint; exit code, stdout and stderr."""
    (tmp_path / "in.txt").write_text("one two\nwhite\n")
    (tmp_path / "pairs.tsv").write_text("one two\teins zwei\nwhite\tweiß\n")

    def command(name, *arguments, model=tiny_checkpoint):
        code = cli.main([name, "--model", str(model), *map(str, arguments)])
        return (code, *capsys.readouterr())

    return command


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_a_float32_checkpoint_in_16_bits(call, tiny_checkpoint, tmp_path, dtype):
    generator = Generator(tiny_checkpoint, dtype=dtype)
    assert generator.model.dtype == SIXTEEN[dtype]
    texts = (tmp_path / "in.txt").read_text().splitlines()
    expected = "".join(f"{output.text}\n" for output in generator.generate(texts, num_beams=2))
    run = ("--input", tmp_path / "in.txt", "--num-beams", 2, "--dtype", dtype)
    assert call("run", *run, "--quiet") == (0, expected, "")

    stats = ("--output", tmp_path / "out.txt", "--stats", tmp_path / "stats.json", "--quiet")
    assert call("run", *run, *stats) == (0, "", "") and (tmp_path / "out.txt").read_text() == expected
    assert json.loads((tmp_path / "stats.json").read_text())["dtype"] == dtype

    pairs = ("--data", tmp_path / "pairs.tsv", "--dtype", dtype)
    code, out, _ = call("score", *pairs, "--quiet")
    totals = [one.total for one in generator.score(texts, ["eins zwei", "weiß"])]
    assert code == 0 and [float(line) for line in out.splitlines()] == pytest.approx(totals, abs=1e-4)
    code, out, _ = call("evaluate", *pairs, "--json", "--quiet")
    assert code == 0 and json.loads(out)["dtype"] == dtype and json.loads(out)["chrf"] > 20


@pytest.mark.parametrize("dtype, margin", [("float32", 1e-4), ("float16", 0.05), ("bfloat16", 0.4)])
def test_the_margin_of_compare_is_the_rounding_of_the_dtype(call, tmp_path, dtype, margin):
    pytest.importorskip("transformers", reason="transformers is not installed")
    code, out, _ = call("compare", "--input", tmp_path / "in.txt", "--dtype", dtype, "--json")
    found = json.loads(out)
    assert (code, found["dtype"], found["margin"], found["beyond_margin"]) == (0, dtype, margin, 0)
    code, out, _ = call("compare", "--input", tmp_path / "in.txt", "--dtype", dtype, "--margin", 0.25)
    assert code == 0 and f"by more than 0.25, in {dtype}\n" in out


def test_a_checkpoint_in_16_bits(call, tiny_checkpoint, tmp_path, monkeypatch):
    """auto takes its dtype; without --dtype a CPU computes in float32."""
    folder = tmp_path / "half"
    convert(tiny_checkpoint, folder, dtype="float16")
    made = []
    monkeypatch.setattr("bertgen.cli.run.make_generator", lambda args: made.append(make_generator(args)) or made[-1])
    for more in ((), ("--dtype", "auto"), ("--dtype", "bfloat16")):
        assert call("run", "one", "--quiet", *more, model=folder) == (0, "eins\n", "")
    assert [generator.model.dtype for generator in made] == [torch.float32, torch.float16, torch.bfloat16]
    rows = json.loads(call("info", "--json", model=folder)[1])["model"]
    assert rows["dtype"] == "float16" and rows["dtype on a CPU"] == "float32, or that of --dtype"


def test_a_checkpoint_in_4_bits_keeps_them(call, tmp_path):
    convert("demo", tmp_path / "int4", int4=Int4Config(compute_dtype="int8"))
    for dtype in ("float32", *SIXTEEN):
        model = EncoderDecoderModel.from_pretrained(tmp_path / "int4", dtype=dtype)
        kinds = {parameter.dtype for parameter in model.state_dict().values()}
        assert kinds == {getattr(torch, dtype), torch.uint8}
        words = ("Help!", "--quiet", "--max-new-tokens", 2, "--dtype", dtype)
        assert call("run", *words, model=tmp_path / "int4") == (0, "Hilfe!\n", "")


def test_a_job_keeps_its_dtype(call, tmp_path, monkeypatch):
    run = ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt", "--window", 1, "--commit-seconds", 0)
    stream = Generator.stream

    def interrupted(self, texts, **more):
        if more.get("first"):
            raise KeyboardInterrupt
        return stream(self, texts, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "stream", interrupted)
        assert call("run", *run, "--dtype", "bfloat16")[0] == 130
    code, _, err = call("run", *run)
    assert code == 2 and "dtype" in err and "torch.bfloat16" in err
    assert call("run", *run, "--dtype", "bfloat16")[0] == 0


def test_what_is_refused(call, tiny_checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        call("run", "one", "--dtype", "bfloat")
    err = capsys.readouterr().err
    assert exit.value.code == 2 and "invalid choice: 'bfloat'" in err and "did you mean bfloat16?" in err

    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    with torch.no_grad():
        model.decoder.lm_head.bias[7] = 1e5
    generator = Generator(tiny_checkpoint)
    model.save_pretrained(tmp_path / "large")
    generator.tokenizer.save_pretrained(tmp_path / "large")
    assert call("run", "one", "--quiet", "--dtype", "bfloat16", model=tmp_path / "large")[0] == 0
    code, out, err = call("run", "one", "--dtype", "float16", model=tmp_path / "large")
    assert (code, out) == (3, "") and "holds values that are not finite in float16" in err
