"""Jobs that die: a disk to die at, and processes to kill.

    python tests/support/crashes.py FOLDER kill N SEED    N times kill -9 at a random moment of a job of 10,000 lines
    python tests/support/crashes.py FOLDER signal N SEED  the same with SIGINT and SIGTERM, to the command line

The processes are forked from one that has imported torch. They print one line of JSON.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import stat
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

from bertgen import InputError, cli
from bertgen.cli import run as command
from bertgen.generator import Output
from bertgen.jobs import JobReport, job, run_file


class Echo:
    """In the place of a Generator; answers the longest text first.

    Its outputs say which text they are of, where it stood, and which texts stood beside it, so that any line that is
    lost, doubled, misplaced or answered in other company shows.
    """

    max_input_length = 100

    def __init__(self, pause: float = 0.0):
        self.pause = pause  # seconds for each call

    def stream(self, texts, *, return_errors=False, first=0, **options):
        time.sleep(self.pause)
        company = zlib.crc32("\n".join(texts).encode())
        for place, text in sorted(enumerate(texts), key=lambda item: -len(item[1])):
            if text == "bad":
                yield first + place, Output(first + place, "", error=InputError("bad as such"))
            else:
                ids = tuple(range(len(text) + 1))
                yield first + place, Output(first + place, f"{first + place} {company} {text!r}", ids, input_tokens=3)


def fake_metadata(generator, format_settings, window, options):
    """In the place of `job_metadata`, which needs a model."""
    return {"window": window, "seed": options.get("seed")}


# A byte-order mark, CRLF, NUL, empty lines, lines that are no UTF-8 and that the generator refuses; no end at the end.
ODD = b"\xef\xbb\xbfone\r\n\ntwo\x00\n\xff\xfe\nbad\nthree\r\r\n\xe2\x80\xa8 \n\nfour\nfive\n\xc3\nlast"


class Died(BaseException):
    """The process is dead: whatever it tries to write from here on does not happen."""


class _Pieces(io.FileIO):
    """A file that is written by `os.write`."""

    def write(self, data):
        return os.write(self.fileno(), bytes(data))


class Disk:
    """Raises Died at the `deadly`-th operation on the disk, as a process dies or a computer without power.

    Args:
        folder: of the files that count, with those below it.
        deadly: number of the operation, from 1.
        death: "kill": before it. "torn": after half of it, where it is a write. "power": before it, and of all files
            and folders there is what was synced. "names": the same, but the names in the folders are on the disk
            already: where a file was renamed before it was synced, it is empty.
        always: die at the end of the block at the latest.
    """

    COUNTED = ("open", "write", "fsync", "replace", "rename", "unlink", "ftruncate", "mkdir", "rmdir")

    def __init__(self, folder: Path, deadly: int, death: str, always: bool = False):
        self.folder, self.deadly, self.death, self.always, self.count = folder, deadly, death, always, 0
        self.contents: dict[int, bytes] = {}  # inode of a file -> what is on the disk of it
        self.names: dict[int, dict[str, int]] = {}  # inode of a folder -> its names on the disk, with their inodes
        self.kept: dict[int, int] = {}  # inode -> an open handle, so that no other file gets the number
        self.real = {name: getattr(os, name) for name in self.COUNTED} | {"fdopen": os.fdopen}

    def __enter__(self):
        for path in self._tree():
            self._sync(path)
        for name, function in self.real.items():
            setattr(os, name, getattr(self, f"_{name}", None) or self._counted(function))
        return self

    def __exit__(self, *_):
        for name, function in self.real.items():
            setattr(os, name, function)
        if (self.count >= self.deadly or self.always) and self.death in ("power", "names"):
            self._lose()
        for handle in self.kept.values():
            os.close(handle)

    def _tree(self):
        return [self.folder, *self.folder.rglob("*")]

    def _entries(self, path):
        """Names in a folder, with their inodes."""
        return {child.name: self._keep(child) for child in path.iterdir()}

    def _keep(self, path):
        """The inode of a file or folder, which no other one gets from now on."""
        number = path.stat().st_ino
        if number not in self.kept:
            self.kept[number] = self.real["open"](path, os.O_RDONLY)
        return number

    def _sync(self, path):
        if path.is_dir():
            self.names[self._keep(path)] = self._entries(path)
        else:
            self.contents[self._keep(path)] = path.read_bytes()

    def _counted(self, function):
        def call(*arguments, **options):
            self._step()
            return function(*arguments, **options)

        return call

    def _open(self, path, flags, *rest, **options):
        if self.count >= self.deadly:
            raise Died
        return self.real["open"](path, flags, *rest, **options)

    def _fdopen(self, handle, mode):
        """A buffered file whose pieces are written one by one by `os.write`."""
        return io.BufferedWriter(_Pieces(handle, mode))

    def _write(self, handle, data):
        if self.death == "torn" and self.count + 1 == self.deadly:
            self.real["write"](handle, data[: len(data) // 2])
        self._step()
        return self.real["write"](handle, data[: max(1, len(data) // 2)])  # all at once is not promised

    def _fsync(self, handle):
        self._step()
        own = os.fstat(handle).st_ino
        for path in self._tree():
            if path.stat().st_ino == own:
                self._sync(path)

    def _step(self):
        self.count += 1
        if self.count >= self.deadly:
            raise Died

    def _lose(self):
        if self.death == "names":
            for path in self._tree():
                if path.is_dir():
                    self._sync(path)
        number = self.folder.stat().st_ino
        for path in list(self.folder.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._restore(self.folder, number)

    def _restore(self, folder, number):
        for name, child in self.names.get(number, {}).items():
            if stat.S_ISDIR(os.fstat(self.kept[child]).st_mode):
                (folder / name).mkdir()
                self._restore(folder / name, child)
            else:
                (folder / name).write_bytes(self.contents.get(child, b""))


def forked(function) -> int:
    """What a child process that calls the function exits with; minus the number of the signal that ends it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        function()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def lines_of(r: random.Random, count: int) -> bytes:
    odd = ODD.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return b"\n".join(r.choice(odd) if r.random() < 0.1 else b"x" * r.randint(0, 60) for _ in range(count))


