"""The command as a whole: its help, and an exit code for each way out."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import bertgen
from bertgen import cli
from tests.support.processes import start

ROOT = Path(__file__).parents[2]


def test_help_and_version_need_no_torch():
    """A finder that refuses torch stands for the time that importing it takes."""
    code = """
        import sys
        class Refuse:
            def find_spec(self, name, *_):
                assert name.partition(".")[0] not in ("torch", "numpy", "rich", "sentencepiece"), name
        sys.meta_path.insert(0, Refuse())
        from bertgen.cli import main
        sys.exit(main(sys.argv[1:]))
    """
    code = "\n".join(line[8:] for line in code.splitlines())
    commands = ("run", "score", "evaluate", "compare", "convert", "info")
    for arguments in (["--help"], *([command, "--help"] for command in commands), ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if arguments == ["--version"]:
            assert done.stdout == f"bertgen {bertgen.__version__}\n"
        else:
            assert "141" in done.stdout and "the reader of the output has closed it" in done.stdout, (
                "the exit codes are explained"
            )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["walk"],
        ["run"],
        ["run", "--model", "x", "--num-beam", "4", "one"],
        ["run", "--model", "x", "--num-beams", "four", "one"],
        ["run", "--model", "x", "--early-stopping", "maybe", "one"],
        ["evaluate", "--model", "x"],
        ["train"],
    ],
    ids=" ".join,
)
def test_usage_errors(arguments, capsys):
    """The reason comes first and is not scrolled off the screen by the usage."""
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    reason, usage = err.splitlines()
    assert out == "" and re.match("bertgen.*: error: ", reason) and usage.startswith("usage: bertgen")


def test_signal_handler_is_put_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    cli.main(["info"])
    assert signal.getsignal(signal.SIGTERM) is before


# every way out

# Standard streams, by their numbers: closed, a file, or a pipe without a reader.
WAYS = {
    "all is done": (["one"], {}, 0, "", "eins\n"),
    "some lines fail": (["one", "", "\udcff"], {}, 1, "arguments, line 3: not UTF-8", "eins\n\n\n"),
    "every line fails": (["\udcff", "\udcfe"], {}, 2, "each of the first 2 lines failed", ""),
    "no such model": (["one", "--model", "/no/such"], {}, 3, "/no/such", ""),
    "stdin is closed": ([], {0: None}, 2, "error: stdin cannot be read: Bad file descriptor", ""),
    "stdout is closed": (["one"], {1: None}, 3, "error: stdout cannot be written: Bad file descriptor", ""),
    "stdout is full": (["one"], {1: "/dev/full"}, 3, "error: stdout cannot be written: No space left on device", ""),
    "stdout has no reader": (["one"], {1: "pipe"}, 141, "", ""),
    "a file in a number that was free": (["--input", "in.txt", "--output", "out.txt"], {0: None, 1: None}, 0, "", ""),
    "the output has no reader": (["--input", "in.txt", "--output", "/dev/stdout"], {1: "pipe"}, 141, "", ""),
    "stderr is closed": (["one", "\udcff"], {2: None}, 1, "", "eins\n\n"),
    "stderr is full": (["one", "\udcff"], {2: "/dev/full"}, 1, "", "eins\n\n"),
    "stderr has no reader": (["one", "\udcff"], {2: "pipe"}, 1, "", "eins\n\n"),
    "all is closed": (["one"], {0: None, 1: None, 2: None}, 3, "", ""),
}
# Forks from a process that has imported torch, does to the streams of each child what a shell would, and lets it end.
FORKS = """
    import json, os, sys
    import torch
    torch.set_num_threads(1)
    from bertgen import Generator, cli
    from bertgen.cli import run
    arguments, ways = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    codes = {}
    for name, (more, streams) in ways.items():
        child = os.fork()
        if child == 0:
            for number, stream in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
                where = streams.get(str(number), os.devnull if number == 0 else f"{name}.{number}")
                if where is None:
                    os.close(number)
                    setattr(sys, stream, None)
                    continue
                if where == "pipe":
                    reader, handle = os.pipe()
                    os.close(reader)
                else:
                    handle = os.open(where, os.O_RDWR | os.O_CREAT)
                os.dup2(handle, number)
                os.close(handle)
                setattr(sys, stream, open(number, "w" if number else "r", buffering=1 if number == 2 else -1))
            sys.exit(cli.main([*arguments, *more]))
        codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(codes))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_every_way_out_has_its_code(tiny_checkpoint, tmp_path):
    """As docs/command-line.md says it, without a traceback."""
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    ways = json.dumps({name: way[:2] for name, way in WAYS.items()})
    command = [sys.executable, "-c", textwrap.dedent(FORKS), json.dumps(["run", "--model", str(tiny_checkpoint)]), ways]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONUNBUFFERED", None)  # which would hide what a full buffer does when Python ends
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: way[2] for name, way in WAYS.items()}
    for name, (_, streams, _, said, out) in WAYS.items():
        if 1 not in streams:
            assert (tmp_path / f"{name}.1").read_text() == out, name
        if 2 not in streams:
            err = (tmp_path / f"{name}.2").read_text()
            assert said in err and "Traceback" not in err, (name, err)
    assert (tmp_path / "out.txt").read_text() == "eins\nzwei\n"


@pytest.mark.parametrize(
    "line, code, said",
    [
        ("bertgen --help > /dev/full", 3, b"error: stdout cannot be written: No space left on device"),
        ("bertgen --version >&-", 3, b"error: stdout cannot be written: Bad file descriptor"),
        ("set -o pipefail; bertgen --help | true", 141, b""),
        ("bertgen run --bad 2>&-", 2, b""),
    ],
)
def test_ways_out_through_a_shell(line, code, said):
    line = line.replace("bertgen", f"{sys.executable} -m bertgen", 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)  # argparse passes over what it is told at once
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (code, b""), done.stderr
    assert said in done.stderr and b"Traceback" not in done.stderr


def test_an_unbuffered_stdout_that_is_full_is_named():
    line = f"{sys.executable} -m bertgen info > /dev/full"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True)
    assert done.returncode == 3 and b"error: stdout cannot be written: No space left on device" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_pipe_is_answered_as_it_comes_until_an_interrupt(tiny_checkpoint):
    job = start("run", "--model", tiny_checkpoint, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for source, target in ((b"one\n", b"eins\n"), (b"two\nthree\n", b"zwei\n"), (b"", b"drei\n")):
        job.stdin.write(source)
        job.stdin.flush()
        assert job.stdout.readline() == target, "while the pipe stays open"
    job.send_signal(signal.SIGINT)
    assert job.wait(30) == 130 and job.stdout.read() == b"" and job.stderr.read() == b"bertgen: interrupted\n"
    for stream in (job.stdin, job.stdout, job.stderr):
        stream.close()
