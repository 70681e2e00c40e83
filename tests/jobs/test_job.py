"""Files in, files out: one record per line, in order, and nothing under the output's name unless it is whole.

What happens to a job that is killed, and resumed, is in test_resume.py.
"""

import json
import os
import random
import stat
import tempfile
from pathlib import Path

import pytest

from bertgen import BertgenError, ConfigError, InputError, OutputError, UnsupportedError
from bertgen.jobs import follow_file, run_file
from tests.support.checkpoints import sentence
from tests.support.jobs import names, run

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


def test_output_must_not_be_the_input(generator, folder):
    (folder / "in.txt").write_text("one\n")
    (folder / "link.txt").symlink_to(folder / "in.txt")
    for name in ("in.txt", "link.txt"):
        with pytest.raises(ConfigError, match="is the input"):
            run_file(generator, folder / "in.txt", folder / name, overwrite=True)
    assert (folder / "in.txt").read_text() == "one\n"


@pytest.mark.parametrize("name, message", [("no/out", "No such file or directory"), ("", "Is a directory")])
def test_output_that_cannot_be_made(generator, folder, name, message):
    (folder / "in.txt").write_text("one\n")
    with pytest.raises(OutputError, match=f"cannot be written: {message}"):
        run_file(generator, folder / "in.txt", folder / name)
    assert issubclass(OutputError, BertgenError) and issubclass(OutputError, OSError)


@pytest.fixture
def read_only_folder():
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


def test_folder_without_permission(generator, read_only_folder):
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="out.txt cannot be written: Permission denied"):
            run_file(generator, read_only_folder / "in.txt", read_only_folder / "out.txt", overwrite=overwrite)
    assert names(read_only_folder) == ["in.txt"]


@pytest.mark.parametrize("lines", [1, 20_000], ids=["at the end", "in the middle"])
def test_full_disk_is_an_error(generator, folder, lines):
    """A device is written to as it is and stays a device."""
    with pytest.raises(OutputError, match="/dev/full cannot be written: No space left on device"):
        (folder / "in.txt").write_bytes(b"\n" * lines)
        run_file(generator, folder / "in.txt", "/dev/full")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    assert run_file(generator, folder / "in.txt", os.devnull).lines == lines


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


def test_sampled_job_is_reproducible(generator, folder):
    content = b"white black dog\n" * 40
    options = dict(do_sample=True, temperature=3.0, overwrite=True, window=15)
    first = run(generator, folder, content, seed=1, **options)[1]
    assert run(generator, folder, content, seed=1, **options)[1] == first
    assert run(generator, folder, content, seed=2, **options)[1] != first
    assert len(set(first.splitlines())) > 10
