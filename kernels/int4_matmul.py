"""int4_matmul: y = x dequant(W)^T + b with 4-bit weights in groups along K.

W [N, K] is stored as uint8 [N, K / 2], element 2i in the low nibble and 2i + 1 in the high one. Nibble n of group g of
row r means (n - zero[r, g]) * scale[r, g] (without zero points 8: symmetric), or codebook[n] * scale[r, g] with a
16-entry codebook (NF4, FP4: Dettmers et al. 2023, arXiv 2305.14314).

The kernel computes y^T = W x^T, one group of K at a time. With operands swapped, the weights are the operand that a
tensor core reads from registers, and 16 rows of x fill an instruction. Weights go from memory to that operand without a
second pass through shared memory, because the order of K inside a group is free as long as both operands use the same
one: a thread loads its 4 consecutive words of 8 nibbles (16 bytes, in a group of 128), uses the nibbles as fragments in
the order in which they are cheapest to extract, and x, which is small, is permuted to match. So the plain format needs
no repacking. Rows are assigned to threads by the same rule. A nibble is converted by one OR into the mantissa of 128
(bfloat16) or 1024 (float16) and one subtraction, for two weights at a time (after Kim et al. 2022, arXiv 2211.10017); a
codebook is looked up by byte permutations (int4_unpack.py). Scales and zero points are applied to the float32 sums of a
group, not to the weights: sum_k (n_k - z) s x_k = s (sum_k (n_k - 8) x_k + (8 - z) sum_k x_k).

Fused: dequantization, product, bias. Dequantizing first would also write and read 2 N K bytes of 16-bit weights. Bytes:
N K / 2 + 2 N K / group for the weights, against 2 N K in 16 bits; FLOPs: 2 M N K. An H200 (4.3 TB/s, 790 TFLOP/s in
bfloat16) is bound by bytes up to M = 47, at 8.3e12 weights per second, which leaves 3.9 instructions per weight. Above
tuning.INT4_DENSE_ROWS rows (INT4_DENSE_ROWS_FLOAT32 in float32), where every tile of x would unpack the weights again,
they are dequantized once and torch multiplies.

With `int8` each row of x is first rounded to 8 bits (`round_rows`), so that the sum over a group is one of integers,
exact in 32 bits: y = s_x sum_g s_g (sum_k n_k q_k - z_g sum_k q_k) + b, where x is s_x q. Only the C++ extension
(int4_matmul_cpp.py) computes that in integers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import tuning
from .int4_unpack import codebook_bytes, unpack_int4
from .language import INTERPRETED, tl, triton


def dequantize_reference(
    packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, codebook: torch.Tensor | None
) -> torch.Tensor:
    """Weights [N, K] in the dtype of scale; packed uint8 [N, K / 2], scale and zero [N, K / group], codebook [16]."""
    rows, groups = scale.shape
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).view(rows, groups, -1)
    if codebook is not None:
        values = codebook.to(scale.dtype)[nibbles.long()]
    else:
        values = nibbles.to(scale.dtype) - (8 if zero is None else zero.to(scale.dtype)[..., None])
    return (values * scale[..., None]).view(rows, -1)


def round_rows(x: torch.Tensor) -> torch.Tensor:
    """Round x [M, K] to 8 bits: each row becomes integers in [-127, 127] times (its largest absolute value / 127).

    Computed in float32, returned in the dtype of x. A row that is not finite becomes NaN.
    """
    x_float32 = x.float()
    scale = x_float32.abs().amax(1, keepdim=True) / 127
    integers = torch.where(scale > 0, x_float32 / scale, 0.0).round().clamp(-127, 127)
    integers = torch.where(scale.isfinite(), integers, torch.nan)
    return integers.to(x.dtype) * scale.to(x.dtype)


def int4_matmul_reference(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    codebook: torch.Tensor | None = None,
    int8: bool = False,
) -> torch.Tensor:
    """x [M, K] @ dequantized W [N, K]^T + bias [N], in the dtype of x; with int8, of `round_rows` of x."""
    x = round_rows(x) if int8 else x
    return F.linear(x, dequantize_reference(packed, scale, zero, codebook).to(x.dtype), bias)


@triton.jit(do_not_specialize=["M", "groups_per_split"])
def _int4_matmul_kernel(
    x_ptr,  # [M, K], rows stride_x apart
    words_ptr,  # int32 [N, K / 8]
    scale_ptr,  # [N, groups]
    zero_ptr,  # [N, groups] or None
    bias_ptr,  # [N] or None
    codebook_ptr,  # [16] or None
    y_ptr,  # [SPLITS, M, N]
    M,
    N,
    groups,
    groups_per_split,
    stride_x,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNROLL: tl.constexpr,
    WARPS: tl.constexpr,
    USE_PTX: tl.constexpr,
):
    """One tile of y^T [BLOCK_N, BLOCK_M], summed over the groups of one split of K."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2).to(tl.int64)
    first_group = (split * groups_per_split).to(tl.int32)
    last_group = tl.minimum(first_group + groups_per_split, groups)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    WORDS: tl.constexpr = GROUP // 32  # of a thread: 4 threads share the row of a group

    # In the operand of a tensor core a warp holds rows 0..7 and 8..15 of its 16 in separate registers, but a load gives
    # 8 consecutive rows to a warp. So row (tile, half, warp, 8) is loaded where row (tile, warp, half, 8) is needed.
    r = tl.arange(0, BLOCK_N)
    r = r // (16 * WARPS) * (16 * WARPS) + r // 8 % WARPS * 16 + r // (8 * WARPS) % 2 * 8 + r % 8
    rows_w = tl.minimum(tl.program_id(1).to(tl.int64) * BLOCK_N + r, N - 1)
    words_ptr += rows_w[None, :, None] * (groups * (GROUP // 8))
    words_ptr += (tl.arange(0, 4) * WORDS)[:, None, None] + tl.arange(0, WORDS)[None, None, :]
    x_ptr += offs_m[:, None] * stride_x + tl.arange(0, GROUP)[None, :]
    offs_scale = tl.minimum(offs_n, N - 1) * groups

    codebook_words = (0, 0, 0, 0, 0, 0, 0, 0)
    if USE_PTX and codebook_ptr is not None:
        low0, high0 = codebook_bytes(codebook_ptr, 0, DTYPE)
        low1, high1 = codebook_bytes(codebook_ptr, 4, DTYPE)
        low2, high2 = codebook_bytes(codebook_ptr, 8, DTYPE)
        low3, high3 = codebook_bytes(codebook_ptr, 12, DTYPE)
        codebook_words = (low0, low1, low2, low3, high0, high1, high2, high3)

    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    # A 2-byte load cannot be asynchronous (cp.async), so it is issued one group ahead.
    next_scale = tl.load(scale_ptr + offs_scale + tl.minimum(first_group, groups - 1))
    if zero_ptr is not None:
        next_zero = tl.load(zero_ptr + offs_scale + tl.minimum(first_group, groups - 1))
    for g in tl.range(first_group, last_group, loop_unroll_factor=UNROLL):
        x = tl.load(x_ptr + g * GROUP, mask=(offs_m < M)[:, None], other=0.0)
        if codebook_ptr is not None:
            x = tl.permute(tl.reshape(x, (BLOCK_M, 4, WORDS, 4, 2)), (0, 2, 3, 1, 4))
        else:
            x = tl.permute(tl.reshape(x, (BLOCK_M, 4, WORDS, 2, 4)), (0, 2, 4, 1, 3))
        x = tl.trans(tl.reshape(x, (BLOCK_M, GROUP)))
        product = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        if zero_ptr is not None:
            zero_shift = 8 - next_zero.to(tl.float32)
            next_zero = tl.load(zero_ptr + offs_scale + tl.minimum(g + 1, last_group - 1))
            if DTYPE != tl.float32:  # sum x by the tensor cores, which are idle during unpacking
                product = zero_shift[:, None] * tl.dot(tl.full((BLOCK_N, GROUP), 1, DTYPE), x)
        w = unpack_int4(tl.load(words_ptr + g * (GROUP // 8)), codebook_ptr, codebook_words, DTYPE, USE_PTX)
        w = tl.reshape(w, (4, BLOCK_N // (16 * WARPS), 2, WARPS, 8, WORDS, 4, 2))
        w = tl.reshape(tl.permute(w, (1, 3, 2, 4, 5, 6, 0, 7)), (BLOCK_N, GROUP))
        if zero_ptr is not None and DTYPE == tl.float32:
            w += zero_shift[:, None]
        product = tl.dot(w, x, product, input_precision="ieee")
        acc += next_scale.to(tl.float32)[:, None] * product
        next_scale = tl.load(scale_ptr + offs_scale + tl.minimum(g + 1, last_group - 1))
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + tl.minimum(offs_n, N - 1)).to(tl.float32)[:, None]
    y_ptr += (split * M + offs_m[None, :]) * N + offs_n[:, None]
    tl.store(y_ptr, acc.to(y_ptr.dtype.element_ty), mask=(offs_n < N)[:, None] & (offs_m < M)[None, :])


@triton.jit(do_not_specialize=["M"])
def _merge_splits_kernel(partial_ptr, bias_ptr, y_ptr, M, N, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """y [M, N] = sum of partial [SPLITS, M, N], in order, + bias [N]."""
    m = tl.program_id(1).to(tl.int64)
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        acc += tl.load(partial_ptr + (split * M.to(tl.int64) + m) * N + offs_n, mask=offs_n < N, other=0.0)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + m * N + offs_n, acc.to(y_ptr.dtype.element_ty), mask=offs_n < N)


@triton.jit
def _dequantize_kernel(
    words_ptr, scale_ptr, zero_ptr, codebook_ptr, weight_ptr, groups, GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    """BLOCK words of one row of weight [N, K]. Each step rounds to the dtype of scale, as dequantize_reference does."""
    DTYPE: tl.constexpr = scale_ptr.dtype.element_ty
    n = tl.program_id(0).to(tl.int64)
    offs_word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs_word < groups * (GROUP // 8)
    j = tl.arange(0, 8)
    words = tl.load(words_ptr + n * groups * (GROUP // 8) + offs_word, mask=mask, other=0)
    nibbles = (words[:, None] >> (4 * j)[None, :]) & 15
    offs_scale = n * groups + offs_word // (GROUP // 8)
    if codebook_ptr is not None:
        values = tl.load(codebook_ptr + nibbles).to(DTYPE).to(tl.float32)
    elif zero_ptr is not None:
        zeros = tl.load(zero_ptr + offs_scale, mask=mask, other=0).to(DTYPE).to(tl.float32)
        values = (nibbles.to(tl.float32) - zeros[:, None]).to(DTYPE).to(tl.float32)
    else:
        values = (nibbles - 8).to(tl.float32)
    values = (values * tl.load(scale_ptr + offs_scale, mask=mask, other=0.0).to(tl.float32)[:, None]).to(DTYPE)
    weight_ptr += n * groups * GROUP + offs_word[:, None] * 8 + j[None, :]
    tl.store(weight_ptr, values.to(weight_ptr.dtype.element_ty), mask=mask[:, None])


def int4_matmul_triton(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    codebook: torch.Tensor | None = None,
    int8: bool = False,
) -> torch.Tensor:
    """As int4_matmul_reference, for inference.

    Up to 64 rows, the order of the sum in a row of y depends only on N and K, not on the other rows. Above
    `tuning.INT4_DENSE_ROWS` rows the weights are dequantized to the dtype of x and torch multiplies.

    Args:
        x: [M, K] float32, float16 or bfloat16, with any stride between rows; without gradient.
        packed: uint8 [N, K / 2], contiguous, with a storage offset that is a multiple of 4.
        scale: [N, K / group] floating, contiguous; the group is 32, 64 or 128.
        zero: like scale, of any dtype; None means 8. Ignored with a codebook.
        bias: [N] floating. codebook: [16] floating.
        int8: must be False: the kernel has no integer products.

    Raises:
        ValueError: any other argument.
    """
    if int8:
        raise ValueError("int4_matmul_triton does not round x to 8 bits")
    group = _check_arguments(x, packed, scale, zero, bias, codebook)
    (rows, columns), features = x.shape, packed.shape[0]
    y = torch.empty((rows, features), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    zero = None if codebook is not None else zero
    arch, groups = tuning.architecture(x.device), columns // group
    shape = (tuning.power_of_2(rows), features, columns, group, zero is not None, x.dtype == torch.float32)
    launch = tuning.int4_matmul(arch, *shape)
    words = packed.view(torch.int32)
    if launch is None:
        weight = torch.empty((features, columns), dtype=x.dtype, device=x.device)
        block = tuning.INT4_DEQUANTIZE_WORDS
        grid = (features, triton.cdiv(columns // 8, block))
        _dequantize_kernel[grid](words, scale, zero, codebook, weight, groups, GROUP=group, BLOCK=block)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    block_m, block_n, splits = launch.tiles["BLOCK_M"], launch.tiles["BLOCK_N"], launch.tiles["SPLITS"]
    partial = y if splits == 1 else torch.empty((splits, rows, features), dtype=torch.float32, device=x.device)
    _int4_matmul_kernel[triton.cdiv(rows, block_m), triton.cdiv(features, block_n), splits](
        x,
        words,
        scale,
        zero,
        bias if splits == 1 else None,
        codebook,
        partial,
        rows,
        features,
        groups,
        triton.cdiv(groups, splits),
        x.stride(0),
        GROUP=group,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        UNROLL=launch.tiles["UNROLL"],
        WARPS=launch.num_warps,
        USE_PTX=x.dtype != torch.float32 and not INTERPRETED,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    if splits > 1:
        block = tuning.INT4_MERGE_COLUMNS
        _merge_splits_kernel[triton.cdiv(features, block), rows](
            partial, bias, y, rows, features, SPLITS=splits, BLOCK=block, num_warps=4
        )
    return y


def _check_arguments(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    bias: torch.Tensor | None,
    codebook: torch.Tensor | None,
) -> int:
    """Raise ValueError for arguments that int4_matmul_triton does not take; returns the size of a group."""
    if x.dim() != 2 or packed.dim() != 2 or scale.dim() != 2:
        shapes = [tuple(t.shape) for t in (x, packed, scale)]
        raise ValueError(f"int4_matmul takes x [M, K], packed [N, K/2] and scale [N, K/group], got {shapes}")
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"x must be float32, float16 or bfloat16, got {x.dtype}")
    if packed.dtype != torch.uint8:
        raise ValueError(f"packed must be uint8, got {packed.dtype}")
    columns, (features, groups) = x.shape[1], scale.shape
    group = columns // groups if groups else 0
    if group not in (32, 64, 128) or group * groups != columns:
        raise ValueError(f"K = {columns} in {groups} groups: a group must be 32, 64 or 128")
    if packed.shape != (features, columns // 2):
        raise ValueError(f"packed must be {(features, columns // 2)}, got {tuple(packed.shape)}")
    for name, tensor, shape in (
        ("scale", scale, scale.shape),
        ("zero", zero, scale.shape),
        ("bias", bias, (features,)),
        ("codebook", codebook, (16,)),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous {tuple(shape)}, got {tuple(tensor.shape)} {tensor.stride()}")
        if name != "zero" and not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
    if packed.device != x.device:
        raise ValueError(f"packed is on {packed.device}, x on {x.device}")
    if not packed.is_contiguous() or packed.storage_offset() % 4:
        raise ValueError(
            f"packed must be contiguous with an offset that is a multiple of 4, got strides {packed.stride()} and "
            f"offset {packed.storage_offset()}"
        )
    if x.stride(1) != 1:
        raise ValueError(f"the last dimension of x must be contiguous, got strides {x.stride()}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("int4_matmul_triton has no backward, and x requires a gradient")
    return group
