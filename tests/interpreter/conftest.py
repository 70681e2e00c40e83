"""These tests run kernels in Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/interpreter`."""

import os

import pytest
import torch
from triton.runtime import interpreter

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.exit("the tests of this folder need TRITON_INTERPRET=1, set before any kernel is imported", returncode=4)

torch.set_num_threads(1)


def _patch_range_bounds():
    """Triton 3.6 converts a loop's bound, an array of one element, by int(), which numpy 2.4 no longer does."""
    original = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


_patch_range_bounds()


def pytest_collection_modifyitems(items):
    """An operator without a backward has no test of it, rather than one that is skipped."""
    items[:] = [item for item in items if "NOTSET" not in item.name]
