"""`bertgen evaluate`: scores of outputs, and lines that cannot be used."""

import json
import random

import pytest
import sacrebleu

from bertgen import Generator, cli
from bertgen.engine import Engine
from tests.support.checkpoints import sentence, translation


@pytest.fixture
def pairs(tmp_path):
    r = random.Random(9)
    rows = [(source, translation(source)) for source in (sentence(r) for _ in range(40))]
    rows += [(rows[0][0], "hund hund hund"), (rows[3][0], rows[3][1] + " eins")]
    (tmp_path / "test.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in rows))
    return rows


def test_evaluate(tiny_checkpoint, pairs, tmp_path, capsys):
    arguments = ["evaluate", "--model", str(tiny_checkpoint), "--data", str(tmp_path / "test.tsv"), "--num-beams", "2"]
    assert cli.main([*arguments, "--json", "--output", str(tmp_path / "hyp.txt")]) == 0
    found = json.loads(capsys.readouterr().out)
    grouped = {}
    for source, target in pairs:
        grouped.setdefault(source, []).append(target)
    outputs = [output.text for output in Generator(tiny_checkpoint).generate(list(grouped), num_beams=2)]
    assert (tmp_path / "hyp.txt").read_text().splitlines() == outputs
    streams = [[targets[0] for targets in grouped.values()]]
    streams.append([targets[1] if len(targets) > 1 else None for targets in grouped.values()])
    assert max(map(len, grouped.values())) == 2
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(outputs, streams).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(outputs, streams).score)
    assert found["bleu"] > 90 and found["bleu_signature"].startswith("nrefs:var|case:mixed|eff:no|tok:13a")
    assert (found["sentences"], found["references"]) == (len(grouped), len(pairs))
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"])

    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    bleu, chrf, counts = out.splitlines()
    assert bleu == f"BLEU {found['bleu']:.2f}  {found['bleu_signature']}" and err == ""
    assert chrf == f"chrF {found['chrf']:.2f}  {found['chrf_signature']}"
    assert counts.startswith(f"{len(grouped)} sentences with {len(pairs)} references; {found['tokens']} tokens in ")


@pytest.mark.parametrize("name", ["evaluate", "score"])
def test_the_data_is_not_overwritten(tiny_checkpoint, pairs, tmp_path, capsys, name):
    data = str(tmp_path / "test.tsv")
    before = (tmp_path / "test.tsv").read_text()
    command = [name, "--model", str(tiny_checkpoint), "--data", data, "--overwrite", "--output", data]
    assert cli.main(command) == 2 and "is the data" in capsys.readouterr().err
    assert (tmp_path / "test.tsv").read_text() == before


def test_evaluate_uses_the_beams_of_the_model(tiny_checkpoint, pairs, tmp_path, capsys, monkeypatch):
    model = Generator(tiny_checkpoint).model
    model.generation_config.num_beams = 3
    model.save_pretrained(tmp_path / "beams")
    widths = []
    submit = Engine.submit

    def record(self, requests, on_done):
        widths.extend(request.rows for request in requests)
        return submit(self, requests, on_done)

    monkeypatch.setattr(Engine, "submit", record)
    data = ["--tokenizer", str(tiny_checkpoint), "--data", str(tmp_path / "test.tsv")]
    assert cli.main(["evaluate", "--model", str(tmp_path / "beams"), *data]) == 0
    assert set(widths) == {3}


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file"),
        ("\ufffe", "UTF-16"),
        ("", "no pairs"),
        ("one\n", "line 1: 1 tab-separated columns, 2 needed"),
        ("one\t\n", "line 1"),
    ],
)
def test_evaluate_bad_data(tiny_checkpoint, tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "data.tsv").write_text(content, encoding="utf-16" if "\ufffe" in content else "utf-8")
    arguments = ["evaluate", "--model", str(tiny_checkpoint), "--data", str(tmp_path / "data.tsv")]
    assert cli.main([*arguments, "--output", str(tmp_path / "hyp.txt")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and not (tmp_path / "hyp.txt").exists()


def test_evaluate_leaves_out_what_cannot_be_used(tiny_checkpoint, pairs, tmp_path, capsys):
    """One bad line does not stop the file; it is named, and not in the scores."""
    data = tmp_path / "test.tsv"
    arguments = ["evaluate", "--model", str(tiny_checkpoint), "--data", str(data), "--json"]
    assert cli.main(arguments) == 0
    good = json.loads(capsys.readouterr().out)
    lines = data.read_bytes().splitlines(keepends=True)
    bad = [b"one\n", b"\xff\teins\n", b"one " * 60 + b"\teins\n", b"\teins\n", b"two \xe2\x80\x8b\t\n"]
    lines[5:5] = bad
    data.write_bytes(b"".join(lines) + b"\n")
    assert cli.main([*arguments, "--output", str(tmp_path / "hyp.txt")]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["failed"], good["failed"]) == (5, 0)
    for name in ("bleu", "chrf", "sentences", "references", "tokens"):
        assert found[name] == good[name], name
    told = [line.removeprefix(f"bertgen: {data}, ") for line in err.splitlines()]
    assert told[:2] == [
        "line 6: 1 tab-separated columns, 2 needed: 'one'",
        "line 7: not UTF-8: invalid start byte at byte 0",
    ]
    assert told[2] == "line 8: 60 tokens, the limit is 48 (--truncate cuts longer texts)"
    assert told[3:5] == ["line 9: the source is empty", "line 10: the target is empty"]
    assert told[5:] == ["bertgen: 5 lines could not be used, and are not in the scores"]
    outputs = (tmp_path / "hyp.txt").read_text().splitlines()
    assert len(outputs) == good["sentences"] + 1 and outputs[5] == "", "one for each different source that was read"
    assert cli.main([*arguments, "--truncate"]) == 1 and json.loads(capsys.readouterr().out)["failed"] == 4
    assert cli.main([*arguments, "--strict"]) == 2 and "line 6: 1 tab-separated" in capsys.readouterr().err
    data.write_bytes(b"".join(lines[:5] + bad[2:3]))
    assert cli.main([*arguments, "--strict", "--output", str(tmp_path / "none.txt")]) == 2
    assert "line 6: 60 tokens" in capsys.readouterr().err and not (tmp_path / "none.txt").exists()
    data.write_bytes(bad[2])
    assert cli.main(arguments) == 2 and "no line can be used; " in capsys.readouterr().err
