"""Products of 4-bit weights with the identity matrix, which give every weight as the product unpacks it."""

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
    """A weight with all 16 values in each group of each row; scales and zero points in a dtype."""
    draw = torch.Generator().manual_seed(group)
    nibbles = torch.arange(COLUMNS).add(torch.arange(FEATURES)[:, None] * 5) % 16
    shape = FEATURES, COLUMNS // group
    tensors = {
        "packed": (nibbles[:, ::2] | nibbles[:, 1::2] << 4).to(torch.uint8),
        "scale": (torch.randn(shape, generator=draw) / 8).to(dtype),
    }
    if form == "zero":
        tensors["zero"] = torch.randint(0, 16, shape, generator=draw).to(dtype)
    if form in ("NF4", "FP4"):
        tensors["codebook"] = torch.tensor(NF4 if form == "NF4" else FP4)
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def wrong(rows: int, form: str, group: int, dtype: torch.dtype, device: torch.device) -> int:
    """The number of weights that `ops.int4_matmul` of so many rows unpacks to another value than the reference."""
    tensors = weight(form, group, dtype, device)
    expected = dequantize_reference(tensors["packed"], tensors["scale"], tensors.get("zero"), tensors.get("codebook"))
    identity = torch.eye(COLUMNS, dtype=dtype, device=device)
    identity = identity.repeat(-(-rows // COLUMNS), 1)
    unpacked = torch.cat([ops.int4_matmul(identity[m : m + rows], **tensors) for m in range(0, COLUMNS, rows)])
    return int((unpacked[:COLUMNS].T != expected).sum())
