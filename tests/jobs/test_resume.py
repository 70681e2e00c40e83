"""Jobs that are killed, lose power, run out of disk or are called with other options, and go on.

Most have the generator of crashes.py, whose outputs tell where a text stood and in which company.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bertgen import ConfigError, Generator, InputError
from bertgen.jobs import follow_file, job, part_file, run_file, window_processor
from tests.support.checkpoints import sentence
from tests.support.crashes import ODD, Died, Disk, forked
from tests.support.jobs import begun, names

ROOT = Path(__file__).parents[2]


KILLS = int(os.environ.get("BERTGEN_KILLS", "5"))


SEED = int(os.environ.get("BERTGEN_SEED", "1"))


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
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes its background jobs ignore SIGINT
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

    def committed():
        """Lines that the next run finds; 0 before the first commit, when OUT.job may be there."""
        try:
            return json.loads(sidecar.read_bytes())["report"].get("lines", 0)
        except FileNotFoundError:
            return 0

    killed, resumed, wanted = 0, 0, KILLS if KILLS > 5 else 1
    while killed < wanted or not out.exists():
        if out.exists():  # the job ended before its kill
            out.unlink()
            sidecar.unlink(missing_ok=True)
        before = committed()
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as job:
            while killed < wanted and job.poll() is None:
                if committed() > before:
                    time.sleep(r.uniform(0, 0.2))
                    job.kill()
                    break
                time.sleep(0.01)
            killed += job.wait(200) != 0 and not out.exists()
            said = job.stderr.read()
        assert (b"resuming at line %d of" % (before + 1) in said) == (before > 0), said
        resumed += before > 0
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
    process = window_processor.WindowProcessor.process

    def slow(*rest):
        yield from process(*rest)
        now[0] += 1

    monkeypatch.setattr(window_processor.WindowProcessor, "process", slow)
    options = dict(window=window, commit_seconds=seconds)
    out, kept = tmp_path / "out.txt", []
    for death in range(1, lines):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(part_file.PartFile, "end_window", mark_or_die(death))
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
    """In the place of `PartFile.end_window`; its call of this number is the last thing that the process does."""
    mark, calls = part_file.PartFile.end_window, iter(range(1, 1000))

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
    monkeypatch.setattr(window_processor, "WINDOW_BYTES", 100)
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
