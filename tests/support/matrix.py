"""The tests on other interpreters and with other versions: `make test-matrix`, or ROWS="numpy-1 clang" of its rows.

Each row is a copy of the sources, a virtual environment and a test run, under build/matrix/ROW. A row that passed is
not run again until the sources or the row change. Rows run one after the other; the environment of a row that passed is
removed, because one with CUDA has 6 GB. With --keep it stays, and a later run brings it up to date.

A row with all tests takes as long as `make test` on this machine, and its installation; all rows take a working day on
two cores. --tests runs a part of the tests in each row. The table names the tests that a row ran.

An interpreter is python3.N on the search path. pip's own settings decide where packages come from. What a row needs and
this machine cannot get is listed with the reason, as not run.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "matrix"
PAGE = ROOT / "docs" / "compatibility.md"
TABLE = re.compile(r"(<!-- matrix -->\n).*?(<!-- end -->)", re.DOTALL)
SHOWN = ("torch", "transformers", "numpy")  # versions in the tables
# Packages whose version follows from that of another one.
BOUND = {"torch": ("triton",), "transformers": ("huggingface_hub", "tokenizers", "safetensors")}
COMPILER = re.compile(r"(.*-)?(cc|c\+\+|gcc|g\+\+|c\d\d|clang|clang\+\+|cpp|icx|icpx|tcc)(-[\d.]+)?")
HOURS = 4  # until a command of a row is ended
DEMO = 'bertgen run --model demo "Where is the station?"'
# Tests of the tensors, of the C++ extension, and of the drop-in.
MODELS = "tests/ops tests/kernels tests/cache tests/layers tests/model tests/decoding tests/engine tests/quantization"
EXTENSION = "tests/ops tests/kernels tests/cache tests/layers tests/quantization tests/test_packaging.py"


@dataclass(frozen=True)
class Row:
    """One row of the matrix.

    Attributes:
        name: of the row, and of its folder.
        about: what the row shows.
        python: version of the interpreter; None is the one that runs this script.
        versions: requirements in place of the lines of constraints.txt; a name alone means the newest.
        absent: packages to remove after the installation.
        environment: more environment variables, for the installation and the tests.
        compiler: whether the search path has compilers. Without, the installation must give no C++ extension.
        says: commands to run first, and a pattern that the output of each must have.
        tests: arguments of pytest.
    """

    name: str
    about: str = ""
    python: str | None = None
    versions: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    compiler: bool = True
    says: tuple[tuple[str, str], ...] = ((DEMO, "."),)
    tests: str = "tests"


OLDEST = ("torch==2.10.0", "numpy==1.26.4", "transformers==5.16.0")
ROWS = (
    Row("constraints", "what `make install` takes"),
    Row("oldest", "the oldest of all", "3.10", OLDEST),
    Row("python-3.10", "", "3.10"),
    Row("python-3.11", "", "3.11"),
    Row("python-3.12", "", "3.12"),
    Row("python-3.13", "", "3.13"),
    Row("python-3.14", "", "3.14"),
    Row("torch-2.10", "", None, ("torch==2.10.0",), tests=MODELS),
    Row("torch-2.11", "", None, ("torch==2.11.0",), tests=MODELS),
    Row("torch-2.12", "", None, ("torch==2.12.1",), tests=MODELS),
    Row("torch-2.13", "", None, ("torch==2.13.0",), tests=MODELS),
    Row("torch-2.14", "", None, ("torch==2.14.1",), tests=MODELS),
    Row("torch-2.15", "", None, ("torch==2.15.0",)),
    Row("newest", "the newest of all", "3.14", ("torch", "numpy", "transformers", "accelerate", "peft", "ctranslate2")),
    Row("transformers-5.16", "", None, ("transformers==5.16.0",)),
    Row("transformers-newest", "", None, ("transformers",)),
    Row("transformers-absent", "", absent=("transformers", "accelerate", "peft")),
    Row("triton-absent", "", absent=("triton",)),
    Row("numpy-1", "", None, ("numpy==1.26.4",)),
    Row("numpy-newest", "", None, ("numpy",)),
    Row("no-compiler", "no compiler on the search path", compiler=False, says=((DEMO, "extension"),)),
    Row("clang", "the extension built by clang", environment=(("CC", "clang"), ("CXX", "clang++")), tests=EXTENSION),
)


@dataclass
class Outcome:
    """What became of a row.

    Attributes:
        status: "passed", "failed" or "not run".
        reason: why it failed or was not run; the failed tests.
        key: digest of the row and the sources that it ran with.
        skips: reason -> skipped tests.
        versions: package -> installed version.
        tests: arguments of pytest.
    """

    name: str
    status: str
    reason: str = ""
    key: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: int = 0
    date: str = ""
    python: str = ""
    skips: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    tests: str = ""


class Unavailable(Exception):
    """A row needs something that this machine does not have and cannot get."""


class Failure(Exception):
    """A row failed before its tests ran."""


def sources() -> list[str]:
    """Paths of the source files, relative to the root: those that git knows and those that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file())


