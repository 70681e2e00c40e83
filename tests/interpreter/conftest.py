"""These tests run kernels in Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/interpreter`."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.exit("the tests of this folder need TRITON_INTERPRET=1, set before any kernel is imported", returncode=4)

torch.set_num_threads(1)
