"""Files in, files out: one record per line, in order, and nothing under the output's name unless it is whole.

What happens to a job that is killed, and resumed, is in test_resume.py.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import resource
import stat
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch

from bertgen import BertgenError, ConfigError, Generator, InputError, OutputError, UnsupportedError
from bertgen.files import text_input
from bertgen.files.atomic import NewFile
from bertgen.generator import Output
from bertgen.jobs import follow_file, follow_lines, generate, run_file
from tests.support.checkpoints import sentence


@pytest.fixture(scope="module")
def generator(tiny_checkpoint):
    return Generator(tiny_checkpoint)


@pytest.fixture
def folder(tmp_path):
    """A folder that holds no temporary file when the test is over."""
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run(generator, folder, content, name="in.txt", **options):
    """Runs a job on these bytes; the report and the bytes that came out."""
    (folder / name).write_bytes(content)
    output = folder / f"out{os.path.splitext(name)[1]}"
    report = run_file(generator, folder / name, output, **options)
    return report, output.read_bytes()


# order and formats


def test_a_thousand_json_lines_come_out_in_order(generator, folder):
    r = random.Random(3)
    rows = [{"id": i, "text": sentence(r), "more": {"ü": [i, None, 1.5]}} for i in range(1000)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    report, written = run(generator, folder, content, "in.jsonl", window=300, max_new_tokens=12)
    out = [json.loads(line) for line in written.splitlines()]
    assert [{name: row[name] for name in ("id", "text", "more")} for row in out] == rows
    answers = generator.generate([row["text"] for row in rows], max_new_tokens=12)
    assert [row["output"] for row in out] == [answer.text for answer in answers]
    assert len({row["output"] for row in out}) > 500, "a mix-up would show"
    assert (report.lines, report.failed, report.bytes) == (1000, 0, len(content))
    assert report.tokens == sum(len(answer.token_ids) for answer in answers) and report.seconds > 0


def test_text(generator, folder):
    assert run(generator, folder, b"one two\nthree\n")[1] == b"eins zwei\ndrei\n"
    assert run(generator, folder, b"white\n\n", n_best=2, num_beams=4, overwrite=True)[1] == "weiß\thell\n\t\n".encode()
    _, written = run(generator, folder, b"white\n \n", n_best=2, num_beams=4, scores=True, overwrite=True)
    best = generator.generate(["white"], num_beams=4, num_return_sequences=2)[0]
    scores = best.score, best.alternatives[0].score
    assert written == f"{scores[0]:.4f}\tweiß\t{scores[1]:.4f}\thell\n\t\t\t\n".encode()


def test_tsv(generator, folder):
    """The columns stay byte for byte, even where another one is no UTF-8."""
    report, written = run(generator, folder, b"7\tone\t\xff\n8\ttwo\n\t\t\n", "in.tsv", column=2)
    assert written == b"7\tone\t\xff\teins\n8\ttwo\tzwei\n\t\t\t\n" and report.lines == 3
    _, written = run(generator, folder, b"white\tx\n", "in.tsv", n_best=2, num_beams=4, overwrite=True)
    assert written == "white\tx\tweiß\thell\n".encode()


def test_json_lines(generator, folder):
    line = b'{"de": 1, "en": "white", "pair": "\\ud800", "big": 123456789012345678901234567890}\n'
    names = dict(field="en", output_field="new")
    _, written = run(generator, folder, line, "in.jsonl", **names)
    assert json.loads(written) == {**json.loads(line), "new": "weiß"}
    _, written = run(
        generator, folder, line + b'{"en": ""}', "in.jsonl", n_best=2, num_beams=4, scores=True, overwrite=True, **names
    )
    white, empty = map(json.loads, written.splitlines())
    best = generator.generate(["white"], num_beams=4, num_return_sequences=2)[0]
    assert white["new"] == ["weiß", "hell"]
    assert white["new_score"] == pytest.approx([best.score, best.alternatives[0].score], abs=1e-5)
    assert empty == {"en": "", "new": [""], "new_score": [None]}
    assert (
        run(generator, folder, b'{"t":"one"}', "in.jsonl", field="t", output_field="t", overwrite=True)[1]
        == b'{"t": "eins"}'
    )


def test_umlauts_are_written_as_such(generator, folder):
    assert (
        run(generator, folder, b'{"text": "five"}\n', "in.jsonl")[1] == '{"text": "five", "output": "fünf"}\n'.encode()
    )


def test_line_breaks_and_tabs_of_an_output_become_spaces(generator, folder, monkeypatch):
    texts = ["a\tb\nc\rd"]
    monkeypatch.setattr(generator.tokenizer, "batch_decode", lambda rows, **_: texts * len(rows))
    assert run(generator, folder, b"one\n")[1] == b"a b c d\n"
    assert run(generator, folder, b"one\n", "in.tsv")[1] == b"one\ta b c d\n"
    assert json.loads(run(generator, folder, b'{"text":"one"}\n', "in.jsonl")[1])["output"] == texts[0]


@pytest.mark.parametrize(
    "content, written",
    [
        (b"", b""),
        (b"one", b"eins"),
        (b"one\ntwo", b"eins\nzwei"),
        (b"one\r\ntwo\r\n", b"eins\nzwei\n"),
        (b"\n\n", b"\n\n"),
        (b"\xef\xbb\xbfone\ntwo\n", b"eins\nzwei\n"),
        (b"  one \n\t\n", b"eins\n\n"),
    ],
    ids=["empty", "no end", "last line without end", "CRLF", "empty lines", "byte-order mark", "white space"],
)
def test_ends_of_lines(generator, folder, content, written):
    assert run(generator, folder, content)[1] == written


def test_ends_of_lines_are_no_content(generator, folder):
    """In text format the tokenizer would swallow them anyway."""
    assert run(generator, folder, b"1\tone\r\n2\ttwo\r", "in.tsv", column=2)[1] == b"1\tone\teins\n2\ttwo\tzwei"
    mark = b"\xef\xbb\xbf"
    assert run(generator, folder, mark + b'{"text": "one"}', "in.jsonl")[1] == b'{"text": "one", "output": "eins"}'
    assert run(generator, folder, mark + b"one\n", "in.tsv", overwrite=True)[1] == b"one\teins\n"


def test_odd_characters_and_long_lines_stay_one_line(generator, folder):
    """NUL, characters that Python takes for line ends, and a line of 10 MB."""
    content = b"one\x00two\none\x0btwo\x0c\xc2\x85\xe2\x80\xa8\n" + b"one " * 2_500_000 + b"\ntwo\n"
    report, written = run(generator, folder, content, truncation=True)
    assert written.count(b"\n") == report.lines == 4 and written.endswith(b"\nzwei\n")
    assert report.truncated == 1 and report.messages == [f"{folder / 'in.txt'}, line 3: cut to 48 tokens"]


def test_format_is_that_of_the_names(generator, folder):
    (folder / "in.TSV").write_bytes(b"1\tone\n")
    run_file(generator, folder / "in.TSV", folder / "plain", column=2)
    assert (folder / "plain").read_bytes() == b"1\tone\teins\n"
    with pytest.raises(ConfigError, match="in.TSV is tsv and .*x.txt is text; say which with format"):
        run_file(generator, folder / "in.TSV", folder / "x.txt")
    run_file(generator, folder / "in.TSV", folder / "x.txt", format="text")
    assert (folder / "x.txt").read_bytes().count(b"\n") == 1
    (folder / "in.ndjson").write_bytes(b'{"text":"one"}\n')
    run_file(generator, folder / "in.ndjson", folder / "y.jsonl")
    assert b'"eins"' in (folder / "y.jsonl").read_bytes()


@pytest.mark.parametrize("suffix", [".csv", ".gz", ".parquet", ".json", ".xyz"])
def test_unknown_suffix_is_refused_unless_the_format_is_said(generator, folder, suffix):
    given, other = folder / f"in{suffix}", folder / f"out{suffix}"
    given.write_bytes(b"one\n")
    (folder / "in.txt").write_bytes(b"one\n")
    for paths in ((given, folder / "out.txt"), (folder / "in.txt", other)):
        message = rf"{suffix} is the suffix of no format; there are text \(.txt\), tsv \(.tsv\) and jsonl"
        with pytest.raises(ConfigError, match=message):
            run_file(generator, *paths)
    run_file(generator, given, other, format="text")
    assert other.read_bytes() == b"eins\n"


def test_blank_lines_of_json_are_no_failures(generator, folder):
    """An editor leaves one at the end, `cat` one in the middle; the output has as many lines as the input."""
    report, written = run(generator, folder, b'{"text": "one"}\n\n{"text": "two"}\n \n\n', "in.jsonl")
    lines = written.split(b"\n")
    assert report.failed == 0 and [json.loads(line)["output"] for line in lines if line] == ["eins", "zwei"]
    assert [bool(line) for line in lines] == [True, False, True, False, False, False]
    assert run(generator, folder, b"1\tone\n\n", "in.tsv", column=2)[1] == b"1\tone\teins\n\t\n"


def test_a_number_that_json_lacks_stays_in_its_record(generator, folder):
    line = b'{"id": 7, "text": "one", "loss": NaN, "best": -Infinity}\n'
    report, written = run(generator, folder, line, "in.jsonl")
    assert report.failed == 0
    assert written == b'{"id": 7, "text": "one", "loss": NaN, "best": -Infinity, "output": "eins"}\n'


def test_a_line_that_does_not_end_is_not_held(generator, folder, monkeypatch):
    """It is a failed line like others, whichever way it comes; what stands behind it is read."""
    monkeypatch.setattr(text_input, "LINE_BYTES", 100)
    monkeypatch.setattr(text_input, "_CHUNK", 64)
    content = b"one\n" + b"x" * 100_000 + b"\n" + b"y" * 99 + b"\ntwo\n" + b"z" * 101
    report, written = run(generator, folder, content, n_best=1, max_new_tokens=3)
    told = [message.split(", ", 1)[1] for message in report.messages if "limit of a line" in message]
    assert report.bytes == len(content) and told == [
        "line 2: 100001 bytes, the limit of a line is 100",
        "line 5: 101 bytes, the limit of a line is 100",
    ]
    assert written.split(b"\n")[0] == b"eins" and written.split(b"\n")[3] == b"zwei" and written.count(b"\n") == 4
    for suffix, record in ((".tsv", b"\t\n"), (".jsonl", b'{"error": "100001 bytes, the limit of a line is 100"}\n')):
        good = {".tsv": b"one\n", ".jsonl": b'{"text": "one"}\n'}[suffix]
        written = run(generator, folder, good + b"x" * 100_000 + b"\n" + good, f"in{suffix}")[1]
        assert written.splitlines(keepends=True)[1] == record
    reader, writer = os.pipe()
    thread = threading.Thread(target=lambda: (os.write(writer, content), os.close(writer)))
    with open(reader, "rb") as pipe:
        thread.start()
        lines, held = [], []
        incoming = text_input.lines_of(pipe, "pipe")
        for line in incoming:
            lines.append(line)
            held.append(len(incoming._held))
        thread.join()
    assert list(map(text_input.size_of, lines)) == [4, 100_001, 100, 4, 101] and max(held) <= 100
    assert [type(line) for line in lines] == [bytes, text_input.LongLine, bytes, bytes, text_input.LongLine]


# files that are no text

BEGINNINGS = {
    "UTF-16": "one\ntwo\n".encode("utf-16"),
    "UTF-16 ": b"\xfe\xff" + "one\n".encode("utf-16-be"),
    "UTF-32": "one\n".encode("utf-32"),
    "UTF-16 without its mark": "one\ntwo\n".encode("utf-16-le"),
    "compressed by gzip": gzip.compress(b"one\n"),
    "compressed by bzip2": bz2.compress(b"one\n"),
    "compressed by xz": lzma.compress(b"one\n"),
    "compressed by zstd": b"\x28\xb5\x2f\xfd\x20",
    "a zip archive": b"PK\x03\x04\x14\x00",
    "Parquet": b"PAR1\x15\x04",
    "Arrow": b"ARROW1\x00\x00",
    "a pickle of Python": pickle.dumps(["one"]),
    "a PDF": b"%PDF-1.7\n",
    "an HTML page": b"<!DOCTYPE html>\n<html>",
    "a pointer of git-LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_a_file_that_is_no_text_is_named_and_refused(generator, folder, kind):
    message = f"in.txt is .*{kind.strip()}.*; what is read is text in UTF-8"
    with pytest.raises(InputError, match=message):
        run(generator, folder, BEGINNINGS[kind])
    assert names(folder) == ["in.txt"]
    with pytest.raises(InputError, match=kind.strip()):
        list(follow_lines(generator, text_input.lines_of(io.BytesIO(BEGINNINGS[kind]), "x"), print, name="x"))
    reader, writer = os.pipe()
    os.write(writer, BEGINNINGS[kind])
    os.close(writer)
    with open(reader, "rb") as pipe, pytest.raises(InputError, match=kind.strip()):
        list(text_input.lines_of(pipe, "x"))
    with open(folder / "in.txt", "rb") as file, pytest.raises(InputError, match=kind.strip()):
        list(text_input.lines_of(file, "stdin"))


def test_a_file_of_lone_carriage_returns_is_refused(generator, folder):
    """It would be one line, and its answer one line, without a word."""
    content, reason = b"one\rtwo\r", "ends its lines with CR alone"
    with pytest.raises(InputError, match=f"in.txt {reason}"):
        run(generator, folder, content)
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    with open(reader, "rb") as pipe, pytest.raises(InputError, match=reason):
        list(text_input.lines_of(pipe, "x"))
    text_input.check_beginning(b"one\r", "x")  # of a pipe: its LF may come
    text_input.check_beginning(b"one\rtwo\n", "x")


def test_a_line_of_an_array_is_a_bad_line_and_an_array_of_objects_no_json_lines(generator, folder):
    (folder / "in.jsonl").write_bytes(b'["one"]\n{"text":"two"}\n')
    assert run_file(generator, folder / "in.jsonl", folder / "out.jsonl").failed == 1
    (folder / "in.jsonl").write_bytes(b'\xef\xbb\xbf[\n{"text":"one"},\n{"text":"two"}\n]\n')
    with pytest.raises(InputError, match="in.jsonl is a JSON array"):
        run_file(generator, folder / "in.jsonl", folder / "out2.jsonl")
    assert names(folder) == ["in.jsonl", "out.jsonl"]


def test_a_number_of_too_many_digits_costs_no_other_field(generator, folder):
    digits = "9" * 5000
    (folder / "in.jsonl").write_text(f'{{"id":7,"n":{digits},"text":"one"}}\n{{"text":"two"}}\n')
    run_file(generator, folder / "in.jsonl", folder / "out.jsonl")
    record = json.loads((folder / "out.jsonl").read_text().splitlines()[0])
    assert (record["id"], record["n"]) == (7, digits)
    assert record["error"] == "not JSON: a number of 5000 digits, the limit is 4300"


# lines that cannot be used

BAD_LINES = [
    ("in.txt", b"one\n\xffx\ntwo\n", "not UTF-8: invalid start byte at byte 0"),
    ("in.txt", b"one\n" + b"one " * 60 + b"\ntwo\n", "60 tokens, the limit is 48"),
    ("in.tsv", b"1\tone\nx\n2\ttwo\n", "1 columns separated by tabs, the text is in column 2"),
    ("in.tsv", b"1\tone\n3\t\xc3\n2\ttwo\n", "not UTF-8: unexpected end of data at byte 0"),
    ("in.jsonl", b'{"text":"one"}\n{"text"\n{"text":"two"}\n', "not JSON: Expecting ':' delimiter"),
    ("in.jsonl", b'{"text":"one"}\n' + b"[" * 100_000 + b'\n{"text":"two"}\n', "not JSON: maximum recursion"),
    ("in.jsonl", b'{"text":"one"}\n["text"]\n{"text":"two"}\n', r"not a JSON object: \[\"text\"\]"),
    ("in.jsonl", b'{"text":"one"}\n{"text":"x","a":1e999}\n{"text":"two"}\n', "not JSON: 1e999 is too large"),
    ("in.jsonl", b'{"text":"one"}\n{"txt":"x"}\n{"text":"two"}\n', "no field 'text'; there are 'txt'"),
    ("in.jsonl", b'{"text":"one"}\n{}\n{"text":"two"}\n', "no field 'text'; there are none"),
    ("in.jsonl", b'{"text":"one"}\n{"text":null}\n{"text":"two"}\n', "field 'text' must be a string, got null"),
    ("in.jsonl", b'{"text":"one"}\n{"text":"\\ud800"}\n{"text":"two"}\n', "no valid Unicode: lone surrogate"),
    ("in.jsonl", b'{"text":"one"}\n{"text":"x","output":1}\n{"text":"two"}\n', "field 'output' is there already"),
    ("in.jsonl", b'{"text":"one"}\n{"text":"\xff"}\n{"text":"two"}\n', "not UTF-8"),
]


@pytest.mark.parametrize("name, content, problem", BAD_LINES, ids=[f"{n}-{p[:24]}" for n, _, p in BAD_LINES])
def test_bad_line(generator, folder, name, content, problem):
    """It keeps its place; with `strict` it ends the job, and nothing is written."""
    options = {"column": 2} if name == "in.tsv" else {}
    with pytest.raises(InputError, match=f"in.*{name[2:]}, line 2: {problem}"):
        run(generator, folder, content, name, strict=True, **options)
    assert [path.name for path in folder.iterdir()] == [name]

    report, written = run(generator, folder, content, name, **options)
    lines = written.split(b"\n")
    assert (report.lines, report.failed, len(report.messages)) == (3, 1, 1) and len(lines) == 4
    assert b"eins" in lines[0] and b"zwei" in lines[2]
    if name == "in.jsonl":
        row = json.loads(lines[1])
        assert report.messages[0].endswith("line 2: " + row.pop("error"))
        try:
            expected = json.loads(content.split(b"\n")[1].decode(errors="replace"), parse_float=str)
        except (ValueError, RecursionError):
            expected = {}
        assert row == (expected if isinstance(expected, dict) else {}), "what names the line is not lost"
    else:
        assert lines[1] == (content.split(b"\n")[1] + b"\t" if name == "in.tsv" else b"")


def test_bad_line_behind_the_first_windows(generator, folder):
    content = b"one\n" * 25 + b"\xff\n"
    with pytest.raises(InputError, match="line 26: not UTF-8"):
        run(generator, folder, content, window=10, strict=True)
    assert (folder / "out.txt.part").read_bytes() == b"eins\n" * 20
    report, written = run(generator, folder, content, window=10)
    assert written == b"eins\n" * 25 + b"\n" and report.failed == 1


def test_line_that_does_not_fit_into_memory(generator, folder, monkeypatch):
    content, encoded = b"one\n" + b"three " * 9 + b"\ntwo\n", generator.model.encoded

    def limited(ids, mask):
        if ids.shape[1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encoded(ids, mask)

    monkeypatch.setattr(generator.model, "encoded", limited)
    report, written = run(generator, folder, content)
    assert written == b"eins\n\nzwei\n" and report.failed == 1
    assert "line 2: out of memory on cpu with request 1 alone" in report.messages[0]
    with pytest.raises(InputError, match="line 2: out of memory on cpu"):
        run(generator, folder, content, strict=True, overwrite=True)


@pytest.mark.parametrize("answers", [[0], [0, 1, 1], [0, 2]], ids=["missing", "doubled", "of another"])
def test_no_output_lacks_a_line(generator, folder, monkeypatch, answers):
    """Whatever a generator does."""
    wrong = lambda texts, **_: ((i, Output(i, "x")) for i in answers if texts)  # noqa: E731
    monkeypatch.setattr(generator, "stream", wrong)
    with pytest.raises((RuntimeError, IndexError)):
        run(generator, folder, b"one\ntwo\n")
    assert names(folder) == ["in.txt"]


def test_report_names_the_first_bad_lines(generator, folder):
    report, written = run(generator, folder, b"\xff\n" * 50 + b"\n", n_best=2, scores=True, num_beams=2)
    assert (report.failed, len(report.messages)) == (50, 20) and "line 20:" in report.messages[-1]
    assert written == b"\t\t\t\n" * 51


@pytest.mark.parametrize(
    "name, content, options, reason",
    [
        ("in.tsv", b"1\tone\n" * 3, {"column": 3}, "2 columns separated by tabs, the text is in column 3"),
        ("in.jsonl", b'{"txt": "one"}\n' * 3, {}, "no field 'text'; there are 'txt'"),
        ("in.txt", b"one " * 60 + b"\n" + b"two " * 60 + b"\n", {}, "60 tokens, the limit is 48"),
    ],
)
def test_a_job_whose_first_window_fails_as_a_whole_stops(generator, folder, name, content, options, reason):
    """A wrong column would else cost a night and give a file of nothing."""
    count = content.count(b"\n")
    good = {"in.tsv": b"1\tx\tone\n", "in.jsonl": b'{"text": "one"}\n', "in.txt": b"one\n"}[name]
    with pytest.raises(InputError, match=f"{name}: each of the first {count} lines failed, .*, line 1: {reason}"):
        run(generator, folder, content + good, name, window=count, **options)
    assert names(folder) == [name]
    report, _ = run(generator, folder, good + content, name, window=count, **options)
    assert report.failed == count, "lines that fail later are recorded"
    one = content[: content.index(b"\n") + 1]
    report, written = run(generator, folder, one, name, overwrite=True, **options)
    assert report.failed == 1 and written, "a single line is done with that"


def test_records_of_a_hopeless_window_are_not_written():
    """Where it is known before the model is asked, not even to a pipe."""
    written = []
    with pytest.raises(InputError, match="each of the first 2 lines failed"):
        list(follow_lines(Silent(), [b"{\n", b"{\n"], written.append, name="x", format="jsonl", window=2))
    assert written == []


class Silent:
    """In the place of a Generator that is not asked."""

    def stream(self, texts, **options):
        assert not texts
        return iter(())


# options


@pytest.mark.parametrize(
    "name, options, error, message",
    [
        ("in.txt", {"format": "xml"}, ConfigError, "format must be text, tsv or jsonl, got 'xml'"),
        ("in.txt", {"column": 2}, ConfigError, "column=2 is for the format tsv, not for text"),
        ("in.tsv", {"field": "x"}, ConfigError, "field='x' is for the format jsonl, not for tsv"),
        ("in.tsv", {"output_field": "x"}, ConfigError, "output_field='x' is for the format jsonl"),
        ("in.tsv", {"column": 0}, ConfigError, "column must be an integer from 1 to 2147483647, got 0"),
        ("in.txt", {"window": 0}, ConfigError, "window must be an integer from 1"),
        ("in.txt", {"num_shards": 0}, ConfigError, "num_shards must be an integer from 1"),
        ("in.txt", {"num_shards": 2, "shard_index": 2}, ConfigError, "shard_index must be under num_shards=2, got 2"),
        ("in.txt", {"shard_index": -1}, ConfigError, "shard_index must be an integer from 0"),
        ("in.txt", {"n_best": 0}, ConfigError, "num_return_sequences must be an integer from 1"),
        ("in.txt", {"n_best": 2}, ConfigError, "greedy search has one output"),
        ("in.txt", {"num_beans": 2}, ConfigError, "num_beans"),
        ("in.txt", {"penalty_alpha": 0.6}, UnsupportedError, "penalty_alpha"),
    ],
)
def test_bad_options(generator, folder, name, options, error, message):
    with pytest.raises(error, match=message):
        run(generator, folder, b"one\n", name, **options)
    assert [path.name for path in folder.iterdir()] == [name]


# files


def test_input_that_cannot_be_read(generator, folder):
    with pytest.raises(InputError, match=r"none.txt cannot be read: No such file"):
        run_file(generator, folder / "none.txt", folder / "out.txt")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        run_file(generator, folder, folder / "out.txt")
    assert list(folder.iterdir()) == []


def test_existing_output_stays_unless_told_otherwise(generator, folder):
    (folder / "out.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"out.txt is there already; overwrite replaces it"):
        run(generator, folder, b"one\n")
    with pytest.raises(InputError):
        run(generator, folder, b"one\n\xff\n", overwrite=True, strict=True)
    assert (folder / "out.txt").read_text() == "precious"
    assert run(generator, folder, b"one\n", overwrite=True)[1] == b"eins\n"


def test_output_that_appears_meanwhile_stays(folder):
    with pytest.raises(ConfigError, match="is there already"), NewFile(folder / "out") as file:
        file.write(b"mine")
        (folder / "out").write_text("theirs")
    assert (folder / "out").read_text() == "theirs"


def test_output_must_not_be_the_input(generator, folder):
    (folder / "in.txt").write_text("one\n")
    (folder / "link.txt").symlink_to(folder / "in.txt")
    for name in ("in.txt", "link.txt"):
        with pytest.raises(ConfigError, match="is the input"):
            run_file(generator, folder / "in.txt", folder / name, overwrite=True)
    assert (folder / "in.txt").read_text() == "one\n"


def test_link_stays_and_its_target_is_written(folder):
    (folder / "real").mkdir()
    (folder / "link").symlink_to(folder / "real" / "out")
    with NewFile(folder / "link") as file:
        file.write(b"x")
    assert (folder / "link").is_symlink() and (folder / "real" / "out").read_bytes() == b"x"
    assert [path.name for path in (folder / "real").iterdir()] == ["out"]


def test_file_has_usual_permissions(folder):
    former = os.umask(0o027)
    try:
        with NewFile(folder / "out"):
            pass
    finally:
        os.umask(former)
    assert stat.S_IMODE((folder / "out").stat().st_mode) == 0o640


@pytest.mark.parametrize("name, message", [("no/out", "No such file or directory"), ("", "Is a directory")])
def test_output_that_cannot_be_made(generator, folder, name, message):
    (folder / "in.txt").write_text("one\n")
    with pytest.raises(OutputError, match=f"cannot be written: {message}"):
        run_file(generator, folder / "in.txt", folder / name)
    assert issubclass(OutputError, BertgenError) and issubclass(OutputError, OSError)


@pytest.fixture
def nobody():
    """A folder that all may enter and none may write to, and a process without root's rights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "in.txt").write_text("one\n")
        path.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield path
        os.seteuid(user)
        path.chmod(0o700)


