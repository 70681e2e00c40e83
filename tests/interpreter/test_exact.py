"""4-bit weights as the kernels unpack them, in tiles of each size and dequantized at once: bit-identical."""

from __future__ import annotations

import pytest
import torch
from bertgen.kernels.tuning import INT4_DENSE_ROWS, INT4_DENSE_ROWS_FLOAT32

from bertgen import ops
from tests.support import int4_products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # bfloat16 is wrong in the interpreter
@pytest.mark.parametrize("group", int4_products.GROUPS)
@pytest.mark.parametrize("form", int4_products.FORMS)
def test_weights_are_their_definition(form, group, dtype):
    dense = INT4_DENSE_ROWS_FLOAT32 if dtype == torch.float32 else INT4_DENSE_ROWS
    before = ops.set_backend("triton")
    try:
        for rows in (16, 64, dense + 1):
            assert int4_products.wrong(rows, form, group, dtype, torch.device("cpu")) == 0, rows
    finally:
        ops.set_backend(before)