def key_of(row: Row, digest: str) -> str:
    """Digest of a row and of the sources."""
    return hashlib.sha256((repr(row) + digest).encode()).hexdigest()


def digest_of(names: list[str]) -> str:
    """Digest of the source files, without the page that holds the results."""
    total = hashlib.sha256()
    for name in names:
        if ROOT / name != PAGE:
            total.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    return total.hexdigest()


def interpreter(version: str | None) -> str:
    """Path of an interpreter of that version.

    Raises:
        Unavailable: there is none on the search path.
    """
    if version is None:
        return sys.executable
    command = shutil.which(f"python{version}")
    found = ""
    if command is not None:
        probe = "import sys; print('%d.%d' % sys.version_info[:2])"
        found = subprocess.run([command, "-c", probe], capture_output=True, text=True).stdout.strip()
    if found != version:
        raise Unavailable(f"no python{version} on the search path")
    return str(command)


def constraints(row: Row, text: str) -> str:
    """constraints.txt for a row: its own versions, and no pin of the packages that these bound."""
    own = {re.match(r"[\w-]+", version)[0].lower() for version in row.versions}
    free = own | {other for name in own for other in BOUND.get(name, ())}
    lines = [line for line in text.splitlines() if re.match(r"[\w-]*", line)[0].lower() not in free]
    return "\n".join([*lines, *(version for version in row.versions if re.search("[<=>]", version))]) + "\n"


def without_compilers(search_path: str, folder: Path) -> str:
    """A folder with links to all commands of a search path except compilers, as a search path."""
    folder.mkdir(parents=True)
    for place in search_path.split(os.pathsep):
        for command in sorted(Path(place or ".").glob("*")):
            link = folder / command.name
            if not COMPILER.fullmatch(command.name) and not link.is_symlink() and os.access(command, os.X_OK):
                link.symlink_to(command.absolute())
    return str(folder)


def read_report(path: Path) -> tuple[Counter[str], list[str], Counter[str]]:
    """Counts of outcomes, names of failed tests, and reason -> skipped tests, of pytest's JUnit file."""
    counts: Counter[str] = Counter()
    failed: list[str] = []
    skips: Counter[str] = Counter()
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        kinds = {child.tag: child for child in case}
        if "failure" in kinds or "error" in kinds:
            counts["failed"] += 1
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" in kinds:
            counts["skipped"] += 1
            skips[(kinds["skipped"].get("message") or "").removeprefix("Skipped: ")] += 1
        else:
            counts["passed"] += 1
    return counts, failed, skips


