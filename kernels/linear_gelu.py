"""linear_gelu: y = gelu(x W^T + b), exact (erf), the first product of a feed-forward network; for inference.

Shapes: x [M, K], W [N, K] (checkpoint layout), b [N], y [M, N]. GELU: Hendrycks and Gimpel 2016, arXiv 1606.08415.

Fused: bias and GELU into the epilogue of the product, on its float32 sums. (cuBLAS has such an epilogue for the tanh
form only.) A kernel of their own would read and write y once more, 4 M N bytes in 16 bits. FLOPs: 2 M N K; bytes:
2 (M K + N K + M N). On an H200 (4.3 TB/s, 790 TFLOP/s in bfloat16) 16384 x 4096 from 1024 take 174 us, bound by FLOPs,
and a separate bias and GELU 62 us: so fusing pays where this product reaches 74% of the speed of cuBLAS.

An element of y takes about 20 instructions after its product: 40 us, if the tensor cores had to wait for them. So tiles
are small enough for two programs on an SM, of which one multiplies while the other finishes its tile. From sm_90 on
tiles come and go by descriptors (TMA), which also cut off what lies outside; where rows are not aligned to 16 bytes,
and before sm_90, by pointers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import tuning
from .activations import activate
from .language import tl, triton
from .layernorm_gelu import bias_gelu_triton


def linear_gelu_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """gelu(x [M, K] @ weight [N, K]^T + bias [N]); dtype of x."""
    return F.gelu(F.linear(x, weight, bias))


@triton.jit(do_not_specialize=["M"])
def _linear_gelu_kernel(
    x,  # [M, K], rows stride apart
    weight,  # [N, K]
    bias,  # [N] or None
    y,  # [M, N]
    M,
    N,
    K,
    stride,
    TMA: tl.constexpr,  # whether x, weight and y are descriptors of tiles instead of pointers
    EVEN: tl.constexpr,  # whether BK divides K
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BAND: tl.constexpr,
):
    """One tile of y; programs go down BAND tiles, then to the next columns: x and W are in L2 when read again."""
    tile = tl.program_id(0).to(tl.int64)
    band = BAND * tl.cdiv(N, BN)
    first = tile // band * BAND
    height = tl.minimum(tl.cdiv(M, BM) - first, BAND)
    m0 = (first + tile % band % height) * BM
    n0 = tile % band // height * BN
    m, n, k = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN), tl.arange(0, BK)
    if not TMA:
        x += tl.minimum(m, M - 1)[:, None] * stride + k[None, :]
        weight += tl.minimum(n, N - 1)[:, None] * K + k[None, :]

    total = tl.zeros((BM, BN), tl.float32)
    for i in range(0, K, BK):
        if TMA:
            a = x.load([m0.to(tl.int32), i])
            w = weight.load([n0.to(tl.int32), i])
        elif EVEN:
            a = tl.load(x + i)
            w = tl.load(weight + i)
        else:
            a = tl.load(x + i, mask=(k < K - i)[None, :], other=0.0)
            w = tl.load(weight + i, mask=(k < K - i)[None, :], other=0.0)
        total = tl.dot(a, w.T, total, input_precision="ieee")

    if bias is not None:
        total += tl.load(bias + tl.minimum(n, N - 1)).to(tl.float32)[None, :]
    total = activate(total, "gelu")
    if TMA:
        y.store([m0.to(tl.int32), n0.to(tl.int32)], total.to(y.dtype))
    else:
        y += m[:, None] * N + n[None, :]
        tl.store(y, total.to(y.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


def _linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product by the kernel, whatever its size."""
    (rows, columns), features = x.shape, weight.shape[0]
    y = torch.empty((rows, features), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    launch = tuning.linear_gelu_tiles(tuning.architecture(x.device), x.element_size(), _aligned(x, weight, y))
    bm, bn, bk, tma = (launch.tiles[name] for name in ("BM", "BN", "BK", "TMA"))
    arguments = x, weight, y
    if tma:
        from triton.tools.tensor_descriptor import TensorDescriptor

        blocks = [bm, bk], [bn, bk], [bm, bn]
        arguments = tuple(TensorDescriptor.from_tensor(t, block) for t, block in zip(arguments, blocks))
    _linear_gelu_kernel[(triton.cdiv(rows, bm) * triton.cdiv(features, bn),)](
        *arguments[:2], bias, arguments[2], rows, features, columns, x.stride(0), EVEN=bool(tma) or columns % bk == 0,
        **launch.tiles, num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    return y


def _aligned(*matrices: torch.Tensor) -> bool:
    """Whether rows are a multiple of 16 elements apart and none overlaps another.

    A descriptor needs half of that; without one, Triton loads 16 bytes at a time where it can tell by this.
    """
    return all(t.data_ptr() % 16 == 0 and t.stride(0) % 16 == 0 and t.stride(0) >= t.shape[1] > 0 for t in matrices)


def linear_gelu_refuses(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> str | None:
    """Why linear_gelu_triton does not take these arguments; None where it does."""
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        return f"x {tuple(x.shape)} and weight {tuple(weight.shape)} instead of [M, K] and [N, K]"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"{x.dtype} is none of float32, float16 and bfloat16"
    if bias is not None and bias.shape != weight.shape[:1]:
        return f"a bias of {tuple(bias.shape)} where {tuple(weight.shape[:1])} is needed"
    for t in (weight, *(() if bias is None else (bias,))):
        if t.dtype != x.dtype or t.device != x.device:
            return f"{t.dtype} on {t.device} beside {x.dtype} on {x.device}"
        if not t.is_contiguous():
            return f"strides {t.stride()} of a {tuple(t.shape)} that must be contiguous"
    if x.stride(1) != 1 and x.shape[1] > 1:
        return f"a last dimension with a stride of {x.stride(1)} instead of 1"
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return "a gradient is wanted, and there is no backward"
    return None


def linear_gelu_triton(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As linear_gelu_reference, for inference; torch's product and bias_gelu where `tuning.linear_gelu` is None.

    Args:
        x: [M, K] float32, float16 or bfloat16, with any stride between rows. weight: [N, K]. bias: [N].

    Raises:
        ValueError: a shape, dtype, device or stride that the kernel does not take, or a gradient that is wanted.
    """
    obstacle = linear_gelu_refuses(x, weight, bias)
    if obstacle is not None:
        raise ValueError(obstacle)
    arch = tuning.architecture(x.device)
    if tuning.linear_gelu(arch, x.shape[0], *weight.shape, x.element_size()) is None:
        return bias_gelu_triton(F.linear(x, weight), bias)
    return _linear_gelu(x, weight, bias)
