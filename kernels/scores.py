"""Shared by the operators on token scores: checks of arguments, and sortable keys.

Scores are [R, V]. A key is one int64. High 32 bits: the score as an int32 in the same order. Low 32 bits: the inverted
column index. Of two keys the one with the larger score is larger; of equal scores, the one with the lower index. So one
max-reduction gives both the largest score and its index.
"""

from __future__ import annotations

import torch

from .language import tl, triton

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32)
EMPTY_KEY = tl.constexpr(-0x7FFFFFFF00000001)  # less than any key of a score; its index is 0
LOG2_E = tl.constexpr(1.4426950408889634)


def check_scores(scores: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise ValueError unless scores are [R, V] with V > 0, of one of these dtypes, and need no gradient."""
    if scores.dim() != 2:
        raise ValueError(f"scores must be [R, V], not {tuple(scores.shape)}")
    if scores.dtype not in dtypes:
        raise ValueError(f"scores are {scores.dtype}; supported are {', '.join(str(d)[6:] for d in dtypes)}")
    if scores.shape[1] == 0:
        raise ValueError(f"scores are {tuple(scores.shape)}: there is no token to choose")
    if scores.requires_grad and torch.is_grad_enabled():
        raise ValueError("scores require a gradient, and a choice of tokens has none: call it under torch.no_grad()")


def check_argument(
    scores: torch.Tensor,
    name: str,
    tensor: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    shapes: tuple[tuple[int, ...], ...] | None = None,
) -> None:
    """Raise ValueError unless a tensor has one of these shapes (default: [R]) and dtypes, on the device of scores."""
    shapes = ((scores.shape[0],),) if shapes is None else shapes
    if tuple(tensor.shape) not in shapes:
        raise ValueError(f"{name} must be {' or '.join(map(str, map(list, shapes)))}, not {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} is {tensor.dtype}; supported are {', '.join(str(d)[6:] for d in dtypes)}")
    if tensor.device != scores.device:
        raise ValueError(f"{name} is on {tensor.device}, scores are on {scores.device}")


def check_kernel(scores: torch.Tensor, **others: torch.Tensor | None) -> None:
    """Raise ValueError for what only the reference takes: float64, and a last dimension that is not contiguous."""
    if scores.dtype == torch.float64:
        raise ValueError("scores are float64; the kernels take float32, float16 and bfloat16")
    if scores.shape[1] >= 2**31:
        raise ValueError(f"scores have {scores.shape[1]} columns; the kernels take at most {2**31 - 1}")
    for name, tensor in {"scores": scores, **others}.items():
        if tensor is not None and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"the last dimension of {name} must be contiguous, its stride is {tensor.stride(-1)}")


def real_dtypes(scores: torch.Tensor) -> tuple[torch.dtype, ...]:
    """Dtypes allowed for real-valued arguments: float32, and float64 where scores are float64 (used by tests)."""
    return (torch.float64, torch.float32) if scores.dtype == torch.float64 else (torch.float32,)


def compute_dtype(scores: torch.Tensor) -> torch.dtype:
    """The dtype in which references compute."""
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


@triton.jit
def float_to_ordered(x):
    """float32 -> int32 in the same order: both zeros map to 0, NaN is above every number."""
    bits = tl.where(x == x, x, float("nan")).to(tl.int32, bitcast=True)
    sign = bits >> 31
    return ((bits & 0x7FFFFFFF) ^ sign) - sign


@triton.jit
def ordered_to_float(ordered):
    """The inverse of `float_to_ordered`."""
    sign = ordered >> 31
    return (((ordered ^ sign) - sign) | (sign & -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def pack_key(ordered, index):
    """An int64 key from an ordered score and an index: larger scores first, then lower indices."""
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def key_index(key):
    """The index of a key."""
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def key_score(key):
    """The float32 score of a key."""
    return ordered_to_float((key >> 32).to(tl.int32))
