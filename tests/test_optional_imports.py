"""Optional packages: all else works without them, and a command that needs one says so at once and does nothing."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from bertgen.kernels.all_cases import CHECKS

from bertgen import BackendError, cli
from bertgen.bench import offline, ops
from bertgen.optional_imports import (
    REQUIREMENTS,
    install_command,
    load_ctranslate2,
    load_matplotlib,
    load_transformers,
    load_triton,
    silence,
)
from tests.support import requirements

ROOT = Path(__file__).parents[1]


def test_an_installed_package_is_returned():
    # Not the name above: transformers replaces its own module when a model is first imported.
    assert load_transformers("a test") is sys.modules["transformers"]


@pytest.mark.parametrize(
    "load, name, command",
    [
        (load_transformers, "transformers", "pip install 'transformers>=5.16'"),
        (load_ctranslate2, "ctranslate2", "pip install 'ctranslate2>=4.8'"),
        (load_ctranslate2, "ctranslate2.converters", "pip install 'ctranslate2>=4.8'"),
        (load_matplotlib, "matplotlib", "pip install 'matplotlib>=3.8'"),
        (load_triton, "triton", "pip install 'triton>=3.6,<3.10'"),
    ],
)
def test_a_missing_package_is_named_with_the_purpose(monkeypatch, load, name, command):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=f"^a test needs a package that cannot be imported: .*{command}$") as error:
        load("a test")
    assert isinstance(error.value.__cause__, ImportError)


def test_the_command_installs_into_the_environment_of_this_python(monkeypatch):
    """The shell may have the pip of another one: that of an environment that was not activated."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for pip, expected in [
        (str(Path(sys.executable).with_name("pip")), "; pip install 'matplotlib>=3.8'"),
        ("/elsewhere/bin/pip", f"; {shlex.quote(sys.executable)} -m pip install 'matplotlib>=3.8'"),
    ]:
        monkeypatch.setattr(shutil, "which", lambda name, pip=pip: pip)
        with pytest.raises(BackendError) as error:
            load_matplotlib("a test")
        assert str(error.value).endswith(expected)


def test_the_packages_are_those_of_the_extras_with_their_bounds():
    optional = requirements.optional()
    assert {name: optional[name] for name in REQUIREMENTS} == {
        name: requirements.parsed(text) for name, text in REQUIREMENTS.items()
    }
    assert not REQUIREMENTS.keys() & requirements.core().keys()


# Commands

WITHOUT_ANY = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(REQUIREMENTS)!r}))

import torch
from bertgen import BackendError, ops
from bertgen.cli import main

assert main(["run", "--model", "demo", "Where is the station?", "--quiet"]) == 0
assert main(["info", "--check"]) == 0
ops.set_backend("triton")
try:
    ops.bias_gelu(torch.ones(2, 8), torch.ones(8))
except BackendError as error:
    print(error)
"""


def test_commands_work_without_any_of_them():
    done = subprocess.run([sys.executable, "-c", WITHOUT_ANY], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *_, check, error = done.stdout.splitlines()
    assert first == "Wo ist der Bahnhof?" and "no kernel runs here" in check
    assert error.startswith("bias_gelu: the backend is set to triton") and "triton is not installed" in error


REPORT = ["bench", "report", str(ROOT / "bench/results/dropin-cpu.json"), "--output"]


@pytest.mark.parametrize(
    "command, package",
    [
        (REPORT, "matplotlib"),
        (["bench", "suite", "--level", "smoke", "--output"], "matplotlib"),
        (["bench", "dropin", "--json"], "transformers"),
    ],
    ids=["report", "suite", "dropin"],
)
def test_a_benchmark_that_needs_a_package_says_so_before_it_begins(command, package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main([*command, str(tmp_path / "new")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("bertgen: error: ") and "needs a package that cannot be imported" in err
    assert err.endswith(f"pip install '{REQUIREMENTS[package]}'\n") and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_compiling_kernels_needs_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setenv("TRITON_CACHE_DIR", "set by main")
    monkeypatch.setattr(sys, "argv", ["offline"])
    with pytest.raises(SystemExit, match=r"^compiling kernels needs a package .*") as error:
        offline.main()
    assert str(error.value).endswith(f"; {install_command('triton>=3.6,<3.10')}")


def test_a_benchmark_on_a_gpu_without_triton_lists_the_kernel_as_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(BackendError, match="^the kernel needs a package"):
        ops.own("bias_gelu", CHECKS["bias_gelu"], torch.device("cuda"), {})


@pytest.mark.parametrize("bars", [True, False])
def test_transformers_is_silent_inside_the_block_and_as_before_after_it(bars):
    log = transformers.logging
    verbosity, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    try:
        log.set_verbosity_info()
        (log.enable_progress_bar if bars else log.disable_progress_bar)()
        with pytest.raises(ValueError), silence(transformers):
            assert log.get_verbosity() == log.ERROR and not log.is_progress_bar_enabled()
            raise ValueError
        assert log.get_verbosity() == log.INFO and log.is_progress_bar_enabled() == bars
    finally:
        log.set_verbosity(verbosity)
        (log.enable_progress_bar if had_bars else log.disable_progress_bar)()
