"""Files and directories that appear whole, whatever ends the process that writes them, for each part that writes."""

import ast
import functools
import os
import resource
import shutil
import stat
from pathlib import Path

import pytest
import torch

from bertgen import AutoTokenizer, ConfigError, EncoderDecoderModel, GenerationConfig, OutputError, checkpoint
from bertgen.files import atomic
from bertgen.files.atomic import NewFile, atomic_directory, atomic_write, recover_directory, write_file
from bertgen.trainer import report, state
from bertgen.trainer.data import train_vocabulary
from tests.support.crashes import Died, Disk

ROOT = Path(__file__).parents[2]


def tree(folder):
    """Path -> content of all files below a folder, without those of hidden or temporary names."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") or p.endswith(".tmp") for p in path.relative_to(folder).parts)
    }


# each writes its n-th version into a folder


def write_new_file(folder, version):
    with NewFile(folder / "out", overwrite=True) as file:
        for number in range(3):
            file.write(b"%d %d\n" % (version, number))


def write_config(folder, version):
    GenerationConfig(num_beams=version).to_json_file(folder / "generation_config.json")


def write_state(folder, version):
    state.save_state(folder / "state.pt", {"weights": torch.full((9,), version, dtype=torch.float32, device="cpu")})


def write_history(folder, version):
    report.write_history(folder / "history.jsonl", [{"step": version}] * 3)


def write_curve(folder, version):
    row = {"step": 10, "loss": 2.0, "dev_loss": None, "bleu": None}
    report.write_curve(folder / "loss.png", [row, {**row, "step": 20, "loss": version}], averaged=False)


def write_vocabulary(folder, version):
    train_vocabulary([("one two three four", "eins zwei drei vier")] * 9, 22 + version, folder / "spiece.model")


def write_tokenizer(folder, version, tokenizer):
    tokenizer.model_max_length = 40 + version
    tokenizer.save_pretrained(folder)


def write_model(folder, version, model, **options):
    model.generation_config.max_length = 40 + version
    with torch.no_grad():
        next(model.parameters())[0, 0] = version
    model.save_pretrained(folder / "model", **options)


def write_best(folder, version):
    recover_directory(folder / "best")
    with atomic_directory(folder / "best") as directory:
        for name in ("a", "b"):
            write_file(directory / name, b"%d" % version)
            (directory / f"{name}2").write_bytes(b"%d" % version)  # as a library does


WRITERS = {
    "a file": lambda folder, version: write_file(folder / "file", b"%d" % version * 9),
    "an output": write_new_file,
    "a configuration": write_config,
    "a training state": write_state,
    "a history": write_history,
    "a curve": write_curve,
    "a vocabulary": write_vocabulary,
    "a tokenizer": write_tokenizer,
    "a model": write_model,
    "a model in shards": functools.partial(write_model, max_shard_size="200KB"),
    "a model as pickle": functools.partial(write_model, safe_serialization=False),
    "a directory": write_best,
}
# Those that write many pieces -> how many of their last steps are tried.
MANY_STEPS = {"a vocabulary": 6, "a training state": 6, "a model": 10, "a model as pickle": 10, "a model in shards": 14}


@pytest.fixture
def writer(request, tiny_checkpoint):
    name = request.param
    write = WRITERS[name]
    if name == "a tokenizer":
        write = functools.partial(write, tokenizer=AutoTokenizer.from_pretrained(tiny_checkpoint))
    elif name.startswith("a model"):
        write = functools.partial(write, model=EncoderDecoderModel.from_pretrained(tiny_checkpoint))
    return name, write


def versions(write, folder):
    contents = []
    for version in (1, 2):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write(folder, version)
        contents.append(tree(folder))
    return contents


@pytest.mark.parametrize("exists", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("death", ["kill", "torn", "power", "names"])
@pytest.mark.parametrize("writer", sorted(WRITERS.keys() - {"a curve"}), indirect=True)  # slow to draw
def test_a_death_at_any_step_leaves_the_old_content_or_the_new(writer, tmp_path, death, exists):
    name, write = writer
    folder = tmp_path / "disk"
    old, new = versions(write, folder)
    assert old and old != new and old.keys() == new.keys()
    as_a_whole = name == "a directory" or (name.startswith("a model") and not exists)
    with Disk(folder, 10**9, death) as disk:
        write(folder, 2)
    assert disk.count >= 3
    steps = range(1, disk.count + 1)
    if name in MANY_STEPS:  # the first ones write; the last ones sync and rename
        steps = [1, disk.count // 2, *steps[-MANY_STEPS[name] :]]
    died = 0
    for deadly in steps:
        shutil.rmtree(folder)
        folder.mkdir()
        if exists:
            write(folder, 1)
        try:
            with Disk(folder, deadly, death):
                write(folder, 2)
        except Died:
            died += 1
            recover_directory(folder / "best")
            left = tree(folder)
            for path, content in left.items():
                assert content in ((old[path], new[path]) if exists else (new[path],)), (path, deadly)
            if as_a_whole:
                assert left in ((old, new) if exists else ({}, new)), deadly
            elif exists:
                assert left.keys() == old.keys(), deadly
            write(folder, 2)
            assert tree(folder) == new, "the next attempt succeeds"
    assert died >= 3


@pytest.mark.parametrize("exists", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("writer", WRITERS, indirect=True)
def test_what_is_written_outlasts_a_power_failure(writer, tmp_path, exists):
    """When the call returns, content and name are on the disk."""
    _, write = writer
    folder = tmp_path / "disk"
    _, new = versions(write, folder)
    shutil.rmtree(folder)
    folder.mkdir()
    if exists:
        write(folder, 1)
    with Disk(folder, 10**9, "power", always=True):
        write(folder, 2)
    assert tree(folder) == new


@pytest.mark.parametrize("writer", WRITERS, indirect=True)
def test_a_full_disk_names_the_file_and_leaves_the_old_content(writer, tmp_path):
    _, write = writer
    folder = tmp_path / "disk"
    old, _ = versions(write, folder)
    shutil.rmtree(folder)
    folder.mkdir()
    write(folder, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OutputError, match=rf"{folder}/[\w./-]+ cannot be written: File too large") as error:
            write(folder, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(part.startswith(".") or part.endswith(".tmp") for part in str(error.value).split(" ")[0].split("/"))
    assert tree(folder) == old
    assert not [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]


def test_an_error_of_the_caller_is_raised_as_it_is(tmp_path):
    write_file(tmp_path / "file", b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "file") as file:
        file.write(b"new")
        raise ZeroDivisionError
    with pytest.raises(OSError, match="of the input"), NewFile(tmp_path / "file", overwrite=True) as new:
        new.write(b"new")
        raise OSError("of the input")
    assert tree(tmp_path) == {"file": b"old"} and len(list(tmp_path.iterdir())) == 1


def test_links(tmp_path):
    """A link that the user names is followed; one in the place of a file of ours is replaced."""
    (tmp_path / "target").write_bytes(b"old")
    for name in ("out", "config.json"):
        (tmp_path / name).symlink_to(tmp_path / "target")
    write_file(tmp_path / "config.json", b"new")
    assert not (tmp_path / "config.json").is_symlink() and (tmp_path / "target").read_bytes() == b"old"
    with NewFile(tmp_path / "out", overwrite=True) as file:
        file.write(b"new")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "target").read_bytes() == b"new"


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "file.tmp").symlink_to(tmp_path / "target")
    with pytest.raises(OutputError, match="Too many levels of symbolic links"):
        write_file(tmp_path / "file", b"new")
    assert (tmp_path / "target").read_bytes() == b"old" and (tmp_path / "file.tmp").is_symlink()


@pytest.mark.parametrize("writer", WRITERS, indirect=True)
def test_permissions_are_those_of_the_umask(writer, tmp_path):
    _, write = writer
    former = os.umask(0o027)
    try:
        for version in (1, 2):
            write(tmp_path, version)
    finally:
        os.umask(former)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_a_directory_that_cannot_be_synced_is_written_all_the_same(tmp_path, monkeypatch):
    """As some network file systems refuse it."""
    fsync = os.fsync

    def refuse(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_two_writers_of_one_output_leave_one_of_both(tmp_path):
    with NewFile(tmp_path / "out", overwrite=True) as first:
        first.write(b"first")
        with NewFile(tmp_path / "out", overwrite=True) as second:
            second.write(b"second")
        assert (tmp_path / "out").read_bytes() == b"second"
    assert tree(tmp_path) == {"out": b"first"} and len(list(tmp_path.iterdir())) == 1


def test_a_failed_directory_leaves_the_old_version(tmp_path):
    def write(content, error=None):
        with atomic_directory(tmp_path / "best") as directory:
            (directory / "a").write_text(content)
            if error:
                raise error

    write("whole")
    with pytest.raises(OSError, match="disk full"):
        write("half", OSError("disk full"))
    assert (tmp_path / "best" / "a").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["best"]
    write("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]

    (tmp_path / "best").rename(tmp_path / ".best.old")  # killed between the two renames
    recover_directory(tmp_path / "best")
    assert (tmp_path / "best" / "a").read_text() == "whole"


def test_an_updated_directory_keeps_other_files_and_loses_old_weights(tmp_path):
    for name in ("notes.txt", "model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes(b"old")
    with checkpoint.new_directory(tmp_path) as directory:
        (directory / "model.safetensors").write_bytes(b"new")
    assert tree(tmp_path) == {"notes.txt": b"old", "model.safetensors": b"new"}
    with pytest.raises(ConfigError, match="is there already"), NewFile(tmp_path / "notes.txt"):
        pass


def test_output_that_appears_meanwhile_stays(folder):
    with pytest.raises(ConfigError, match="is there already"), NewFile(folder / "out") as file:
        file.write(b"mine")
        (folder / "out").write_text("theirs")
    assert (folder / "out").read_text() == "theirs"


def test_link_stays_and_its_target_is_written(folder):
    (folder / "real").mkdir()
    (folder / "link").symlink_to(folder / "real" / "out")
    with NewFile(folder / "link") as file:
        file.write(b"x")
    assert (folder / "link").is_symlink() and (folder / "real" / "out").read_bytes() == b"x"
    assert [path.name for path in (folder / "real").iterdir()] == ["out"]


def test_file_has_usual_permissions(folder):
    former = os.umask(0o027)
    try:
        with NewFile(folder / "out"):
            pass
    finally:
        os.umask(former)
    assert stat.S_IMODE((folder / "out").stat().st_mode) == 0o640


@pytest.mark.parametrize("size, lines", [(5, 1), (9_000, 2_000)], ids=["at the end", "in the middle"])
def test_file_that_may_not_grow(folder, size, lines):
    """As on a full disk, with a file: no part of it appears, wherever the limit strikes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    written = 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"), NewFile(folder / "out") as file:
            for _ in range(lines):
                file.write(b"x" * 10)
                written += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(folder.iterdir()) == [] and (written < lines) == (lines > 1)


