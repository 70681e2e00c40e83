"""Scoring lines of pairs: windows, formats, and lines that cannot be used."""

import json

import pytest

from bertgen import InputError
from bertgen.files import text_input
from bertgen.jobs.score import score_lines


def test_a_first_window_whose_lines_all_fail_ends_the_job(generator):
    written: list = []
    lines = [b"one\n", b"one\n", b"one\teins\n", b"two\n"]
    with pytest.raises(InputError, match="each of the first 2 lines failed"):
        list(score_lines(generator, lines, written.append, name="x", lookahead=2))
    assert written == []
    *_, report = score_lines(generator, lines, written.append, name="x", lookahead=3)
    assert (report.lines, report.failed, len(written)) == (4, 3, 4)


def test_an_array_is_no_json_lines(generator):
    with pytest.raises(InputError, match="x is a JSON array"):
        list(score_lines(generator, [b"[\n", b'{"source": "one"}\n', b"]\n"], print, name="x", format="jsonl"))


@pytest.mark.parametrize("options", [{}, {"tokens": True}, {"format": "jsonl"}], ids=["tsv", "tokens", "jsonl"])
@pytest.mark.parametrize("ends", [True, False], ids=["", "without an end"])
def test_a_long_line_that_begins_with_blanks_is_a_failure_and_no_blank_line(generator, tmp_path, options, ends):
    """Only the beginning of a line above 16 MiB is held, and here that is blank."""
    pair = b'{"source": "one", "target": "eins"}' if "format" in options else b"one\teins"
    long = b" " * text_input.LINE_BYTES + pair
    (tmp_path / "data").write_bytes(pair + b"\n \n" + long + b"\n" * ends)
    written: list = []
    with open(tmp_path / "data", "rb") as file:
        *_, report = score_lines(generator, text_input.lines_of(file, "x"), written.append, name="x", **options)
    assert (report.lines, report.failed, report.bytes) == (3, 1, (tmp_path / "data").stat().st_size)
    reason = f"{len(long) + ends} bytes, the limit of a line is {text_input.LINE_BYTES}"
    assert report.messages == [f"x, line 3: {reason}"] and written[1] == b"\n"
    assert written[2] == (json.dumps({"error": reason}).encode() if options else b"") + b"\n"
    with open(tmp_path / "data", "rb") as file, pytest.raises(InputError, match=f"x, line 3: {reason}"):
        list(score_lines(generator, text_input.lines_of(file, "x"), print, name="x", strict=True, **options))
