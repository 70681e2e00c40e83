"""Triton is imported where it can be used; else the modules with kernels can be imported all the same."""

import subprocess
import sys

import pytest

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
if sys.argv[2:]:
    sys.modules["triton"] = None
from bertgen.kernels.language import HAS_TRITON, INTERPRETED, WHY_NOT_TRITON
import bertgen.kernels.attention
assert not HAS_TRITON and not INTERPRETED
print(WHY_NOT_TRITON)
"""
PACKAGES = {  # a triton/__init__.py -> why it cannot be used
    "raise OSError('libtriton.so: cannot open\\n shared object')": "libtriton.so: cannot open shared object",
    "__version__ = '3.5.1'": "it is version 3.5.1, and the kernels need 3.6 or newer",
    "": "module 'triton' has no attribute '__version__'",
}


def reason(*arguments):
    done = subprocess.run([sys.executable, "-c", CODE, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_triton_is_not_installed(tmp_path):
    assert reason(tmp_path, "hidden") == "triton is not installed"


@pytest.mark.parametrize("package", PACKAGES)
def test_triton_cannot_be_used(package, tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton/__init__.py").write_text(package)
    (tmp_path / "triton/language.py").write_text("")
    assert reason(tmp_path) == f"triton cannot be used: {PACKAGES[package]}"
