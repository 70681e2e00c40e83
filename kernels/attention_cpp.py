"""attention by the C++ extension, for inference in float32, bfloat16 and float16 on a CPU.

The code is csrc/packed_attention_cpu.cpp. It reads packed tokens where they are, so padding costs nothing. Arithmetic
is in float32 for all dtypes.
"""

from __future__ import annotations

from typing import Any

import torch

from . import cpp
from .plain import is_plain_tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attention_cpp(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    causal: bool = False,
    q_start: torch.Tensor | None = None,
    key_len: torch.Tensor | None = None,
    key_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """As attention_reference, where why_not_attention_cpp is None and the extension is loaded; without gradient.

    Each row of the result is bit-identical for any other sequences in the batch. Keys that `key_len` and `key_mask`
    hide are not read.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    cpp.packed_attention(
        *map(_dense_heads, (q, k, v)), cu_q.contiguous(), cu_k.contiguous(), causal, _numbers(q_start),
        _numbers(key_len), None if key_mask is None else key_mask.contiguous(), out,
    )  # fmt: skip
    return out


def _dense_heads(x: torch.Tensor) -> torch.Tensor:
    """[T, H, D] with a contiguous last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _numbers(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.to(torch.int64).contiguous()


def why_not_attention_cpp(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, dropout: float = 0.0, **named: Any
) -> str | None:
    """Why attention_cpp does not take these arguments, as one clause; None where it does."""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return "a gradient is required, and the function has no backward"
    if dropout:
        return "it drops no weights"
    if q.dtype not in DTYPES:
        return f"{q.dtype} is none of float32, bfloat16 and float16"
    if k.dtype != q.dtype or v.dtype != q.dtype:
        return f"q is {q.dtype}, k {k.dtype} and v {v.dtype}"
    if q.shape[-1] == 0:
        return "the head dimension is 0"
    return None if is_plain_tensor(k) and is_plain_tensor(v) else "k or v is no plain tensor"