class Run:
    """The run of one row in its folder.

    Args:
        row: the row. names: the source files. processes: of pytest, as `--numprocesses` takes them.
        keep: whether the environment stays, and one that stayed is used.
    """

    def __init__(self, row: Row, names: list[str], processes: str, keep: bool):
        self.row, self.names, self.processes, self.keep = row, names, processes, keep
        self.folder = BUILD / row.name
        self.sources, self.venv = self.folder / "sources", self.folder / "venv"
        self.log = self.folder / "log.txt"
        self.environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def command(self, *arguments: str | Path) -> tuple[int, str]:
        """Run a command in the copy of the sources; its exit code and its output, which the log gets as well.

        Raises:
            Failure: it takes longer than HOURS.
        """
        command = [str(argument) for argument in arguments]
        with self.log.open("a+", encoding="utf-8", errors="replace") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            start = log.tell()
            try:
                ended = subprocess.run(
                    command, cwd=self.sources, env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, timeout=HOURS * 3600,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise Failure(f"{command[0]} takes more than {HOURS} hours") from None
            log.seek(start)
            return ended.returncode, log.read()

    def pip(self, *arguments: str | Path) -> tuple[int, str]:
        return self.command(self.venv / "bin" / "python", "-m", "pip", *arguments, "--disable-pip-version-check")

    def prepare(self, python: str) -> None:
        """Copy the sources and make an empty environment, or take the one that was kept."""
        if self.folder.exists():
            for path in self.folder.iterdir():
                if path.is_dir() and not (self.keep and path == self.venv):
                    shutil.rmtree(path)
                elif path.is_file():
                    path.unlink()
        for name in self.names:
            (self.sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.sources / name)
        for words in ("init", "add --all", "-c user.name=matrix -c user.email=matrix@localhost commit --quiet -m copy"):
            subprocess.run(["git", *words.split()], cwd=self.sources, check=True, capture_output=True)  # for its commit
        if not self.row.compiler:
            self.environment["PATH"] = without_compilers(self.environment["PATH"], self.folder / "commands")
        self.environment["PATH"] = f"{self.venv / 'bin'}{os.pathsep}{self.environment['PATH']}"
        self.environment.update(self.row.environment)
        if self.row.compiler:
            compiler = self.environment.get("CXX", "c++")
            if shutil.which(compiler, path=self.environment["PATH"]) is None:
                raise Unavailable(f"no compiler {compiler} on the search path")
        code, output = self.command(python, "-m", "venv", self.venv)
        if code:
            raise Unavailable(f"{python} makes no environment: {last_line(output)}")

    def install(self) -> None:
        """Install the packages of the row, then bertgen with its tests, then remove what is to be absent."""
        file = self.folder / "constraints.txt"
        file.write_text(constraints(self.row, (ROOT / "constraints.txt").read_text("utf-8")), encoding="utf-8")
        code, output = self.pip("install", "--quiet", "--constraint", file, "torch", *self.row.versions)
        if code:
            raise Unavailable(f"pip finds no {' '.join(self.row.versions) or 'torch'}: {last_line(output)}")
        if self.row.compiler:
            self.environment["BERTGEN_REQUIRE_EXT"] = "1"
        code, output = self.pip("install", "--quiet", "--constraint", file, "--editable", ".[test]")
        self.environment.pop("BERTGEN_REQUIRE_EXT", None)  # tests of pure Python run as well
        if code:
            raise Failure(f"the installation failed: {last_line(output)}")
        if self.row.absent:
            self.pip("uninstall", "--yes", *self.row.absent)

    def check(self) -> None:
        """Run the commands of the row; whether the extension is there must be as the row says."""
        probe = "from bertgen.ops import extension; print(extension.why_not() or 'extension loaded')"
        _, output = self.command(self.venv / "bin" / "python", "-c", probe)
        if ("extension loaded" in output) != self.row.compiler:
            raise Failure(f"the C++ extension: {last_line(output)}")
        for line, pattern in self.row.says:
            code, output = self.command(*shlex.split(line))
            if code or not re.search(pattern, output):
                raise Failure(f"{line!r} ends with {code} and says {output.strip()!r}, expected {pattern!r}")

    def versions(self) -> dict[str, str]:
        _, output = self.pip("list", "--format", "json")
        listed = json.loads(next(line for line in output.splitlines() if line.startswith("[")))
        return {package["name"].lower(): package["version"] for package in listed}

    def test(self, outcome: Outcome) -> None:
        """Run the tests and count them."""
        report = self.folder / "report.xml"
        code, output = self.command(
            self.venv / "bin" / "python", "-m", "pytest", *shlex.split(self.row.tests), f"--junitxml={report}",
            "--numprocesses", self.processes, "--dist", "worksteal", "-p", "no:cacheprovider",
        )  # fmt: skip
        if not report.exists():
            raise Failure(f"pytest ends with {code}: {last_line(output)}")
        counts, failed, skips = read_report(report)
        outcome.passed, outcome.failed, outcome.skipped = (counts[name] for name in ("passed", "failed", "skipped"))
        outcome.skips, outcome.reason = dict(skips), ", ".join(failed)
        outcome.status = "passed" if code == 0 and counts["passed"] else "failed"
        if outcome.status == "failed" and not failed:
            outcome.reason = f"pytest ends with {code}: {last_line(output)}"

    def outcome(self) -> Outcome:
        """Run the row."""
        result, began = Outcome(self.row.name, "not run", tests=self.row.tests), time.monotonic()
        try:
            self.prepare(interpreter(self.row.python))
            self.install()
            result.versions = self.versions()
            result.python = self.command(self.venv / "bin" / "python", "--version")[1].split()[-1]
            self.check()
            self.test(result)
        except Unavailable as error:
            result.reason = str(error)
        except Failure as error:
            result.status, result.reason = "failed", str(error)
        result.seconds, result.date = round(time.monotonic() - began), datetime.date.today().isoformat()
        if result.status == "passed" and not self.keep:
            shutil.rmtree(self.venv)
            shutil.rmtree(self.sources)
        return result


def last_line(output: str) -> str:
    """The last line of an output that is not empty."""
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "no output")


