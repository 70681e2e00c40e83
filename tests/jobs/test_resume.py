"""Jobs that are killed, lose power, run out of disk or are called with other options, and go on.

Most have the generator of crashes.py, whose outputs tell where a text stood and in which company.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bertgen import ConfigError, Generator, InputError, OutputError
from bertgen.files.line_formats import Text
from bertgen.jobs import follow_file, generate, input_file, job, part_file, run_file, windows
from bertgen.jobs.generate import OutputFields, format_settings
from bertgen.jobs.metadata import job_metadata
from tests.support.checkpoints import sentence
from tests.support.crashes import ODD, Died, Disk, Echo, fake_metadata, forked

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("BERTGEN_KILLS", "5"))
SEED = int(os.environ.get("BERTGEN_SEED", "1"))


@pytest.fixture
def echo(monkeypatch):
    monkeypatch.setattr(job, "job_metadata", fake_metadata)
    monkeypatch.setattr(generate, "default_window", lambda *_: 1024)  # which asks the model
    return Echo()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def begun(generator, folder, content, lines, **options):
    """Runs a job on these bytes until so many lines are answered, and leaves it."""
    (folder / "in.txt").write_bytes(content)
    reports = follow_file(generator, folder / "in.txt", folder / "out.txt", **options)
    for report in reports:
        if report.lines == lines:
            break
    reports.close()
    return report


# death


def counts(report):
    return {name: value for name, value in report.saved().items() if name != "seconds"}


@pytest.mark.parametrize("death", ["kill", "torn", "power", "names"])
@pytest.mark.parametrize(
    "options",
    [{"window": 3}, {"window": 3, "overwrite": True}, {"window": 5, "num_shards": 2, "shard_index": 1}],
    ids=["new", "overwrite", "shard"],
)
def test_death_at_every_operation_on_the_disk(echo, tmp_path, monkeypatch, death, options):
    """And again at random ones on the way back: the output is whole or not there, and in the end it is the same."""
    monkeypatch.setattr(part_file, "_BUFFER", 40)  # so that windows are written in several pieces
    options = {"commit_seconds": 0, **options}
    (tmp_path / "in.txt").write_bytes(ODD)
    disk = tmp_path / "disk"
    out = disk / "out.txt"
    r, deaths = random.Random(1), 0

    def begin():
        shutil.rmtree(disk, ignore_errors=True)
        disk.mkdir()
        if "overwrite" in options:
            out.write_bytes(b"old\n")

    def attempt(deadly):
        try:
            with Disk(disk, deadly, death):
                return counts(run_file(echo, tmp_path / "in.txt", out, **options))
        except Died:
            return None

    begin()
    expected = attempt(10**9)
    whole = out.read_bytes()
    lines = (ODD.count(b"\n") + 1) // options.get("num_shards", 1)
    assert whole.count(b"\n") == lines - 1 and expected["lines"] == lines and expected["failed"] > 0
    for deadly in range(1, 1000):
        begin()
        found = attempt(deadly)
        if found:
            break
        for again in (r.randint(1, 40), r.randint(1, 40), 10**9):
            deaths += 1
            assert (out.read_bytes() if out.exists() else b"old\n") in (whole, b"old\n"), deadly
            if names(disk) == ["out.txt"] and out.read_bytes() == whole:
                break  # it died when all was done
            if found := attempt(again):
                assert found == expected, deadly
                break
        assert names(disk) == ["out.txt"] and out.read_bytes() == whole, deadly
    assert 60 < deadly < 500 and deaths > deadly


def crashes(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/support/crashes.py"), str(folder), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kill_at_random_moments(tmp_path):
    """10,000 lines; see crashes.py for what must hold after each death."""
    found = crashes(tmp_path, "kill", KILLS, SEED)
    assert found["killed"] == KILLS and found["jobs"] >= 1, found


def test_signals_at_random_moments(tmp_path):
    """Codes 130 and 143, within 5 seconds, nothing under the output's name, and the same bytes in the end."""
    found = crashes(tmp_path, "signal", KILLS, SEED)
    assert found.get("SIGINT", 0) + found.get("SIGTERM", 0) == KILLS and found["seconds"] < 5, found


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_second_interrupt_ends_at_once(tmp_path):
    """Even where the first waits for something that does not end."""
    code = """
        import signal, sys, time
        from bertgen import cli
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from what runs behind it
        from bertgen.cli import run as command
        class Slow:
            max_input_length = 1
            def stream(self, texts, **_):
                while texts:
                    try:
                        print(end=".", flush=True)
                        time.sleep(60)
                    except KeyboardInterrupt:
                        print(end="!", flush=True)
                yield from ()
        command.make_generator = lambda _: Slow()
        sys.exit(cli.main(["run", "--model", "x", "--window", "1", "text"]))
    """
    code = "\n".join(line[8:] for line in code.splitlines())
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as process:
        for expected in (b".", b"!"):
            assert process.stdout.read(1) == expected
            if expected == b".":
                time.sleep(0.2)
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT and time.monotonic() - sent < 5


