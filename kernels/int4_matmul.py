"""int4_matmul: y = x dequant(W)^T + b with 4-bit weights in groups along K.

W [N, K] is stored as uint8 [N, K / 2], element 2i in the low and 2i + 1 in the high nibble. Nibble n of group g of
row r means (n - zero[r, g]) * scale[r, g] (zero 8 where none is given: symmetric), or codebook[n] * scale[r, g] with a
16-entry codebook (NF4, FP4: Dettmers et al. 2023, arXiv 2305.14314).

Bytes: N K / 2 + 2 N K / group for the weights, against 2 N K in 16 bits; FLOPs: 2 M N K.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dequantize_reference(
    packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, codebook: torch.Tensor | None
) -> torch.Tensor:
    """Weights [N, K] in the dtype of scale; packed uint8 [N, K/2], scale and zero [N, K/group], codebook [16]."""
    rows, groups = scale.shape
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).view(rows, groups, -1)
    if codebook is not None:
        values = codebook.to(scale.dtype)[nibbles.long()]
    else:
        values = nibbles.to(scale.dtype) - (8 if zero is None else zero.to(scale.dtype)[..., None])
    return (values * scale[..., None]).view(rows, -1)


def int4_matmul_reference(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    codebook: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [M, K] @ dequantized W [N, K]^T + bias [N]; dtype of x."""
    return F.linear(x, dequantize_reference(packed, scale, zero, codebook).to(x.dtype), bias)
