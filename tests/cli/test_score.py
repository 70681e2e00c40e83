"""`bertgen score`: pairs in, log-probabilities out; lines that cannot be used."""

import json
import random

import pytest

from bertgen import Generator, cli
from bertgen.files import text_input
from tests.support.checkpoints import sentence, translation


@pytest.fixture(scope="module")
def generator(tiny_checkpoint):
    return Generator(tiny_checkpoint)


@pytest.fixture(scope="module")
def texts():
    r = random.Random(6)
    return [sentence(r) for _ in range(40)]


@pytest.fixture
def bertgen_score(tiny_checkpoint, tmp_path, capsys):
    """Calls `bertgen score` on a file of this content; exit code, stdout and stderr."""

    def call(content, *arguments, suffix="tsv"):
        path = tmp_path / f"data.{suffix}"
        path.write_bytes(content)
        code = cli.main(["score", "--model", str(tiny_checkpoint), "--data", str(path), *map(str, arguments)])
        return (code, *capsys.readouterr())

    return call


def test_score_writes_a_number_per_line(bertgen_score, generator, texts, tmp_path):
    targets = [translation(text) for text in texts]
    content = "\ufeff" + "\r\n".join(f"{text} \t{target}" for text, target in zip(texts, targets))
    expected = generator.score(texts, targets)
    code, out, err = bertgen_score(content.encode(), "--encode-tokens", 200)
    assert (code, err) == (0, "")
    assert [float(line) for line in out.splitlines()] == pytest.approx([one.total for one in expected], abs=1e-4)
    code, out, err = bertgen_score(content.encode(), "--length-penalty", 1, "--output", tmp_path / "out.txt")
    assert (code, out) == (0, "") and "40 lines, 0 failed, 0 truncated" in err
    found = [float(line) for line in (tmp_path / "out.txt").read_text().splitlines()]
    assert found == pytest.approx([one.score for one in expected], abs=1e-4)
    assert bertgen_score(content.encode(), "--output", tmp_path / "out.txt")[0] == 2
    assert bertgen_score(content.encode(), "--output", tmp_path / "data.tsv", "--overwrite")[0] == 2
    other = "\n".join(f"{target}\tx\t{text}" for text, target in zip(texts, targets))
    _, out, _ = bertgen_score(other.encode(), "--source-column", 3, "--target-column", 1)
    assert [float(line) for line in out.splitlines()] == pytest.approx([one.total for one in expected], abs=1e-4)


def test_score_with_tokens_and_fields(bertgen_score, generator):
    (expected,) = generator.score(["one two"], ["eins zwei"])
    pieces = generator.tokenizer.convert_ids_to_tokens(list(expected.token_ids))
    _, out, _ = bertgen_score(b"\xef\xbb\xbfone two \t eins zwei\n", "--tokens")
    found = json.loads(out)
    assert found["token_log_probs"] == pytest.approx(expected.log_probs, abs=1e-5) and found["tokens"] == pieces
    assert (found["source"], found["target"]) == ("one two", "eins zwei") and "score" not in found
    line = json.dumps({"id": 3, "en": "one two", "de": "eins zwei"}).encode()
    fields = ["--source-field", "en", "--target-field", "de", "--length-penalty", 2]
    code, out, err = bertgen_score(line, *fields, suffix="jsonl")
    found = json.loads(out)
    assert (code, err, list(found)) == (0, "", ["id", "en", "de", "log_prob", "score"])
    assert found["score"] == pytest.approx(expected.total / 9, abs=1e-6)


def test_score_meets_bad_lines(bertgen_score, tmp_path):
    content = b"one\teins\n\xff\teins\nthree\n" + b"one " * 60 + b"\teins\ntwo\tzwei\n"
    code, out, err = bertgen_score(content, "--strict")
    assert (code, out) == (2, "") and "data.tsv, line 2: not UTF-8" in err
    code, out, err = bertgen_score(content)
    first, *bad, last = out.splitlines()
    assert code == 1 and bad == ["", "", ""] and float(first) > -1 and float(last) > -1
    for said in ("line 2: not UTF-8", "line 3: 1 tab-separated columns, 2 needed", "line 4: source: 60 tokens"):
        assert said in err
    code, out, err = bertgen_score(content, "--truncate", "--quiet", "--tokens")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (1, "") and ["error" in row for row in rows] == [False, True, True, False, False]

    lines = [b'{"source": "one"}', b'{"source": 1, "target": "eins"}', b"[]", b'{"id": 7, "a": 1e999}']
    lines += [b'{"source": "one", "target": "eins", "log_prob": 1}', b'{"source": "one", "target": "eins"}']
    code, out, err = bertgen_score(b"\n".join(lines), suffix="jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    said = ["no field 'target'", "field 'source' must be a string, got 1", "not a JSON object", "1e999 is too large"]
    for row, message in zip(rows, [*said, "field 'log_prob' is there already"]):
        assert message in row["error"]
    assert rows[0]["source"] == "one" and "error" not in rows[-1] and code == 1
    assert rows[3]["id"] == 7, "what names the line is not lost"
    code, out, err = bertgen_score(content, "--strict", "--output", tmp_path / "out.txt")
    assert code == 2 and sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "data.tsv"]


def test_blank_lines_are_no_failures(bertgen_score):
    pair = b'{"source": "one", "target": "eins", "loss": NaN}\n'
    code, out, err = bertgen_score(pair + b"\n" + pair + b"\n", suffix="jsonl")
    lines = out.split("\n")
    assert (code, err) == (0, "") and [bool(line) for line in lines] == [True, False, True, False, False]
    assert '"loss": NaN, "log_prob": -' in lines[0]
    code, out, err = bertgen_score(b"one\teins\n\n")
    assert (code, err, out.count("\n")) == (0, "", 2)


def test_a_file_whose_first_lines_all_fail_is_given_up(bertgen_score):
    code, out, err = bertgen_score(b"one\teins\n" * 3, "--target-column", 3)
    assert (code, out) == (2, "")
    assert "each of the first 3 lines failed, the rest is not tried; " in err and "line 1: 2 tab-separated" in err


def test_lines_that_do_not_end_fail_alone(bertgen_score, monkeypatch):
    monkeypatch.setattr(text_input, "LINE_BYTES", 100)
    code, out, err = bertgen_score(b"one\teins\n" + b"x" * 1000 + b"\ntwo\tzwei\n")
    assert code == 1 and out.splitlines()[1] == "" and "line 2: 1001 bytes, the limit of a line is 100" in err
    code, out, err = bertgen_score(b"\xff\xfeo\0n\0e\0")
    assert (code, out) == (2, "") and "data.tsv is UTF-16; what is read is text in UTF-8" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--source-field", "en"], "--source-field 'en' is for the format jsonl, not for tsv"),
        (["--source-column", "0"], "--source-column must be an integer from 1 to 2147483647, got 0"),
        (["--format", "jsonl", "--target-column", "2"], "--target-column 2 is for the format tsv, not for jsonl"),
    ],
)
def test_bad_options(bertgen_score, arguments, message):
    code, out, err = bertgen_score(b"one\teins\n", *arguments)
    assert (code, out) == (2, "") and message in err


def test_missing_data(tiny_checkpoint, capsys):
    assert cli.main(["score", "--model", str(tiny_checkpoint), "--data", "/no/such/file"]) == 2
    assert "cannot be read" in capsys.readouterr().err
