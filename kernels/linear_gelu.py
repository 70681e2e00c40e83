"""linear_gelu: y = gelu(x W^T + b), exact (erf), the first product of a feed-forward network; for inference.

Shapes: x [M, K], W [N, K] (checkpoint layout), b [N], y [M, N]. GELU: Hendrycks and Gimpel 2016, arXiv 1606.08415.

Fused: bias and GELU run in the epilogue of the product, on its float32 sums. (cuBLAS has such an epilogue for the tanh
form only.) A separate kernel would read and write y once more, 4 M N bytes in 16 bits. FLOPs: 2 M N K; bytes:
2 (M K + N K + M N). On an H200 (4.3 TB/s, 790 TFLOP/s in bfloat16) 16384 x 4096 from 1024 take 174 us, bound by FLOPs,
and a separate bias and GELU 62 us: fusing pays where this product reaches 74% of the speed of cuBLAS.

The epilogue takes about 20 instructions per element of y: 40 us in all if the tensor cores waited for it. So tiles are
small enough for two programs on an SM, and one multiplies during the epilogue of the other. From sm_90 on, tiles are
loaded and stored through tensor descriptors (TMA), which also mask the edges. Pointers are used before sm_90 and where
rows are not aligned to 16 bytes.
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
    x_ptr,  # [M, K], rows stride_x apart
    weight_ptr,  # [N, K], contiguous
    bias_ptr,  # [N] or None
    y_ptr,  # [M, N], contiguous
    M,
    N,
    K,
    stride_x,
    USE_TMA: tl.constexpr,  # whether x_ptr, weight_ptr and y_ptr are tensor descriptors instead of pointers
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides K
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One tile of y. Programs go down GROUP_M tiles of rows before the next columns, so that x and W stay in L2."""
    tile = tl.program_id(0).to(tl.int64)
    tiles_per_group = GROUP_M * tl.cdiv(N, BLOCK_N)
    first_m = tile // tiles_per_group * GROUP_M
    group_m = tl.minimum(tl.cdiv(M, BLOCK_M) - first_m, GROUP_M)
    start_m = (first_m + tile % tiles_per_group % group_m) * BLOCK_M
    start_n = tile % tiles_per_group // group_m * BLOCK_N
    offs_m, offs_n, offs_k = start_m + tl.arange(0, BLOCK_M), start_n + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    if not USE_TMA:
        x_ptr += tl.minimum(offs_m, M - 1)[:, None] * stride_x + offs_k[None, :]
        weight_ptr += tl.minimum(offs_n, N - 1)[:, None] * K + offs_k[None, :]

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start_k in range(0, K, BLOCK_K):
        if USE_TMA:
            x = x_ptr.load([start_m.to(tl.int32), start_k])
            w = weight_ptr.load([start_n.to(tl.int32), start_k])
        elif EVEN_K:
            x = tl.load(x_ptr + start_k)
            w = tl.load(weight_ptr + start_k)
        else:
            x = tl.load(x_ptr + start_k, mask=(offs_k < K - start_k)[None, :], other=0.0)
            w = tl.load(weight_ptr + start_k, mask=(offs_k < K - start_k)[None, :], other=0.0)
        acc = tl.dot(x, w.T, acc, input_precision="ieee")

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + tl.minimum(offs_n, N - 1)).to(tl.float32)[None, :]
    acc = activate(acc, "gelu")
    if USE_TMA:
        y_ptr.store([start_m.to(tl.int32), start_n.to(tl.int32)], acc.to(y_ptr.dtype))
    else:
        y_ptr += offs_m[:, None] * N + offs_n[None, :]
        tl.store(y_ptr, acc.to(y_ptr.dtype.element_ty), mask=(offs_m < M)[:, None] & (offs_n < N)[None, :])


def _linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """linear_gelu by the fused kernel, for any size and without checks."""
    (rows, columns), features = x.shape, weight.shape[0]
    y = torch.empty((rows, features), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    launch = tuning.linear_gelu_tiles(tuning.architecture(x.device), x.element_size(), _aligned(x, weight, y))
    block_m, block_n, block_k = (launch.tiles[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    use_tma = bool(launch.tiles["USE_TMA"])
    matrices = x, weight, y
    if use_tma:
        from triton.tools.tensor_descriptor import TensorDescriptor

        blocks = [block_m, block_k], [block_n, block_k], [block_m, block_n]
        matrices = tuple(TensorDescriptor.from_tensor(t, block) for t, block in zip(matrices, blocks))
    _linear_gelu_kernel[(triton.cdiv(rows, block_m) * triton.cdiv(features, block_n),)](
        *matrices[:2], bias, matrices[2], rows, features, columns, x.stride(0),
        EVEN_K=use_tma or columns % block_k == 0,
        **launch.tiles, num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    return y


def _aligned(*matrices: torch.Tensor) -> bool:
    """Whether rows start at multiples of 16 elements and do not overlap.

    A tensor descriptor needs half of that. Without one, this is what Triton needs to emit 16-byte loads.
    """
    return all(t.data_ptr() % 16 == 0 and t.stride(0) % 16 == 0 and t.stride(0) >= t.shape[1] > 0 for t in matrices)


def why_not_linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> str | None:
    """Why linear_gelu_triton does not take these arguments, as one clause; None where it does."""
    if torch.is_autocast_enabled(x.device.type):
        return "autocast chooses other dtypes"
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        return f"x {tuple(x.shape)} and weight {tuple(weight.shape)} are not [M, K] and [N, K]"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"{x.dtype} is none of float32, float16 and bfloat16"
    if bias is not None and bias.shape != weight.shape[:1]:
        return f"bias has shape {tuple(bias.shape)} instead of {tuple(weight.shape[:1])}"
    for name, t in (("weight", weight), *(() if bias is None else (("bias", bias),))):
        if t.dtype != x.dtype or t.device != x.device:
            return f"{name} is {t.dtype} on {t.device}, x is {x.dtype} on {x.device}"
        if not t.is_contiguous():
            return f"{name} {tuple(t.shape)} is not contiguous, its strides are {t.stride()}"
    if x.stride(1) != 1 and x.shape[1] > 1:
        return f"the last dimension of x has stride {x.stride(1)} instead of 1"
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return "a gradient is required, and the kernel has no backward"
    return None


def linear_gelu_triton(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As linear_gelu_reference, for inference; torch's product and bias_gelu where `tuning.linear_gelu` is None.

    Args:
        x: [M, K] float32, float16 or bfloat16, with any stride between rows. weight: [N, K]. bias: [N].

    Raises:
        ValueError: a shape, dtype, device or stride that the kernel does not take, or a required gradient.
    """
    reason = why_not_linear_gelu(x, weight, bias)
    if reason is not None:
        raise ValueError(reason)
    arch = tuning.architecture(x.device)
    if tuning.linear_gelu(arch, x.shape[0], *weight.shape, x.element_size()) is None:
        return bias_gelu_triton(F.linear(x, weight), bias)
    return _linear_gelu(x, weight, bias)