def test_folder_without_permission(generator, nobody):
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="out.txt cannot be written: Permission denied"):
            run_file(generator, nobody / "in.txt", nobody / "out.txt", overwrite=overwrite)
    assert names(nobody) == ["in.txt"]


@pytest.mark.parametrize("lines", [1, 20_000], ids=["at the end", "in the middle"])
def test_full_disk_is_an_error(generator, folder, lines):
    """A device is written to as it is and stays a device."""
    with pytest.raises(OutputError, match="/dev/full cannot be written: No space left on device"):
        (folder / "in.txt").write_bytes(b"\n" * lines)
        run_file(generator, folder / "in.txt", "/dev/full")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    assert run_file(generator, folder / "in.txt", os.devnull).lines == lines


@pytest.mark.parametrize("size, lines", [(5, 1), (9_000, 2_000)], ids=["at the end", "in the middle"])
def test_file_that_may_not_grow(folder, size, lines):
    """As on a full disk, with a file: no part of it appears, wherever the limit strikes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    written = 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"), NewFile(folder / "out") as file:
            for _ in range(lines):
                file.write(b"x" * 10)
                written += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(folder.iterdir()) == [] and (written < lines) == (lines > 1)


# running


def test_output_appears_only_when_whole(generator, folder):
    (folder / "in.txt").write_bytes(b"one\n" * 50)
    seen = []
    for report in follow_file(generator, folder / "in.txt", folder / "out.txt", window=10):
        assert (folder / "out.txt").exists() == (len(seen) == 51)
        seen.append(report.lines)
    assert seen == [*range(51), 50] and (folder / "out.txt").read_bytes() == b"eins\n" * 50


def test_job_that_is_left_before_its_first_window_ends_leaves_nothing(generator, folder):
    (folder / "in.txt").write_bytes(b"one\n" * 50)
    reports = follow_file(generator, folder / "in.txt", folder / "out.txt", window=10)
    assert [next(reports).lines for _ in range(2)] == [0, 1]
    assert names(folder) == ["in.txt", "out.txt.job", "out.txt.part"]
    reports.close()
    assert names(folder) == ["in.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError("the input's disk failed")])
def test_error_on_the_way_leaves_nothing_and_is_itself(generator, folder, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(generator.model, "encoded", fail)
    with pytest.raises(error if isinstance(error, type) else OSError) as raised:
        run(generator, folder, b"one\n")
    assert not isinstance(raised.value, OutputError)
    assert [path.name for path in folder.iterdir()] == ["in.txt"]


def test_lines_of_a_pipe_are_answered_as_they_come(generator):
    """What is there at once is answered together; nobody waits for a window to fill."""
    reader, writer = os.pipe()
    written, windows = [], []
    stream = generator.stream

    class Watched:
        """The generator, which tells what it is asked."""

        def __getattr__(self, name):
            return getattr(generator, name)

        def stream(self, texts, **options):
            windows.append(list(texts))
            return stream(texts, **options)

    with open(reader, "rb") as pipe:
        reports = follow_lines(Watched(), text_input.lines_of(pipe, "x"), written.append, name="x")
        next(reports)
        os.write(writer, b"one\n")
        assert next(reports).lines == 1 and written == [b"eins\n"], "though the pipe is open"
        os.write(writer, b"two\nthree\nfo")
        assert [next(reports).lines for _ in range(2)] == [2, 3]
        thread = threading.Thread(target=lambda: (time.sleep(0.2), os.write(writer, b"ur"), os.close(writer)))
        thread.start()
        assert [report.lines for report in reports] == [4, 4]
        thread.join()
    assert written == [b"eins\n", b"zwei\n", b"drei\n", b"vier"]
    assert windows == [[], ["one"], ["two", "three"], ["four"]]


def test_a_file_fills_whole_windows(generator, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"one\n" * 25)
    with open(tmp_path / "in.txt", "rb") as file:
        *_, report = follow_lines(generator, text_input.lines_of(file, "x"), lambda _: None, name="x", window=10)
    assert (report.lines, report.windows) == (25, 3)


def test_a_window_suits_the_model(generator, monkeypatch):
    """On a CPU about ten seconds of work; the same for the same options, so that a resumed job finds its windows."""
    assert generate.default_window(generator, {}) == 1024
    monkeypatch.setattr(type(generator.model), "num_parameters", lambda _: 1 << 27)
    assert [generate.default_window(generator, {"num_beams": n}) for n in (1, 2, 4, 5, 100)] == [256, 128, 64, 64, 64]
    assert generate.default_window(generator, {"num_beams": 1, "num_return_sequences": 2, "do_sample": True}) == 128


def test_memory_is_bounded(generator):
    """Endless lines: reading stays one look-ahead before writing, and nothing that was written is kept."""
    read, written = 0, []

    def lines():
        nonlocal read
        while True:
            read += 1
            yield b"one\n" if read % 3 else b"\xff\n"

    reports = follow_lines(generator, lines(), written.append, name="x", window=10)
    for report in reports:
        assert read - report.lines < 10
        if report.lines == 95:
            break
    assert read == 100 and report.failed <= 33
    assert len(written) >= 90
    assert written[:3] == [b"eins\n", b"eins\n", b"\n"]


def test_sampled_job_is_reproducible(generator, folder):
    content = b"white black dog\n" * 40
    options = dict(do_sample=True, temperature=3.0, overwrite=True, window=15)
    first = run(generator, folder, content, seed=1, **options)[1]
    assert run(generator, folder, content, seed=1, **options)[1] == first
    assert run(generator, folder, content, seed=2, **options)[1] != first
    assert len(set(first.splitlines())) > 10