def test_process_that_is_killed(tiny_checkpoint, tmp_path):
    """kill -9 of the real command; in another process weights, tokenizer and options are known again."""
    r = random.Random(SEED)
    (tmp_path / "in.txt").write_text("".join(f"{sentence(r)}\n" for _ in range(10_000 if KILLS > 5 else 1_000)))
    out, sidecar = tmp_path / "out.txt", tmp_path / "out.txt.job"
    options = dict(max_new_tokens=8, window=50, do_sample=True, seed=1)
    run_file(Generator(tiny_checkpoint), tmp_path / "in.txt", tmp_path / "whole.txt", **options)
    whole = (tmp_path / "whole.txt").read_bytes()
    command = f"{sys.executable} -m bertgen run --max-new-tokens 8 --window 50 --commit-seconds 0".split()
    command += "--do-sample --seed 1 --model".split()
    command += [tiny_checkpoint, "--input", tmp_path / "in.txt", "--output", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed, resumed, wanted = 0, 0, KILLS if KILLS > 5 else 1
    while killed < wanted or not out.exists():
        if out.exists():
            out.unlink()
        before = sidecar.read_bytes() if sidecar.exists() else b""
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as job:
            while killed < wanted and job.poll() is None:
                if sidecar.exists() and sidecar.read_bytes() not in (b"", before):
                    time.sleep(r.uniform(0, 0.2))
                    job.kill()
                    break
                time.sleep(0.01)
            killed += job.wait(200) != 0
            resumed += b"resuming at line " in job.stderr.read()
        assert not out.exists() or out.read_bytes() == whole
    assert resumed and names(tmp_path) == ["in.txt", "out.txt", "whole.txt"]


# going on


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3, "n_best": 2, "scores": True}, {"do_sample": True, "seed": 3}],
    ids=["beams", "sampling"],
)
def test_outputs_of_a_model_are_the_same_after_a_resume(tiny_checkpoint, tmp_path, options):
    r = random.Random(2)
    content = "".join(f"{sentence(r)}\n" for _ in range(60)).encode()
    options = {**options, "window": 8, "max_new_tokens": 10}
    generator = Generator(tiny_checkpoint)
    begun(generator, tmp_path, content, 60, **options)
    report = run_file(Generator(tiny_checkpoint), tmp_path / "in.txt", tmp_path / "out.txt", **options)
    assert report.before.lines == 56 and report.lines == 60
    again = run_file(generator, tmp_path / "in.txt", tmp_path / "whole.txt", **options)
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "whole.txt").read_bytes()
    assert counts(report) == counts(again) and len(set((tmp_path / "out.txt").read_bytes().splitlines())) > 40


def test_reports_go_on_and_tell_this_run_apart(echo, tmp_path):
    report = begun(echo, tmp_path, b"abc\n" * 3 + b"bad\n" * 4 + b"abc\n" * 13, 9, window=4)
    assert (report.lines, report.committed) == (9, 8)
    time.sleep(0.05)
    reports = follow_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=4)
    first = next(reports)
    assert (first.lines, first.committed, first.before.lines, first.this_run.lines) == (8, 8, 8, 0)
    assert (first.failed, first.tokens, first.input_tokens) == (4, 16, 12)
    *_, last = reports
    assert counts(last) == {
        "windows": 5, "lines": 20, "failed": 4, "truncated": 0, "tokens": 64, "input_tokens": 48, "bytes": 80,
        "messages": [f"{tmp_path}/in.txt, line {i}: bad as such" for i in (4, 5, 6, 7)],
    }  # fmt: skip
    run = last.this_run
    assert (run.windows, run.lines, run.failed, run.tokens, run.bytes) == (3, 12, 0, 48, 48)
    assert 0 < run.seconds < 0.05 < 0.05 + run.seconds and last.seconds == run.seconds + last.before.seconds


