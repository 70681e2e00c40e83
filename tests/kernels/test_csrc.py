"""The C++ sources by themselves: under the sanitizers, and compiled without a warning."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from bertgen.ops import extension

CSRC = Path(__file__).parents[2] / "csrc"
STRICT = ["-std=c++17", "-Wall", "-Wextra", "-Wshadow", "-Werror"]

needs_extension = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")


def compiler():
    found = shutil.which(os.environ.get("CXX", "g++"))
    return found or pytest.skip("no C++ compiler")


@pytest.mark.parametrize("target", [pytest.param("", marks=pytest.mark.long), "-DBERTGEN_PORTABLE"])
def test_fuzz(target, tmp_path):
    """csrc/fuzz_cpu_kernels.cpp under the sanitizers, for this machine and for one without AVX2."""
    sources = [CSRC / "fuzz_cpu_kernels.cpp", *sorted(CSRC.glob("*_cpu.cpp"))]
    flags = [*STRICT, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *filter(None, [target])]
    built = subprocess.run([compiler(), *flags, *sources, "-o", tmp_path / "fuzz"], capture_output=True, text=True)
    if "cannot find" in built.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([tmp_path / "fuzz", "300", "5"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.long
@needs_extension
def test_the_binding_compiles_without_a_warning():
    from torch.utils.cpp_extension import include_paths

    includes = [word for path in (*include_paths(), sysconfig.get_path("include")) for word in ("-isystem", path)]
    macros = ["-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030a0000"]
    sources = sorted((CSRC / "bindings").glob("*.cpp"))
    assert len(sources) > 5
    command = [compiler(), *STRICT, *macros, *includes, "-fsyntax-only", *sources]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
