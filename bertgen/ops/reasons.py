"""Why Triton kernels decline arguments: the reasons that several kernels share, or that need no code of a kernel.

Each function takes the arguments of the operator, and returns one clause, or None where the kernel takes them.
"""

from __future__ import annotations

from typing import Any

import torch

from ..kernels.plain import why_not_gradients


def why_not_attention(q: torch.Tensor, *rest: Any, key_mask: torch.Tensor | None = None, **named: Any) -> str | None:
    """Why attention_triton declines."""
    if key_mask is not None:
        return "the kernel takes no mask that lengths cannot express"
    return _why_not_heads(q) or _why_not_mixed(q, *rest, *named.values())


def why_not_decode_attention(q: torch.Tensor, *rest: Any, **named: Any) -> str | None:
    """Why decode_attention_triton and cross_decode_attention_triton decline."""
    arguments = (q, *rest, *named.values())
    return why_not_gradients(*arguments) or _why_not_heads(q) or _why_not_mixed(*arguments)


def why_not_int4_matmul(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None,
    bias: torch.Tensor | None = None, codebook: torch.Tensor | None = None, int8: bool = False,
) -> str | None:  # fmt: skip
    """Why int4_matmul_triton declines."""
    if int8:
        return "the kernel does not round x to 8 bits"
    return why_not_gradients(x, scale, zero, bias, codebook) or _why_not_dtype(x)


def why_not_scores(scores: torch.Tensor, *rest: Any, **named: Any) -> str | None:
    """Why process_triton, top_log_probs_triton and sample_triton decline."""
    return why_not_gradients(scores) or _why_not_dtype(scores)


def _why_not_heads(q: torch.Tensor) -> str | None:
    if q.shape[-1] > 128:
        return f"the head dimension is {q.shape[-1]}, the kernel takes up to 128"
    return _why_not_dtype(q)


def _why_not_dtype(x: torch.Tensor) -> str | None:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return None if x.dtype in dtypes else f"{x.dtype} is none of float32, float16 and bfloat16"


def _why_not_mixed(q: torch.Tensor, *others: Any) -> str | None:
    """Why not where a floating tensor has another dtype than q, as beside a product under autocast."""
    for t in others:
        if isinstance(t, torch.Tensor) and t.dtype != q.dtype and t.is_floating_point():
            return f"q is {q.dtype}, and another tensor {t.dtype}"
    return None