@pytest.mark.parametrize("seconds", [0, 1, 5, 60])
def test_commits_come_by_time_and_the_bytes_do_not_know(echo, tmp_path, monkeypatch, seconds):
    """A job that takes a second for each window, killed at any line: it loses what its clock allows, and no byte."""
    (tmp_path / "in.txt").write_bytes(ODD * 3)
    lines, window = 3 * ODD.count(b"\n") + 1, 4
    run_file(echo, tmp_path / "in.txt", tmp_path / "whole.txt", window=window)
    whole, now = (tmp_path / "whole.txt").read_bytes(), [0.0]
    monkeypatch.setattr(job, "clock", lambda: now[0])
    process = windows.WindowProcessor.process

    def slow(*rest):
        yield from process(*rest)
        now[0] += 1

    monkeypatch.setattr(windows.WindowProcessor, "process", slow)
    options = dict(window=window, commit_seconds=seconds)
    out, kept = tmp_path / "out.txt", []
    for death in range(1, lines):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(part_file.PartFile, "mark", mark_or_die(death))
            if forked(lambda: run_file(echo, tmp_path / "in.txt", out, **options)) == 0:
                break
        saved = json.loads((tmp_path / "out.txt.job").read_bytes())
        kept.append(saved["report"].get("lines", 0) // window)
        assert (tmp_path / "out.txt.part").read_bytes()[: saved["bytes"]] == whole[: saved["bytes"]]
        run_file(echo, tmp_path / "in.txt", out, **options)
        assert out.read_bytes() == whole
        out.unlink()
    assert kept == [done - 1 - (done - 1) % max(seconds, 1) for done in range(1, len(kept) + 1)] and len(kept) > 5


def mark_or_die(death):
    """In the place of `PartFile.mark`; its call of this number is the last thing that the process does."""
    mark, calls = part_file.PartFile.mark, iter(range(1, 1000))

    def marked(self):
        mark(self)
        if next(calls) == death:
            os._exit(1)

    return marked


def test_commits_come_by_lines_too(echo, tmp_path, monkeypatch):
    """However fast they are: what a power cut costs has a bound."""
    monkeypatch.setattr(job, "COMMIT_LINES", 8)
    commits, commit = [], part_file.PartFile.commit
    monkeypatch.setattr(part_file.PartFile, "commit", lambda *a, **o: commits.append(a[1]["lines"]) or commit(*a, **o))
    (tmp_path / "in.txt").write_bytes(b"one\n" * 30)
    run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=3, commit_seconds=60)
    assert commits == [9, 18, 27, 30]


def test_what_ends_in_good_order_keeps_all_its_windows(echo, tmp_path):
    """By Ctrl-C, by an error, by a caller that has enough, long before a commit is due."""
    assert begun(echo, tmp_path, b"one\n" * 30, 20, window=3, commit_seconds=1e9).committed == 18
    reports = follow_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=3, commit_seconds=1e9)
    assert next(reports).before.lines == 18
    for report in reports:
        if report.lines == 26:
            with pytest.raises(KeyboardInterrupt):
                reports.throw(KeyboardInterrupt)
    assert report.committed == 24
    assert run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=3).before.lines == 24
    run_file(echo, tmp_path / "in.txt", tmp_path / "whole.txt", window=3)
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "whole.txt").read_bytes()
    assert (tmp_path / "out.txt").read_bytes().count(b"\n") == 30


@pytest.mark.parametrize("seconds", [-1, float("nan"), "2", True, None])
def test_seconds_of_commits_are_checked(echo, tmp_path, seconds):
    (tmp_path / "in.txt").write_bytes(b"one\n")
    with pytest.raises(ConfigError, match="commit_seconds must be a number from 0, got"):
        run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", commit_seconds=seconds)
    assert names(tmp_path) == ["in.txt"]


def test_torn_tail_is_cut_off_whatever_it_is(echo, tmp_path):
    """A disk that loses power may leave anything where nothing was committed."""
    begun(echo, tmp_path, b"one\n" * 9, 7, window=3)
    with open(tmp_path / "out.txt.part", "ab") as file:
        file.write(b"\0" * 10_000)
    run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=3)
    run_file(echo, tmp_path / "in.txt", tmp_path / "whole.txt", window=3)
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "whole.txt").read_bytes()


def test_strict_keeps_what_was_committed(echo, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"one\n" * 5 + b"\xff\n" + b"two\n" * 3)
    files = (tmp_path / "in.txt", tmp_path / "out.txt")
    with pytest.raises(InputError, match="in.txt, line 6: not UTF-8"):
        run_file(echo, *files, window=2, strict=True)
    report = run_file(echo, *files, window=2)
    assert (report.lines, report.failed, report.before.lines) == (9, 1, 4)
    run_file(echo, files[0], tmp_path / "whole.txt", window=2)
    assert files[1].read_bytes() == (tmp_path / "whole.txt").read_bytes()


