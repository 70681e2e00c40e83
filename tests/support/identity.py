"""Products with the identity: every 4-bit weight as a product uses it, bit-identical to the reference."""

from __future__ import annotations

from typing import Any

import torch
from bertgen.kernels.int4_matmul import dequantize_reference
from bertgen.kernels.int4_matmul_cases import FP4, NF4

from bertgen import ops

FORMS = ("symmetric", "zero", "NF4", "FP4")
GROUPS = (32, 64, 128)
FEATURES, COLUMNS = 24, 128


def weight(form: str, group: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """All 16 nibbles in each group of each row; scales and zero points in a dtype."""
    draw = torch.Generator().manual_seed(group)
    nibbles = torch.arange(COLUMNS).add(torch.arange(FEATURES)[:, None] * 5) % 16
    shape = FEATURES, COLUMNS // group
    given = {
        "packed": (nibbles[:, ::2] | nibbles[:, 1::2] << 4).to(torch.uint8),
        "scale": (torch.randn(shape, generator=draw) / 8).to(dtype),
    }
    if form == "zero":
        given["zero"] = torch.randint(0, 16, shape, generator=draw).to(dtype)
    if form in ("NF4", "FP4"):
        given["codebook"] = torch.tensor(NF4 if form == "NF4" else FP4)
    return {name: tensor.to(device) for name, tensor in given.items()}


def wrong(rows: int, form: str, group: int, dtype: torch.dtype, device: torch.device) -> int:
    """Number of weights that `ops.int4_matmul` with so many rows dequantizes differently from the reference."""
    given = weight(form, group, dtype, device)
    expected = dequantize_reference(given["packed"], given["scale"], given.get("zero"), given.get("codebook"))
    one = torch.eye(COLUMNS, dtype=dtype, device=device)
    one = one.repeat(-(-rows // COLUMNS), 1)
    found = torch.cat([ops.int4_matmul(one[m : m + rows], **given) for m in range(0, COLUMNS, rows)])
    return int((found[:COLUMNS].T != expected).sum())
