"""Slow paths are reported once, with the cost and the command; BERTGEN_REQUIRE_EXT=1 refuses one of them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from bertgen import BackendError, EncoderDecoderModel, Generator, accelerate, cli, ops, pipeline
from bertgen.ops import extension, slow_paths
from bertgen.ops.slow_paths import report_slow_paths
from bertgen.trainer import Trainer
from tests.support import dropin_models
from tests.support.training import config, sentences, write

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OPTIONS = dict(max_new_tokens=2, do_sample=False, num_beams=1)


@pytest.fixture(autouse=True)
def nothing_missing(monkeypatch):
    """A process in which nothing is missing, no setting chooses a path, and nothing was logged yet."""
    for name in ("BERTGEN_REQUIRE_EXT", "BERTGEN_WITHOUT_EXT", "BERTGEN_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(extension, "_reason", None)
    monkeypatch.setattr(slow_paths, "WHY_NOT_TRITON", None)
    monkeypatch.setattr(slow_paths, "_logged", {})
    monkeypatch.setattr(slow_paths, "sys", SimpleNamespace(platform="linux"))


@pytest.fixture
def without_extension(monkeypatch):
    monkeypatch.setattr(extension, "_reason", "it was taken away")


def lines(caplog):
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return [record.getMessage() for record in caplog.records if record.name == "bertgen.ops.slow_paths"]


# -- the causes


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_nothing_is_logged_where_nothing_is_missing(device, caplog):
    report_slow_paths(device)
    assert lines(caplog) == [] and ops.slow_paths.slow_paths(device.type) == []


EXTENSION, GONE, BUILD = "the C++ extension", "it was taken away", " install --force-reinstall "
CAUSES = {
    "extension, CPU": (CPU, EXTENSION, GONE, "6 times as long for single texts (4 + 4 layers", BUILD),
    "extension, GPU": (CUDA, EXTENSION, GONE, "0.6 ms", BUILD),
    "triton": (CUDA, "Triton", "triton is not installed", "several kernels", " install 'triton"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_each_cause_is_logged_once_with_cost_and_command(name, monkeypatch, caplog):
    device, unused, reason, cost, command = CAUSES[name]
    if name.startswith("extension"):
        monkeypatch.setattr(extension, "_reason", reason)
    if name == "triton":
        monkeypatch.setattr(slow_paths, "WHY_NOT_TRITON", reason)
    for _ in range(3):
        report_slow_paths(device)
    (line,) = lines(caplog)
    assert line.startswith(f"{unused} is not used: {reason}. ") and "\n" not in line
    assert cost in line and command in line
    (path,) = ops.slow_paths.slow_paths(device.type)
    assert str(path) == line and command in path.command and cost in path.cost
    assert line.endswith(f" ({path.choice} accepts the slow path and ends this message)")


def test_causes_are_logged_one_by_one(without_extension, monkeypatch, caplog):
    monkeypatch.setattr(slow_paths, "WHY_NOT_TRITON", "triton is not installed")
    for device in (CPU, CPU, CUDA, torch.device("mps")):
        report_slow_paths(device)
    assert [line.partition(" is")[0] for line in lines(caplog)] == ["the C++ extension", "Triton"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_no_dtype_is_a_slow_path(dtype, tiny_checkpoint, caplog):
    Generator(tiny_checkpoint, dtype=dtype).generate(["a b"], **OPTIONS)
    assert lines(caplog) == []


def test_triton_has_no_wheels_for_other_systems(monkeypatch, caplog):
    monkeypatch.setattr(slow_paths, "WHY_NOT_TRITON", "triton is not installed")
    monkeypatch.setattr(slow_paths, "sys", SimpleNamespace(platform="win32"))
    report_slow_paths(CUDA)
    assert lines(caplog) == []


# -- choices


def test_a_chosen_path_is_not_reported(without_extension, monkeypatch, caplog):
    monkeypatch.setattr(slow_paths, "WHY_NOT_TRITON", "triton is not installed")
    for path in ops.slow_paths.slow_paths("cpu") + ops.slow_paths.slow_paths("cuda"):
        with monkeypatch.context() as choice:
            choice.setenv(*path.choice.split("="))
            for device in (CPU, CUDA):
                report_slow_paths(device)
            assert path.unused not in "".join(lines(caplog))
        monkeypatch.setattr(slow_paths, "_logged", {})
        caplog.clear()
    before = ops.set_backend("reference")
    try:
        for device in (CPU, CUDA):
            report_slow_paths(device)
    finally:
        ops.set_backend(before)
    assert lines(caplog) == []
    report_slow_paths(CPU)  # not chosen any more
    assert len(lines(caplog)) == 1


def test_the_level_of_the_logger_silences_it(without_extension, caplog):
    with caplog.at_level(logging.ERROR, logger="bertgen.ops.slow_paths"):
        report_slow_paths(CPU)
    assert lines(caplog) == []


# -- once


def test_one_of_many_threads_logs_it(without_extension, caplog):
    barrier = threading.Barrier(16)

    def report():
        barrier.wait()
        report_slow_paths(CPU)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=report) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(lines(caplog)) == 1


# -- where generation begins


def job(checkpoint, folder):
    (folder / "in.txt").write_text("a b\nc d\n")
    command = [
        "run",
        "--model",
        str(checkpoint),
        "--input",
        str(folder / "in.txt"),
        "--output",
        str(folder / "out.txt"),
    ]
    code = cli.main([*command, "--max-new-tokens", "2", "--quiet"])
    if code:
        raise BackendError("the command failed")


def accelerated(**options):
    inputs, _ = dropin_models.batch()
    accelerate(dropin_models.make_model(), **options).generate(**inputs, **OPTIONS)


def train(checkpoint, folder):
    write(folder / "train.tsv", sentences(20, 0))
    Trainer(config({"train": str(folder / "train.tsv")}, folder / "run", steps=1, quiet=True)).train()


def generate(checkpoint, folder):
    EncoderDecoderModel.from_pretrained(checkpoint).generate(torch.tensor([[5, 6]]), **OPTIONS)


ENTRIES = {
    "Generator.generate": lambda checkpoint, folder: Generator(checkpoint).generate(["a b"], **OPTIONS),
    "Generator.stream": lambda checkpoint, folder: list(Generator(checkpoint).stream(["a b"], **OPTIONS)),
    "Generator.submit": lambda checkpoint, folder: Generator(checkpoint).submit("a b", **OPTIONS).result(),
    "Generator.score": lambda checkpoint, folder: Generator(checkpoint).score(["a b"], ["c"]),
    "pipeline": lambda checkpoint, folder: pipeline("text2text-generation", str(checkpoint))("a b", **OPTIONS),
    "generate": generate,
    "accelerate": lambda checkpoint, folder: accelerated(generate=True),
    "accelerate, generate=False": lambda checkpoint, folder: accelerated(generate=False),
    "a job": job,
    "Trainer": train,
}


@pytest.mark.parametrize("name", ENTRIES)
def test_each_entry_reports_at_the_first_generation(name, tiny_checkpoint, tmp_path, without_extension, caplog):
    ENTRIES[name](tiny_checkpoint, tmp_path)
    (line,) = lines(caplog)
    assert line.startswith("the C++ extension is not used: it was taken away")


@pytest.mark.parametrize("name", ENTRIES)
def test_each_entry_refuses_where_the_extension_is_required(
    name, tiny_checkpoint, tmp_path, without_extension, caplog, monkeypatch
):
    monkeypatch.setenv("BERTGEN_REQUIRE_EXT", "1")
    with pytest.raises(BackendError):
        ENTRIES[name](tiny_checkpoint, tmp_path)
    assert lines(caplog) == [] and not (tmp_path / "out.txt").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_required_on_every_device(device, without_extension, monkeypatch):
    monkeypatch.setenv("BERTGEN_REQUIRE_EXT", "1")
    with pytest.raises(BackendError, match="it was taken away"):
        report_slow_paths(device)


def test_loading_reports_nothing(tiny_checkpoint, without_extension, caplog):
    Generator(tiny_checkpoint)
    accelerate(dropin_models.make_model())
    assert lines(caplog) == []


def test_a_backend_of_one_model_is_its_choice(without_extension, caplog):
    accelerated(backend="reference")
    accelerated(backend="reference", generate=False)
    assert lines(caplog) == []


# -- programs


def program(code, **environment):
    """stdout and stderr of a process in which the extension was not built."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BERTGEN_")}
    hidden = f"import sys; sys.modules['bertgen._C'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", hidden], env=clean | environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_command_prints_the_line_on_stderr_and_a_program_shows_it_without_a_handler(tiny_checkpoint, tmp_path):
    command = "from bertgen import cli; sys.exit(cli.main(['run', '--model', sys.argv[1], 'a b', '--quiet']))"
    command = command.replace("sys.argv[1]", repr(str(tiny_checkpoint)))
    code, out, err = program(command)
    assert code == 0 and len(out.splitlines()) == 1
    (line,) = err.splitlines()
    assert line.startswith("the C++ extension is not used: ")
    assert program(command, BERTGEN_WITHOUT_EXT="1") == (0, out, "")
    code, refused, err = program(command, BERTGEN_REQUIRE_EXT="1")
    assert (code, refused) == (2, "") and "error: the C++ extension is needed here" in err


def test_the_child_of_a_fork_repeats_nothing(without_extension, caplog):
    report_slow_paths(CPU)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        caplog.clear()
        report_slow_paths(CPU)
        os.write(write, b"%d" % len(lines(caplog)))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 9) == b"0" and len(lines(caplog)) == 1
    os.close(read), os.close(write)
