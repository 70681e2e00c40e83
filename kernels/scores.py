"""What the operators on scores of tokens share: checks of their arguments, and keys that put scores in an order.

Scores are [R, V]. A key is one int64: above, a score's place among the float32; below, its index, falling. So of two
keys the one with the larger score is larger, and of equal scores the one with the lower index; the largest key of many
is one reduction and says where it was.
"""

from __future__ import annotations

import torch

from .language import tl, triton

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32)
NO_KEY = tl.constexpr(-0x7FFFFFFF00000001)  # less than any key; its index is 0
LOG2_E = tl.constexpr(1.4426950408889634)


def check_scores(scores: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """ValueError where scores are no [R, V] of such a dtype, have no column, or want a gradient."""
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
    """ValueError where a tensor beside the scores, by default of one number for each row, does not fit them."""
    shapes = ((scores.shape[0],),) if shapes is None else shapes
    if tuple(tensor.shape) not in shapes:
        raise ValueError(f"{name} must be {' or '.join(map(str, map(list, shapes)))}, not {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} is {tensor.dtype}; supported are {', '.join(str(d)[6:] for d in dtypes)}")
    if tensor.device != scores.device:
        raise ValueError(f"{name} is on {tensor.device}, scores are on {scores.device}")


def check_kernel(scores: torch.Tensor, **others: torch.Tensor | None) -> None:
    """ValueError where a kernel does not take what its reference takes: float64, and dimensions with gaps."""
    if scores.dtype == torch.float64:
        raise ValueError("scores are float64; the kernels take float32, float16 and bfloat16")
    if scores.shape[1] >= 2**31:
        raise ValueError(f"scores have {scores.shape[1]} columns, the kernels count to {2**31 - 1}")
    for name, tensor in {"scores": scores, **others}.items():
        if tensor is not None and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"the last dimension of {name} must be contiguous, its stride is {tensor.stride(-1)}")


def real_dtypes(scores: torch.Tensor) -> tuple[torch.dtype, ...]:
    """Dtypes of the real numbers beside scores: float64 is that of checks."""
    return (torch.float64, torch.float32) if scores.dtype == torch.float64 else (torch.float32,)


def compute_dtype(scores: torch.Tensor) -> torch.dtype:
    """What references compute in."""
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


@triton.jit
def order_of(x):
    """float32 -> int32 in the same order: both zeros 0, NaN above all."""
    bits = tl.where(x == x, x, float("nan")).to(tl.int32, bitcast=True)
    sign = bits >> 31
    return ((bits & 0x7FFFFFFF) ^ sign) - sign


@triton.jit
def number_of(order):
    """The float32 whose `order_of` this is."""
    sign = order >> 31
    return (((order ^ sign) - sign) | (sign & -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def key_of(order, index):
    """`order_of` a number and an index as one int64: the larger number is more, of equal ones the lower index."""
    return (order.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def index_of(key):
    """The index in a key."""
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)