def test_very_long_lines_make_smaller_windows_and_the_same_after_a_resume(echo, tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "WINDOW_BYTES", 100)
    r = random.Random(3)
    content = "".join("x" * r.choice((1, 30, 150)) + "\n" for _ in range(40)).encode()
    assert begun(echo, tmp_path, content, 30, window=10).windows > 3
    report = run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=10)
    run_file(echo, tmp_path / "in.txt", tmp_path / "whole.txt", window=10)
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "whole.txt").read_bytes() and report.before.lines > 0


# another task


def test_input_that_has_changed(echo, tmp_path):
    begun(echo, tmp_path, b"one\n" * 9, 7, window=3)
    kept = (tmp_path / "out.txt.part").read_bytes(), (tmp_path / "out.txt.job").read_bytes()
    for content in (b"one\n" * 8 + b"two\n", b"one\n" * 10, b""):
        (tmp_path / "in.txt").write_bytes(content)
        message = rf"out.txt was begun as another job: input was 36 bytes, .* and is {len(content)} bytes, .*; restart"
        with pytest.raises(ConfigError, match=message):
            run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=3)
        assert ((tmp_path / "out.txt.part").read_bytes(), (tmp_path / "out.txt.job").read_bytes()) == kept
    run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=3, restart=True)
    assert (tmp_path / "out.txt").read_bytes() == b"" and names(tmp_path) == ["in.txt", "out.txt"]