def chosen(names: str) -> list[Row]:
    """The rows with these names, separated by spaces; all for "".

    Raises:
        SystemExit: an unknown name.
    """
    by_name = {row.name: row for row in ROWS}
    if unknown := [name for name in names.split() if name not in by_name]:
        raise SystemExit(f"no row {', '.join(unknown)}; the rows are {' '.join(by_name)}")
    return [by_name[name] for name in names.split()] or list(ROWS)


def load(row: Row) -> Outcome | None:
    """The last outcome of a row."""
    file = BUILD / f"{row.name}.json"
    return Outcome(**json.loads(file.read_text("utf-8"))) if file.exists() else None


def save(outcome: Outcome) -> None:
    (BUILD / f"{outcome.name}.json").write_text(json.dumps(asdict(outcome), indent=1), encoding="utf-8")


def cells(row: Row, outcome: Outcome | None) -> Iterator[str]:
    """The cells of a row of the tables."""
    yield row.name
    if outcome is None:
        yield from ("", *("" for _ in SHOWN), "not run", "", "", "", "", "")
        return
    yield outcome.python
    yield from (outcome.versions.get(name, "") for name in SHOWN)
    yield outcome.status
    ran = outcome.passed + outcome.failed > 0
    yield from (str(count) if ran else "" for count in (outcome.passed, outcome.failed, outcome.skipped))
    yield outcome.tests.replace("tests/", "").replace("tests", "all") if ran else ""
    yield outcome.date


HEADER = ("row", "Python", *SHOWN, "result", "passed", "failed", "skipped", "tests", "date")


def summary(outcomes: list[tuple[Row, Outcome | None]]) -> str:
    """The table for a terminal, with the reasons below it."""
    lines = [HEADER, *(tuple(cells(row, outcome)) for row, outcome in outcomes)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    for _, outcome in outcomes:
        if outcome is None:
            continue
        if outcome.reason:
            text.append(f"{outcome.name}: {outcome.status}: {outcome.reason}")
        text += [f"{outcome.name}: {count} skipped: {reason}" for reason, count in sorted(outcome.skips.items())]
    return "\n".join(text)


def markdown(outcomes: list[tuple[Row, Outcome | None]]) -> str:
    """The table for the documentation."""
    lines = [HEADER, tuple("---" for _ in HEADER), *(tuple(cells(row, outcome)) for row, outcome in outcomes)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the rows; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="names of rows; all by default")
    parser.add_argument("--again", action="store_true", help="run rows that passed as well")
    parser.add_argument("--keep", action="store_true", help="keep environments, and use those that were kept")
    parser.add_argument("--show", action="store_true", help="run nothing, show the last results")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--tests", help="arguments of pytest in place of those of the rows")
    parser.add_argument("--processes", default="auto", help="of pytest")
    options: Any = parser.parse_args(arguments)
    rows = chosen(" ".join(options.rows))
    if options.tests is not None:
        rows = [replace(row, tests=options.tests) for row in rows]
    BUILD.mkdir(parents=True, exist_ok=True)
    if not options.show:
        names = sources()
        digest = digest_of(names)
        for row in rows:
            last, key = load(row), key_of(row, digest)
            if last is not None and last.status == "passed" and last.key == key and not options.again:
                print(f"{row.name}: passed on {last.date}", flush=True)
                continue
            print(f"{row.name}: running, see {(BUILD / row.name / 'log.txt').relative_to(ROOT)}", flush=True)
            outcome = Run(row, names, options.processes, options.keep).outcome()
            outcome.key = key
            save(outcome)
            print(f"{row.name}: {outcome.status} in {outcome.seconds} s", flush=True)
    outcomes = [(row, load(row)) for row in rows]
    print(summary(outcomes))
    if options.write:
        page = PAGE.read_text("utf-8")
        table = markdown([(row, load(row)) for row in ROWS])
        PAGE.write_text(TABLE.sub(lambda match: match[1] + table + match[2], page), encoding="utf-8")
    failed = sum(outcome is not None and outcome.status == "failed" for _, outcome in outcomes)
    print(f"{len(outcomes) - failed} rows did not fail, {failed} failed; platform {platform.platform()}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
