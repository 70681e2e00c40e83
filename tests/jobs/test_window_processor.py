"""Windows of lines: lines that fail, a first window without a result, pipes, bounded memory."""

import os
import threading
import time

import pytest
import torch

from bertgen import InputError
from bertgen.files import text_input
from bertgen.generator import Output
from bertgen.jobs import follow_lines
from tests.support.jobs import names, run


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
    """Where it is known before the model runs, not even to a pipe."""
    written = []
    with pytest.raises(InputError, match="each of the first 2 lines failed"):
        list(follow_lines(Silent(), [b"{\n", b"{\n"], written.append, name="x", format="jsonl", window=2))
    assert written == []


class Silent:
    """In the place of a Generator that must not run."""

    def stream(self, texts, **options):
        assert not texts
        return iter(())


def test_lines_of_a_pipe_are_answered_as_they_come(generator):
    """Lines that arrive together are processed together; they do not wait for a window to fill."""
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


def test_bad_line_after_the_first_windows(generator, folder):
    content = b"one\n" * 25 + b"\xff\n"
    with pytest.raises(InputError, match="line 26: not UTF-8"):
        run(generator, folder, content, window=10, strict=True)
    assert (folder / "out.txt.part").read_bytes() == b"eins\n" * 20
    report, written = run(generator, folder, content, window=10)
    assert written == b"eins\n" * 25 + b"\n" and report.failed == 1