def test_restart_begins_at_the_first_line(echo, tmp_path):
    begun(echo, tmp_path, b"one\n" * 9, 7, window=3)
    report = run_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=2, restart=True)
    assert report.before is None and report.lines == 9
    run_file(echo, tmp_path / "in.txt", tmp_path / "whole.txt", window=2)
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "whole.txt").read_bytes()
    assert names(tmp_path) == ["in.txt", "out.txt", "whole.txt"]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"num_beams": 3}, "num_beams was 2 and is 3"),
        ({"num_beams": 2, "length_penalty": 2.0}, "length_penalty was not set and is 2.0"),
        ({"n_best": 2}, "n_best was 1 and is 2"),
        ({"scores": True}, "scores was false and is true"),
        ({"seed": 4}, "seed was not set and is 4"),
        ({"truncation": True}, "truncation was false and is true"),
        ({"max_batch_size": 4}, "max_batch_size was not set and is 4"),
        ({"window": 4}, "window was 3 and is 4"),
        ({"format": "tsv"}, "format was Text and is Tsv, column was not set and is 1"),
        ({"num_shards": 2}, "shard was 0 of 1 and is 0 of 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_have_changed(tiny_checkpoint, tmp_path, changed, message):
    generator = Generator(tiny_checkpoint)
    begun(generator, tmp_path, b"one\n" * 9, 7, num_beams=2, window=3)
    options = {"num_beams": 2, "window": 3, **changed}
    with pytest.raises(ConfigError, match=f"was begun as another job: {message}; restart"):
        run_file(generator, tmp_path / "in.txt", tmp_path / "out.txt", **options)
    same = {"max_length": generator.model.generation_config.max_length, "overwrite": True, "truncation": False}
    assert run_file(generator, tmp_path / "in.txt", tmp_path / "out.txt", num_beams=2, window=3, **same).before


def test_task_knows_the_model(tiny_checkpoint, tmp_path):
    """Not by its path: a copy is the same, one other weight, piece or rounding is not."""

    def task(generator, **options):
        found = job_metadata(generator, format_settings(Text(OutputFields(1, False))), 10, options)
        assert json.loads(json.dumps(found)) == json.loads(json.dumps(found))
        return found

    def differing(generator):
        return {name for name, value in task(generator).items() if value != first[name]}

    first = task(Generator(tiny_checkpoint))
    shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    other = Generator(tmp_path / "copy", max_rows=100, max_input_length=20, truncation=True)
    assert differing(other) == {"max_rows", "max_input_length", "truncation"}
    other = Generator(tiny_checkpoint)
    with torch.no_grad():
        next(other.model.parameters())[-1, -1] += 1e-6
    assert differing(other) == {"weights"}
    other = Generator(tiny_checkpoint)
    other.model.config.encoder.layer_norm_eps *= 2
    assert differing(other) == {"weights"}
    assert differing(Generator(tiny_checkpoint, dtype="float16")) <= {"weights", "dtype"}
    other = Generator(tiny_checkpoint)
    other.tokenizer.clean_up_tokenization_spaces = True
    assert differing(other) == {"tokenizer"}
    other = Generator(tiny_checkpoint)
    other.model.generation_config.num_beams = 2
    assert {name for name, value in task(other).items() if value != first.get(name)} == {"num_beams"}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert differing(Generator(tiny_checkpoint)) == {"device"}
    finally:
        torch.set_num_threads(threads)


# one writer, files of others, damage


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
    with pytest.raises(ConfigError, match="out.txt.part is there without .*out.txt.job, and may be of someone else"):
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


def test_input_that_changes_while_it_is_read(echo, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"one\n" * 9)
    reports = follow_file(echo, tmp_path / "in.txt", tmp_path / "out.txt", window=3)
    assert [next(reports).lines for _ in range(6)][-1] == 5
    with open(tmp_path / "in.txt", "ab") as file:
        file.write(b"more\n")
    with pytest.raises(InputError, match="in.txt has changed while it was read"):
        list(reports)
    assert json.loads((tmp_path / "out.txt.job").read_bytes())["report"]["lines"] == 3


# a disk without room


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


# shards


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_outputs_of_shards_are_that_of_the_whole(echo, tmp_path, count):
    """Line by line; which texts stand in a window with it is another matter."""
    content = ODD * 2
    (tmp_path / "in.txt").write_bytes(content)
    run_file(echo, tmp_path / "in.txt", tmp_path / "whole.txt", window=1)
    reports = [
        run_file(echo, tmp_path / "in.txt", tmp_path / f"out-{i:02}.txt", window=1, num_shards=count, shard_index=i)
        for i in range(count)
    ]
    outputs = [(tmp_path / f"out-{i:02}.txt").read_bytes() for i in range(count)]
    assert b"".join(outputs) == (tmp_path / "whole.txt").read_bytes()
    lines = content.count(b"\n") + 1
    assert [report.lines for report in reports] == [lines * (i + 1) // count - lines * i // count for i in range(count)]
    assert sum(report.total_bytes for report in reports) == len(content)
    messages = [message for report in reports for message in report.messages]
    assert messages == run_file(echo, tmp_path / "in.txt", tmp_path / "whole.txt", window=1, overwrite=True).messages


def test_source_finds_every_line(tmp_path, monkeypatch):
    monkeypatch.setattr(input_file, "_CHUNK", 7)
    r = random.Random(4)
    for trial in range(200):
        content = bytes(r.choices(b"ab\n\r", (3, 3, r.choice((0, 1, 9)), 1), k=trial))
        (tmp_path / "in.txt").write_bytes(content)
        with open(tmp_path / "in.txt", "rb") as file:
            found = input_file.InputFile(file, "in.txt")
            lines = [line + b"\n" for line in content.split(b"\n")[:-1]] + [content.split(b"\n")[-1]] * (
                content[-1:] not in (b"", b"\n")
            )
            assert (found.lines, found.bytes) == (len(lines), len(content))
            for first in range(len(lines) + 1):
                assert found.offset(first) == sum(map(len, lines[:first]))
                end = r.randint(first, len(lines))
                assert list(found.read(found.offset(first), end - first)) == lines[first:end]


def test_shards_are_of_files(echo, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"one\n")
    with pytest.raises(ConfigError, match="shards are of files: .* or /dev/null is none"):
        run_file(echo, tmp_path / "in.txt", os.devnull, num_shards=2)


# pipes


def test_pipes_are_read_and_written_directly(echo, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"one\n" * 9)
    run_file(echo, tmp_path / "in.txt", tmp_path / "whole.txt", window=2)
    for end in ("in", "out"):
        os.mkfifo(tmp_path / end)
        other = subprocess.Popen(
            f"cat '{tmp_path}/in.txt' > '{tmp_path}/in'"
            if end == "in"
            else f"cat '{tmp_path}/out' > '{tmp_path}/copy'",
            shell=True,
        )
        files = (tmp_path / "in", tmp_path / "copy") if end == "in" else (tmp_path / "in.txt", tmp_path / "out")
        report = run_file(echo, *files, window=2)
        assert other.wait(10) == 0 and (report.lines, report.committed, report.total_bytes) == (9, None, None)
        assert (tmp_path / "copy").read_bytes() == (tmp_path / "whole.txt").read_bytes()
        (tmp_path / "copy").unlink()
    assert names(tmp_path) == ["in", "in.txt", "out", "whole.txt"]
