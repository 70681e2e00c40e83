"""decode_attention and cross_decode_attention by the C++ extension, on a CPU in float32, bfloat16 and float16.

The code is csrc/decode_attention_cpu.cpp: pools are read and written as they are stored, all else is computed in
float32 and the result is rounded once. Arguments, shapes and results are those of `decode_attention_reference` and
`cross_decode_attention_reference`.
"""

from __future__ import annotations

from typing import Any

import torch

from . import cpp
from .plain import why_not_gradients

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def decode_attention_cpp(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_pool: torch.Tensor, value_pool: torch.Tensor,
    slots: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, arrivals: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """As decode_attention_reference, where why_not_decode_attention_cpp is None and the extension is loaded."""
    heads, tables = map(_dense_heads, (q, k, v)), (t.contiguous() for t in (slots, table, lengths))
    out = q.new_empty(q.shape, dtype=torch.float32)
    cpp.decode_attention(*heads, key_pool, value_pool, *tables, out)
    return out.to(q.dtype)


def cross_decode_attention_cpp(
    q: torch.Tensor, key_pool: torch.Tensor, value_pool: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor,
    cu_rows: torch.Tensor, max_rows: int, arrivals: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """As cross_decode_attention_reference, where why_not_decode_attention_cpp is None and the extension is loaded."""
    tables = (t.contiguous() for t in (table, lengths, cu_rows))
    out = q.new_empty(q.shape, dtype=torch.float32)
    cpp.cross_decode_attention(_dense_heads(q), key_pool, value_pool, *tables, out)
    return out.to(q.dtype)


def _dense_heads(x: torch.Tensor) -> torch.Tensor:
    """[R, H, D] in float32 with a contiguous last dimension."""
    x = x.float()
    return x if x.stride(2) == 1 else x.contiguous()


def why_not_decode_attention_cpp(q: torch.Tensor, *rest: Any, **named: Any) -> str | None:
    """Why neither of the two functions takes these arguments, as one clause; None where they do."""
    if q.dtype not in DTYPES:
        return f"{q.dtype} is not float32, bfloat16 or float16"
    for t in rest:
        if t.__class__ is not int and t is not None and t.dtype is not q.dtype and t.is_floating_point():
            return f"{q.dtype} and {t.dtype} are different"
    return why_not_gradients(q, *rest, *named.values())
