"""Text, TSV and JSON lines: what a job reads from a line and writes as its record."""

import json

import pytest

from bertgen import ConfigError, InputError
from bertgen.files import text_input
from bertgen.files.line_formats import read_pairs
from bertgen.jobs import run_file
from tests.support.jobs import names, run


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


# pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a\tb\nno tab\n", r"line 2: 1 tab-separated columns, 2 needed: 'no tab'"),
        (b"a\tb\n\na\tb\n", r"line 2: 1 tab-separated columns"),
        (b"a\tb\na\t \n", r"line 2: the target is empty"),
        (b"a\tb\na\tb\n\tb\n", r"line 3: the source is empty"),
        (b"a\tb\n\xff\tb\n", r"line 2: not UTF-8: invalid start byte at byte 0"),
        (b"", r"no pairs"),
    ],
)
def test_malformed_data_names_file_and_line(tmp_path, text, message):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(text)
    with pytest.raises(InputError, match=r"pairs\.tsv(, |: )" + message):
        read_pairs(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a\tb\n\nc\td\n", "line 2: 1 tab-separated columns"),
        ("a\tb\n".encode("utf-16"), "train.tsv is UTF-16"),
        (b"\x1f\x8b\x08\x00", "train.tsv is compressed by gzip"),
        (b"a\tb\n" + b"x" * 200 + b"\tb\n", "line 2: 203 bytes, the limit of a line is 100"),
    ],
)
def test_what_is_no_text_or_does_not_end_is_named(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(text_input, "LINE_BYTES", 100)
    (tmp_path / "train.tsv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / "train.tsv")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".gz"])
def test_other_kinds_of_files_are_refused_by_name(tmp_path, suffix):
    (tmp_path / f"train{suffix}").write_bytes(b"a\tb\n")
    with pytest.raises(ConfigError, match=f"{suffix} is not read here, but tsv and text are"):
        read_pairs(tmp_path / f"train{suffix}")
    (tmp_path / "train.de-en").write_bytes(b"a\tb\n\n \n")
    assert read_pairs(tmp_path / "train.de-en") == [("a", "b")], "blank lines at the end are no lines"


def test_columns_line_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes("\ufeff1\tja\tyes\r\n2\tnein\u2028!\tno\r\n".encode())
    assert read_pairs(path, 3, 2) == [("yes", "ja"), ("no", "nein\u2028!")]
    with pytest.raises(InputError, match=r"missing\.tsv cannot be read: No such file"):
        read_pairs(tmp_path / "missing.tsv")


def test_a_long_line_that_begins_with_blanks_is_no_blank_line_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(text_input, "LINE_BYTES", 100)
    (tmp_path / "pairs.tsv").write_bytes(b"a\tb\n" + b" " * 100 + b"c\td\n \n")
    with pytest.raises(InputError, match="pairs.tsv, line 2: 104 bytes, the limit of a line is 100"):
        read_pairs(tmp_path / "pairs.tsv")
