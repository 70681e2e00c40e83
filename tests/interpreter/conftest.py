"""These tests run kernels in Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/interpreter`."""

import functools
import inspect
import os

import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.exit("the tests of this folder need TRITON_INTERPRET=1, set before any kernel is imported", returncode=4)

torch.set_num_threads(1)


def _patch_range_bounds():
    """Triton 3.6 converts a loop bound, an array of one element, by int(), which numpy 2.4 rejects."""
    original = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def _remember_builtins():
    """Cache the names of triton.language: Triton scans them at each device function call, half of the test time."""

    @functools.cache
    def names(package):  # first called while nothing is patched
        return [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]

    def patched(package, builder, scope):
        for name in names(package):
            member = getattr(package, name)
            if tl.core.is_builtin(member):
                interpreter._patch_attr(package, name, member, builder, scope)

    interpreter._patch_builtin = patched


_patch_range_bounds()
_remember_builtins()


def pytest_configure(config):
    """Silence numpy, with which the interpreter computes, on the infinities and NaNs of cases."""
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton")


def pytest_collection_modifyitems(items):
    """Operators without a backward have no gradient test, instead of a skipped one."""
    items[:] = [item for item in items if "NOTSET" not in item.name]
