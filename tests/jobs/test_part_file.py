"""The unfinished output of a job: one writer, files of others, damage, a full disk."""

import json
import resource

import pytest

from bertgen import ConfigError, OutputError
from bertgen.jobs import follow_file, part_file, run_file
from tests.support.jobs import begun, names


def test_one_writer(echo, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"one\n" * 9)
    files = (tmp_path / "in.txt", tmp_path / "out.txt")
    reports = follow_file(echo, *files, window=3)
    assert [next(reports).lines for _ in range(6)][-1] == 5
    for options in ({}, {"restart": True}, {"overwrite": True}):
        with pytest.raises(ConfigError, match=r"another process is writing .*out.txt: it holds .*out.txt.part"):
            run_file(echo, *files, window=3, **options)
    *_, last = reports
    assert last.lines == 9 and files[1].read_bytes().count(b"\n") == 9


def test_writer_that_comes_when_another_ends_leaves_its_output_alone(echo, tmp_path, monkeypatch):
    """It has opened OUT.part, and before it can lock it the file is called OUT."""
    (tmp_path / "in.txt").write_bytes(b"one\n" * 9)
    files = (tmp_path / "in.txt", tmp_path / "out.txt")
    reports = follow_file(echo, *files, window=3)
    next(reports)
    lock = part_file.fcntl.flock

    def end_first(*arguments):
        monkeypatch.setattr(part_file.fcntl, "flock", lock)
        assert list(reports)
        lock(*arguments)

    monkeypatch.setattr(part_file.fcntl, "flock", end_first)
    with pytest.raises(ConfigError, match="is there already"):
        run_file(echo, *files, window=3)
    assert files[1].read_bytes().count(b"\n") == 9 and names(tmp_path) == ["in.txt", "out.txt"]


def test_file_system_without_locks(echo, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(part_file.fcntl, "flock", refuse)
    begun(echo, tmp_path, b"one\n" * 9, 7, window=3)
    assert run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=3).before.lines == 6


def test_part_of_someone_else_stays(echo, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"one\n")
    (tmp_path / "out.txt.part").write_bytes(b"precious")
    with pytest.raises(
        ConfigError, match="out.txt.part is there without .*out.txt.job, and may belong to another program"
    ):
        run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt")
    assert (tmp_path / "out.txt.part").read_bytes() == b"precious"
    (tmp_path / "out.txt.part").unlink()
    (tmp_path / "out.txt.part").symlink_to(tmp_path / "in.txt")
    with pytest.raises(OutputError, match="Too many levels of symbolic links"):
        run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt")
    assert (tmp_path / "in.txt").read_bytes() == b"one\n"


@pytest.mark.parametrize("name", ["out.txt.part", "out.txt.job", "out.txt.job.tmp"])
def test_input_is_none_of_the_files_of_the_job(echo, tmp_path, name):
    (tmp_path / name).write_bytes(b"one\n")
    with pytest.raises(ConfigError, match="is the input, or grows there"):
        run_file(echo, tmp_path / name, tmp_path / "out.txt", format="text", restart=True)
    assert names(tmp_path) == [name]


DAMAGE = {
    "empty": lambda saved: b"",
    "no JSON": lambda saved: b"{",
    "a list": lambda saved: b"[]",
    "deep": lambda saved: b"[" * 100_000,
    "version": lambda saved: {**saved, "version": 2},
    "no version": lambda saved: {"task": {}},
    "bytes": lambda saved: {**saved, "bytes": -1},
    "digest": lambda saved: {**saved, "digest": None},
    "task": lambda saved: {**saved, "task": []},
    "report": lambda saved: {**saved, "report": {"lines": 3}},
    "no report": lambda saved: {**saved, "report": {}},
    "lines": lambda saved: {**saved, "report": {**saved["report"], "lines": "3"}},
    "too many lines": lambda saved: {**saved, "report": {**saved["report"], "lines": 10}},
    "seconds": lambda saved: {**saved, "report": {**saved["report"], "seconds": float("nan")}},
    "messages": lambda saved: {**saved, "report": {**saved["report"], "messages": 7}},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_sidecar_that_is_damaged(echo, tmp_path, name):
    begun(echo, tmp_path, b"one\n" * 9, 7, window=3)
    sidecar = tmp_path / "out.txt.job"
    damaged = DAMAGE[name](json.loads(sidecar.read_bytes()))
    sidecar.write_bytes(damaged if isinstance(damaged, bytes) else json.dumps(damaged).encode())
    with pytest.raises(ConfigError, match=r"out.txt.job is (damaged|of another version).*; restart throws away"):
        run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=3)
    assert (tmp_path / "out.txt.part").stat().st_size > 0
    assert run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=3, restart=True).lines == 9


