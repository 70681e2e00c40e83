"""The C++ sources by themselves: under the sanitizers, and compiled without a warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
STRICT = ["-std=c++17", "-Wall", "-Wextra", "-Wshadow", "-Werror"]


def compiler():
    found = shutil.which(os.environ.get("CXX", "g++"))
    return found or pytest.skip("no C++ compiler")


@pytest.mark.parametrize("target", [pytest.param("", marks=pytest.mark.long), "-DBERTGEN_PORTABLE"])
def test_fuzz(target, tmp_path):
    """The programs under the sanitizers, for this machine and for one without AVX2; unoptimized, to compile fast."""
    flags = [
        *STRICT,
        "-g1",
        "-pthread",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        *filter(None, [target]),
    ]

    def build(*arguments):
        done = subprocess.run([compiler(), *flags, *arguments], cwd=tmp_path, capture_output=True, text=True)
        if "cannot find" in done.stderr:
            pytest.skip("the compiler has no sanitizers")
        assert done.returncode == 0, done.stderr

    build("-c", *sorted(CSRC.glob("*_cpu.cpp")))  # once for both programs
    for program in ("fuzz_cpu_kernels", "fuzz_decode_steps"):
        build(CSRC / f"{program}.cpp", *tmp_path.glob("*.o"), "-o", program)
        ran = subprocess.run([tmp_path / program, "300", "5"], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
@pytest.mark.parametrize("standard", [False, pytest.param(True, marks=pytest.mark.long)])
def test_fuzz_the_team_of_threads(sanitizer, standard, tmp_path):
    sources = [CSRC / "fuzz_team.cpp", CSRC / "team.cpp"]
    flags = [*STRICT, "-O1", "-g", "-pthread", f"-fsanitize={sanitizer}", *["-DBERTGEN_STANDARD_CPP"] * standard]
    built = subprocess.run([compiler(), *flags, *sources, "-o", tmp_path / "fuzz"], capture_output=True, text=True)
    if "cannot find" in built.stderr:
        pytest.skip(f"the compiler has no -fsanitize={sanitizer}")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([tmp_path / "fuzz", "500", "5", "3"], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_only_python_and_the_standard_libraries_are_included():
    """No torch: then an isolated build, which has none, compiles the extension."""
    system = {"linux/futex.h", "sys/syscall.h", "unistd.h", "pthread.h", "signal.h", "sys/resource.h", "sys/wait.h"}
    outside = set()
    for path in CSRC.rglob("*.[ch]*"):
        outside |= set(re.findall(r"#include <(.*?[./].*?)>", path.read_text(encoding="utf-8")))
    assert outside == {"Python.h", "immintrin.h", *system}


@pytest.mark.long
def test_the_binding_compiles_without_a_warning():
    sources = sorted((CSRC / "bindings").glob("*.cpp"))
    assert len(sources) > 5
    options = [*STRICT, "-DPy_LIMITED_API=0x030a0000", "-isystem", sysconfig.get_path("include"), "-fsyntax-only"]
    done = subprocess.run([compiler(), *options, *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