def kill(folder: Path, number: int, seed: int) -> dict:
    """Kill jobs of 10,000 lines; each is resumed until it ends."""
    r = random.Random(seed)
    (folder / "in.txt").write_bytes(lines_of(r, 10_000))
    out, part_of_it, sidecar = (folder / f"out.txt{end}" for end in ("", ".part", ".job"))

    def run(pause):
        run_file(Echo(pause), folder / "in.txt", out, window=100, commit_seconds=0)

    start = time.monotonic()
    assert forked(lambda: run(0.002)) == 0
    length, whole = time.monotonic() - start, out.read_bytes()
    assert whole.count(b"\n") == 9_999
    out.unlink()
    killed, torn, jobs = 0, 0, 0
    while killed < number:
        child = os.fork()
        if child == 0:
            try:
                run(0.002)
                os._exit(0)
            finally:
                os._exit(1)
        time.sleep(r.uniform(0, length / 3))
        os.kill(child, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, -signal.SIGKILL), ended
        killed += ended != 0
        if out.exists():  # even if it was killed: it was about to end
            assert out.read_bytes() == whole
            jobs += 1
            out.unlink()
            sidecar.unlink(missing_ok=True)
        elif part_of_it.exists() and sidecar.exists():
            committed = json.loads(sidecar.read_bytes())["bytes"]
            torn += part_of_it.stat().st_size > committed
            assert part_of_it.read_bytes()[:committed] == whole[:committed]
    assert forked(lambda: run(0.0)) == 0
    jobs += 1
    assert out.read_bytes() == whole
    return {"killed": killed, "jobs": jobs, "torn": torn}


def interrupt(folder: Path, number: int, seed: int) -> dict:
    """SIGINT and SIGTERM to `bertgen run`, at random moments; it is resumed until it ends."""
    r = random.Random(seed)
    (folder / "in.txt").write_bytes(lines_of(r, 10_000))
    out = folder / "out.txt"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes its background jobs ignore SIGINT
    arguments = ["run", "--model", "x", "--input", f"{folder}/in.txt", "--output", str(out), "--window", "100"]
    command.make_generator = lambda _: Echo(0.002)

    def run(ready=None):
        os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        count = JobReport.count

        def counting(*rest):
            if ready:
                os.write(ready, b".")
                JobReport.count = count
            count(*rest)

        JobReport.count = counting
        os._exit(cli.main(arguments))

    assert forked(run) == 1, (folder / "stderr").read_text()
    whole = out.read_bytes()
    out.unlink()
    stopped, slowest = Counter(), 0.0
    while stopped.total() < number:
        number_of = r.choice([signal.SIGINT, signal.SIGTERM])
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            run(writer)
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        time.sleep(r.uniform(0, 0.3))
        sent = time.monotonic()
        os.kill(child, number_of)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        slowest = max(slowest, time.monotonic() - sent)
        if ended == 1:  # it had come to its end, with some lines that failed
            assert out.read_bytes() == whole
            out.unlink()
            continue
        said = (folder / "stderr").read_text()
        if out.exists():  # it was about to end, perhaps not even the command any more
            assert ended in (128 + number_of, -number_of), (ended, said)
            assert out.read_bytes() == whole
            out.unlink()
            (folder / "out.txt.job").unlink(missing_ok=True)
        else:
            assert ended == 128 + number_of and "Traceback" not in said, (ended, said)
        stopped[number_of.name] += 1
    assert forked(run) == 1
    assert out.read_bytes() == whole
    return {**stopped, "seconds": round(slowest, 2)}


if __name__ == "__main__":
    place, kind, *numbers = sys.argv[1:]
    job.job_metadata = fake_metadata
    print(json.dumps({"kill": kill, "signal": interrupt}[kind](Path(place), *map(int, numbers))))