@pytest.mark.parametrize("change", ["shorter", "other", "gone"])
def test_part_that_has_changed(echo, tmp_path, change):
    begun(echo, tmp_path, b"one\n" * 9, 7, window=3)
    path = tmp_path / "out.txt.part"
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-60] if change == "shorter" else b"X" + path.read_bytes()[1:])
    with pytest.raises(ConfigError, match=r"out.txt.part has changed: its first \d+ bytes are not those of"):
        run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=3)


def test_output_that_appears_meanwhile_stays_and_the_job_too(echo, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"one\n" * 9)
    files = (tmp_path / "in.txt", tmp_path / "out.txt")
    reports = follow_file(echo, *files, window=3)
    next(reports)
    files[1].write_bytes(b"theirs")
    for _ in range(2):
        with pytest.raises(ConfigError, match="out.txt is there already; overwrite replaces it"):
            list(reports)
        assert files[1].read_bytes() == b"theirs"
        reports = follow_file(echo, *files, window=3)
    report = run_file(echo, *files, window=3, overwrite=True)
    assert (report.before.lines, files[1].read_bytes().count(b"\n")) == (9, 9)


@pytest.mark.parametrize("room", [0, 50, 700, 2000])
def test_disk_that_is_full_for_a_while(echo, tmp_path, room):
    (tmp_path / "in.txt").write_bytes(b"one two three\n" * 100)
    files = (tmp_path / "in.txt", tmp_path / "out.txt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OutputError, match="out.txt cannot be written: File too large"):
            run_file(echo, *files, window=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not files[1].exists()
    report = run_file(echo, *files, window=10)
    assert (report.before is not None) == (room >= 700)
    run_file(echo, files[0], tmp_path / "whole.txt", window=10)
    assert files[1].read_bytes() == (tmp_path / "whole.txt").read_bytes()
    assert names(tmp_path) == ["in.txt", "out.txt", "whole.txt"]


LINEAR = "in float32 inference cpp for at most 64 rows, where the extension is, and onednn for weights of at least 9"


@pytest.mark.parametrize(
    ("then", "resumes"),
    [
        ({"operator linear": f"{LINEAR} elements, else reference"}, True),
        ({}, True),  # a version that did not describe this operator
        ({"operator linear": "reference: BERTGEN_BACKEND or set_backend asks for it"}, False),
        ({"operator linear": f"{LINEAR} elements, else reference", "window": 4}, False),
    ],
)
def test_a_job_resumes_whatever_words_describe_the_same_backends(echo, tmp_path, monkeypatch, then, resumes):
    """A version of bertgen describes operators in other words than the one that began the job."""
    now = {"operator linear": "cpp or onednn where they are faster; else reference", "window": 3}
    monkeypatch.setattr("bertgen.jobs.job.job_metadata", lambda *_: {"window": 3, **then})
    begun(echo, tmp_path, b"one\n" * 9, 7, window=3)
    monkeypatch.setattr("bertgen.jobs.job.job_metadata", lambda *_: now)
    arguments = (echo, tmp_path / "in.txt", tmp_path / "out.txt")
    if resumes:
        assert run_file(*arguments, window=3).before.lines == 6
    else:
        with pytest.raises(ConfigError, match=r"was begun as another job: (operator linear|window) was"):
            run_file(*arguments, window=3)