# one way

FILE_METHODS = {"write_text", "write_bytes", "rename", "touch", "symlink_to", "hardlink_to", "mkstemp"}
FILE_METHODS |= {"NamedTemporaryFile", "TemporaryFile", "copy2", "copyfile", "copytree", "move"}
OS_FUNCTIONS = {"replace", "rename", "renames", "fsync", "fdatasync", "link", "symlink"}


def writing(tree):
    """Calls by which a file is written, renamed or synced."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        of_os = isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "os"
        modes = [*node.args[:2], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        constants = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
        variable = isinstance(function, ast.Name) and any(not isinstance(mode, ast.Constant) for mode in modes[1:])
        renames = name == "replace" and len(node.args) == 1 and not node.keywords  # a Path; a str needs two arguments
        copies = name == "copy" and getattr(getattr(function, "value", None), "id", "") == "shutil"
        creates = of_os and name == "open" and any("O_CREAT" in ast.unparse(flags) for flags in node.args)
        if renames or copies or creates or (of_os and name in OS_FUNCTIONS) or (not of_os and name in FILE_METHODS):
            yield node.lineno, name
        elif not of_os and name == "open" and (variable or any(set("wxa+") & set(m) and len(m) < 4 for m in constants)):
            yield node.lineno, name


@pytest.mark.parametrize("path", sorted((ROOT / "bertgen").rglob("*.py")), ids=lambda path: path.stem)
def test_no_other_module_writes_files(path):
    calls = list(writing(ast.parse(path.read_text(encoding="utf-8"))))
    if path == ROOT / "bertgen/files/atomic.py":
        assert {name for _, name in calls} == {"open", "replace", "rename", "fsync"}
    elif path == ROOT / "bertgen/jobs/part_file.py":  # a file that grows, with a record of its length
        assert [name for _, name in calls] == ["open"]
    elif path == ROOT / "bertgen/cli/__init__.py":  # /dev/null in the place of a stream that the caller has closed
        assert [name for _, name in calls] in ([], ["open"])
    else:
        assert calls == [], f"{path}: bertgen.files.atomic writes files"


def test_calls_that_write_are_seen():
    code = "open(p, 'w'); open(p, mode='ab'); p.open('wb'); p.write_text(t); os.replace(a, b); p.rename(q); os.fsync(h)"
    assert len(list(writing(ast.parse(code)))) == 7
    code = "p.replace(q); shutil.copy(a, b); open(p, mode); os.open(p, os.O_RDWR | os.O_CREAT); shutil.move(a, b)"
    assert len(list(writing(ast.parse(code)))) == 5
    code = "open(p); open(p, 'rb'); p.open('rb'); text.replace('a', 'b'); os.open(p, flags); archive.open('name')"
    assert list(writing(ast.parse(code))) == []
    code = "replace(config, steps=2); copy.copy(a)"
    assert list(writing(ast.parse(code))) == []


def test_the_disk_of_the_tests_forgets_what_was_not_synced(tmp_path, monkeypatch):
    """Each sync that is left out is seen by a test above."""
    folder = tmp_path / "disk"
    folder.mkdir()
    write_file(folder / "file", b"old")
    monkeypatch.setattr(atomic, "_flush_to_disk", lambda file: file.flush())
    with Disk(folder, 10**9, "power", always=True):
        write_file(folder / "file", b"new")
    assert (folder / "file").read_bytes() == b""
    monkeypatch.undo()
    write_file(folder / "file", b"old")
    monkeypatch.setattr(atomic, "sync_directory", lambda path: None)
    with Disk(folder, 10**9, "power", always=True):
        write_file(folder / "file", b"new")
    assert (folder / "file").read_bytes() == b"old"
