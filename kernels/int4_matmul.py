"""int4_matmul: y = x dequant(W)^T + b with 4-bit weights in groups along K.

W [N, K] is stored as uint8 [N, K / 2], element 2i in the low and 2i + 1 in the high nibble. Nibble n of group g of
row r means (n - zero[r, g]) * scale[r, g] (zero 8 where none is given: symmetric), or codebook[n] * scale[r, g] with a
16-entry codebook (NF4, FP4: Dettmers et al. 2023, arXiv 2305.14314).

The kernel multiplies y^T = W x^T, one group of K at a time: with operands swapped, the tile of weights is the operand
that a tensor core takes from registers, and 16 rows of x fill an instruction. Weights go from memory to that operand
without passing through shared memory again, because the order of K inside a group is free as long as both operands
have the same: a thread reads the 4 consecutive words of 8 nibbles (16 bytes) that a group of 128 holds for it, takes
the nibbles as its fragments in the order in which they are cheapest to extract, and x, which is small, is permuted to
match. So the plain format needs no repacking. Rows are dealt to threads by the same rule. A nibble becomes a number by
one OR into the mantissa of 128 (bfloat16) or 1024 (float16) and one subtraction, for two weights at a time (after Kim
et al. 2022, arXiv 2211.10017); a codebook is looked up by byte permutations. Scales and zero points multiply the
float32 sums of a group, not the weights: sum_k (n_k - z) s x_k = s (sum_k (n_k - 8) x_k + (8 - z) sum_k x_k).

Fused: dequantization, product, bias. Against dequantizing first, that saves writing and reading 2 N K bytes of 16-bit
weights. Bytes: N K / 2 + 2 N K / group for the weights, against 2 N K in 16 bits; FLOPs: 2 M N K. An H200 (4.3 TB/s,
790 TFLOP/s in bfloat16) is bound by bytes up to M = 47, there at 8.3e12 weights a second, which leaves 3.9
instructions for a weight. Above tuning.INT4_DENSE_ROWS rows (and INT4_DENSE_ROWS_FLOAT32) every tile of x would unpack
the weights once more: there they are dequantized once and torch multiplies.

On a CPU, in float32, `csrc/int4_cpu.cpp` reads the packed weight once and multiplies; above CPU_ROWS rows it only
unpacks, some rows of the weight at a time, and torch multiplies. A whole weight is never there in floats.

With `int8` each row of x is first rounded to 8 bits (`round_rows`), so that the sum over a group is one of integers,
exact in 32 bits: y = s_x sum_g s_g (sum_k n_k q_k - z_g sum_k q_k) + b, where x is s_x q. `csrc/int4_int8_cpu.cpp` does
that for any number of rows. `bench/int4.py` has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from . import tuning
from .language import INTERPRETED, tl, triton


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


def round_rows(x: torch.Tensor) -> torch.Tensor:
    """x [M, K] in 8 bits: each row is integers from -127 to 127 times its largest absolute value / 127, in float32.

    A row that is not finite becomes NaN.
    """
    wide = x.float()
    scale = wide.abs().amax(1, keepdim=True) / 127
    whole = torch.where(scale > 0, wide / scale, 0.0).round().clamp(-127, 127)
    whole = torch.where(scale.isfinite(), whole, torch.nan)
    return whole.to(x.dtype) * scale.to(x.dtype)


def int4_matmul_reference(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    codebook: torch.Tensor | None = None,
    int8: bool = False,
) -> torch.Tensor:
    """x [M, K], with int8 its rows rounded to 8 bits, @ dequantized W [N, K]^T + bias [N]; dtype of x."""
    x = round_rows(x) if int8 else x
    return F.linear(x, dequantize_reference(packed, scale, zero, codebook).to(x.dtype), bias)


CPU_ROWS = 128  # up to how many int4_matmul_cpp multiplies itself: above that torch is faster (bench/int4.py)
CPU_ELEMENTS = 2**19  # of a weight that it unpacks at a time for torch: 2 MB


def dequantize_cpp(
    packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, codebook: torch.Tensor | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """As dequantize_reference, bit for bit, where the extension is; into `out` where given, new memory being slow.

    Args:
        packed, scale, zero, codebook: dense, all but packed float32.

    Raises:
        RuntimeError: anything else.
    """
    out = scale.new_empty(packed.shape[0], 2 * packed.shape[1]) if out is None else out
    torch.ops.bertgen_C.int4_dequantize.default(packed, scale, zero, codebook, out)
    return out


def int4_matmul_cpp(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    codebook: torch.Tensor | None = None,
    int8: bool = False,
) -> torch.Tensor:
    """As int4_matmul_reference, for what int4_cpp_refuses does not refuse, where the extension is.

    Scales of another dtype than float32 are honoured as the definition has them: its rounding, some rows at a time.
    With int8 and scales in float32 a row of the result does not depend on how many there are, to the last bit.

    Raises:
        RuntimeError: shapes that do not fit.
    """
    x, packed, scale, bias = _dense(x), _dense(packed), _dense(scale), _dense(bias, torch.float32)
    ours = scale.dtype == torch.float32
    if int8 and ours:
        zero = _dense(zero, torch.float32)
        return torch.ops.bertgen_C.int4_matmul.default(x, packed, scale, zero, bias, None, True)
    x = round_rows(x) if int8 else x
    if ours:
        codebook = _dense(codebook, torch.float32)
        zero = None if codebook is not None else _dense(zero, torch.float32)
        if x.shape[0] <= CPU_ROWS:
            return torch.ops.bertgen_C.int4_matmul.default(x, packed, scale, zero, bias, codebook, False)
    for name, tensor in (("scale", scale), ("zero", zero), ("bias", bias)):
        if tensor is not None and len(tensor) != len(packed):
            raise RuntimeError(f"{name} has {len(tensor)} rows, the weight {len(packed)}")
    return _by_torch(x, [(packed, scale, zero, bias)], codebook)


def _by_torch(x: torch.Tensor, weights: Sequence[Weight], codebook: torch.Tensor | None) -> torch.Tensor:
    """Products side by side by torch, which multiplies some rows of all weights at a time, once they are unpacked."""
    features, columns = len(weights[0][0]), x.shape[-1]
    total, in_place = len(weights) * features, weights[0][1].dtype == torch.float32
    bias = None if weights[0][3] is None else torch.cat([weight[3] for weight in weights])
    block = min(total, max(1, CPU_ELEMENTS // max(1, columns)))
    y, rows = x.new_empty(x.shape[0], total), x.new_empty(block, columns)
    for first in range(0, total, max(1, block)):
        last = min(total, first + block)
        for i in range(first // features, (last - 1) // features + 1):
            packed, scale, zero, _ = weights[i]
            start, end = max(first, i * features), min(last, (i + 1) * features)
            some, out = slice(start - i * features, end - i * features), rows[start - first : end - first]
            part = packed[some], scale[some], None if zero is None else zero[some], codebook
            if in_place:
                dequantize_cpp(*part, out)
            else:
                out.copy_(dequantize_reference(*part))
        y[:, first:last] = F.linear(x, rows[: last - first], None if bias is None else bias[first:last])
    return y


# packed, scale, zero and bias of a layer.
Weight = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]


def int4_matmuls_cpp(
    x: torch.Tensor, weights: Sequence[Weight], codebook: torch.Tensor | None, int8: bool
) -> torch.Tensor:
    """Products of x [M, K] with weights [N, K], side by side: [M, len(weights) * N], for what int4_matmuls_cpp_takes.

    To the last bit what int4_matmul_cpp computes of each.
    """
    if not int8 and x.shape[0] > CPU_ROWS:
        return _by_torch(x, weights, codebook)
    packed, scales, zeros, biases = ([] if parts[0] is None else parts for parts in zip(*weights, strict=True))
    if codebook is not None:
        zeros = []
    return torch.ops.bertgen_C.int4_matmuls.default(x, packed, scales, zeros, biases, codebook, int8)


def int4_matmuls_cpp_takes(
    x: torch.Tensor, weights: Sequence[Weight], codebook: torch.Tensor | None, int8: bool
) -> bool:
    """Whether int4_matmuls_cpp can and should do these products, each of which int4_matmul_cpp would take.

    Weights have one shape, all of them zero points and biases or none; all is dense, and in float32 where not packed.
    """
    if int4_cpp_refuses(x, *weights[0], codebook, int8) is not None:
        return False
    for dtype, *parts in zip((torch.uint8, *[torch.float32] * 3), *weights, strict=True):
        if len({None if t is None else t.shape for t in parts}) > 1:
            return False
        if any(t is not None and (t.dtype != dtype or not t.is_contiguous()) for t in parts):
            return False
    return x.is_contiguous()


def _dense(tensor: torch.Tensor | None, dtype: torch.dtype | None = None) -> torch.Tensor | None:
    """In a dtype where one is given, contiguous. Nothing is called that does nothing: a step has many such products."""
    if tensor is None:
        return None
    if dtype is not None and tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def int4_cpp_refuses(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    codebook: torch.Tensor | None = None,
    int8: bool = False,
) -> str | None:
    """Why int4_matmul_cpp does not take these arguments; None where it does."""
    if int8 and codebook is not None:
        return "products of integers have no codebook"
    if x.dtype != torch.float32:
        return f"{x.dtype} is not float32"
    if x.dim() != 2 or scale.dim() != 2 or not scale.is_floating_point():
        return f"x has {x.dim()} dimensions, and scale is {scale.dtype} with {scale.dim()}"
    columns, groups = x.shape[1], scale.shape[1]
    if columns not in (32 * groups, 64 * groups, 128 * groups):
        return f"{columns} columns in {groups} groups: a group is 32, 64 or 128"
    tensors = (x, scale, zero, bias, codebook) if torch.is_grad_enabled() else ()
    if any(t is not None and t.requires_grad for t in tensors):
        return "it has no gradient, and one is wanted"
    return "autocast chooses other dtypes" if torch.is_autocast_enabled("cpu") else None


# One word of 8 nibbles -> 8 numbers n - 8 in 16 bits, as four registers of two. The outputs of a pair are nibbles i and
# i + 4, which lie 16 bits apart: no shuffling. lop3 0xEA is (a & b) | c.
_BFLOAT16 = tl.constexpr("""{
.reg .b32 a, b, c, d;
shr.u32 b, $8, 4;
shr.u32 c, $8, 8;
shr.u32 d, $8, 12;
lop3.b32 a, $8, 0x000F000F, 0x43004300, 0xEA;
lop3.b32 b, b, 0x000F000F, 0x43004300, 0xEA;
lop3.b32 c, c, 0x000F000F, 0x43004300, 0xEA;
lop3.b32 d, d, 0x000F000F, 0x43004300, 0xEA;
.reg .b32 one, minus136;
mov.b32 one, 0x3F803F80;
mov.b32 minus136, 0xC308C308;
fma.rn.bf16x2 a, a, one, minus136;
fma.rn.bf16x2 b, b, one, minus136;
fma.rn.bf16x2 c, c, one, minus136;
fma.rn.bf16x2 d, d, one, minus136;
mov.b32 {$0, $1}, a;
mov.b32 {$2, $3}, b;
mov.b32 {$4, $5}, c;
mov.b32 {$6, $7}, d;
}""")
# The same in float16, whose mantissa has room for a nibble that was not shifted: 1024 + 16 n, a sixteenth of it - 72.
_FLOAT16 = tl.constexpr("""{
.reg .b32 a, b, c, d, high;
shr.u32 high, $8, 8;
lop3.b32 a, $8, 0x000F000F, 0x64006400, 0xEA;
lop3.b32 b, $8, 0x00F000F0, 0x64006400, 0xEA;
lop3.b32 c, high, 0x000F000F, 0x64006400, 0xEA;
lop3.b32 d, high, 0x00F000F0, 0x64006400, 0xEA;
.reg .b32 one, minus1032, sixteenth, minus72;
mov.b32 one, 0x3C003C00;
mov.b32 minus1032, 0xE408E408;
mov.b32 sixteenth, 0x2C002C00;
mov.b32 minus72, 0xD480D480;
fma.rn.f16x2 a, a, one, minus1032;
fma.rn.f16x2 b, b, sixteenth, minus72;
fma.rn.f16x2 c, c, one, minus1032;
fma.rn.f16x2 d, d, sixteenth, minus72;
mov.b32 {$0, $1}, a;
mov.b32 {$2, $3}, b;
mov.b32 {$4, $5}, c;
mov.b32 {$6, $7}, d;
}""")
# One word -> 8 entries of a codebook, of which $9 to $12 hold the low and $13 to $16 the high bytes, four entries each.
# prmt picks four of eight bytes by four nibbles; bit 3 of one chooses between the halves of the codebook (lop3 0xD8
# is c ? b : a). The outputs of a pair are nibbles 2i and 2i + 1.
_CODEBOOK = tl.constexpr("""{
.reg .b32 s, t, h, a, b, low, high;
and.b32 s, $8, 0x77777777;
shr.u32 t, $8, 3;
and.b32 t, t, 0x11111111;
prmt.b32 h, 0xFF00, 0, t;
prmt.b32 a, $9, $10, s;
prmt.b32 b, $11, $12, s;
lop3.b32 low, a, b, h, 0xD8;
prmt.b32 a, $13, $14, s;
prmt.b32 b, $15, $16, s;
lop3.b32 high, a, b, h, 0xD8;
prmt.b32 a, low, high, 0x5140;
prmt.b32 b, low, high, 0x7362;
mov.b32 {$0, $1}, a;
mov.b32 {$2, $3}, b;
shr.u32 s, s, 16;
shr.u32 t, t, 16;
prmt.b32 h, 0xFF00, 0, t;
prmt.b32 a, $9, $10, s;
prmt.b32 b, $11, $12, s;
lop3.b32 low, a, b, h, 0xD8;
prmt.b32 a, $13, $14, s;
prmt.b32 b, $15, $16, s;
lop3.b32 high, a, b, h, 0xD8;
prmt.b32 a, low, high, 0x5140;
prmt.b32 b, low, high, 0x7362;
mov.b32 {$4, $5}, a;
mov.b32 {$6, $7}, b;
}""")


@triton.jit
def _table(codebook, FIRST: tl.constexpr, DTYPE: tl.constexpr):
    """Four entries of a codebook in 16 bits: their low bytes as one word, their high bytes as another."""
    low = tl.full((), 0, tl.uint32)
    high = tl.full((), 0, tl.uint32)
    for j in tl.static_range(4):
        bits = tl.load(codebook + FIRST + j).to(DTYPE).to(tl.uint16, bitcast=True).to(tl.uint32)
        low |= (bits & 255) << (8 * j)
        high |= (bits >> 8) << (8 * j)
    return low, high


@triton.jit
def _unpack(words, codebook, table, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """Words [..] of 8 nibbles -> 8 values each, in the order of extraction; without ASM the same in plain Triton.

    With a codebook that is the order of the nibbles, (0, 1), (2, 3) ..; without it is (0, 4), (1, 5) ..
    """
    if ASM:
        if codebook is not None:
            a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
                _CODEBOOK,
                "=h,=h,=h,=h,=h,=h,=h,=h,r,r,r,r,r,r,r,r,r",
                (words, table[0], table[1], table[2], table[3], table[4], table[5], table[6], table[7]),
                (tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16),
                is_pure=True,
                pack=1,
            )
        else:
            a, b, c, d, e, f, g, h = tl.inline_asm_elementwise(
                _BFLOAT16 if DTYPE == tl.bfloat16 else _FLOAT16,
                "=h,=h,=h,=h,=h,=h,=h,=h,r",
                (words,),
                (tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16, tl.int16),
                is_pure=True,
                pack=1,
            )
        even, odd = tl.join(tl.join(a, e), tl.join(c, g)), tl.join(tl.join(b, f), tl.join(d, h))
        values = tl.join(even, odd).to(DTYPE, bitcast=True)
    else:
        j = tl.arange(0, 8)
        if codebook is not None:
            values = tl.load(codebook + ((tl.expand_dims(words, -1) >> (4 * j)) & 15)).to(DTYPE)
        else:
            values = (((tl.expand_dims(words, -1) >> (4 * (j // 2) + 16 * (j % 2))) & 15) - 8).to(DTYPE)
    return values


@triton.jit(do_not_specialize=["M", "groups_per_split"])
def _int4_matmul_kernel(
    x,  # [M, K]
    words,  # int32 [N, K / 8]
    scale,  # [N, groups]
    zero,  # [N, groups] or None
    bias,  # [N] or None
    codebook,  # [16] or None
    y,  # [SPLITS, M, N]
    M,
    N,
    groups,
    groups_per_split,
    stride_x,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    UNROLL: tl.constexpr,
    WARPS: tl.constexpr,
    ASM: tl.constexpr,
):
    """One tile of y^T [BN, BM] over the groups of one split."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    n = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    split = tl.program_id(2).to(tl.int64)
    first = (split * groups_per_split).to(tl.int32)
    last = tl.minimum(first + groups_per_split, groups)
    DTYPE: tl.constexpr = x.dtype.element_ty
    QUAD: tl.constexpr = GROUP // 32  # words of a thread, of which 4 share a row

    # A warp holds rows 0..7 and 8..15 of its 16 in registers of their own, in the operand of a tensor core, but loads
    # come 8 rows to a warp: so row (tile, half, warp, 8) is loaded where row (tile, warp, half, 8) is wanted.
    r = tl.arange(0, BN)
    r = r // (16 * WARPS) * (16 * WARPS) + r // 8 % WARPS * 16 + r // (8 * WARPS) % 2 * 8 + r % 8
    loaded = tl.minimum(tl.program_id(1).to(tl.int64) * BN + r, N - 1)
    words += loaded[None, :, None] * (groups * (GROUP // 8))
    words += (tl.arange(0, 4) * QUAD)[:, None, None] + tl.arange(0, QUAD)[None, None, :]
    x += m[:, None] * stride_x + tl.arange(0, GROUP)[None, :]
    row = tl.minimum(n, N - 1) * groups

    table = (0, 0, 0, 0, 0, 0, 0, 0)
    if ASM and codebook is not None:
        low0, high0 = _table(codebook, 0, DTYPE)
        low1, high1 = _table(codebook, 4, DTYPE)
        low2, high2 = _table(codebook, 8, DTYPE)
        low3, high3 = _table(codebook, 12, DTYPE)
        table = (low0, low1, low2, low3, high0, high1, high2, high3)

    total = tl.zeros((BN, BM), tl.float32)
    # A load of two bytes cannot be asynchronous: it is issued a group ahead.
    next_scale = tl.load(scale + row + tl.minimum(first, groups - 1))
    if zero is not None:
        next_zero = tl.load(zero + row + tl.minimum(first, groups - 1))
    for g in tl.range(first, last, loop_unroll_factor=UNROLL):
        k = tl.load(x + g * GROUP, mask=(m < M)[:, None], other=0.0)
        if codebook is not None:
            k = tl.permute(tl.reshape(k, (BM, 4, QUAD, 4, 2)), (0, 2, 3, 1, 4))
        else:
            k = tl.permute(tl.reshape(k, (BM, 4, QUAD, 2, 4)), (0, 2, 4, 1, 3))
        k = tl.trans(tl.reshape(k, (BM, GROUP)))
        product = tl.zeros((BN, BM), tl.float32)
        if zero is not None:
            shift = 8 - next_zero.to(tl.float32)
            next_zero = tl.load(zero + row + tl.minimum(g + 1, last - 1))
            if DTYPE != tl.float32:  # the tensor core adds up x, as it unpacks nothing and has time
                product = shift[:, None] * tl.dot(tl.full((BN, GROUP), 1, DTYPE), k)
        w = _unpack(tl.load(words + g * (GROUP // 8)), codebook, table, DTYPE, ASM)
        w = tl.reshape(w, (4, BN // (16 * WARPS), 2, WARPS, 8, QUAD, 4, 2))
        w = tl.reshape(tl.permute(w, (1, 3, 2, 4, 5, 6, 0, 7)), (BN, GROUP))
        if zero is not None and DTYPE == tl.float32:
            w += shift[:, None]
        product = tl.dot(w, k, product, input_precision="ieee")
        total += next_scale.to(tl.float32)[:, None] * product
        next_scale = tl.load(scale + row + tl.minimum(g + 1, last - 1))
    if bias is not None:
        total += tl.load(bias + tl.minimum(n, N - 1)).to(tl.float32)[:, None]
    y += (split * M + m[None, :]) * N + n[:, None]
    tl.store(y, total.to(y.dtype.element_ty), mask=(n < N)[:, None] & (m < M)[None, :])


@triton.jit(do_not_specialize=["M"])
def _merge_kernel(partial, bias, y, M, N, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """y [M, N] = the sum of partial [SPLITS, M, N], in order, + bias [N]."""
    m = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial + (split * M.to(tl.int64) + m) * N + n, mask=n < N, other=0.0)
    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(y + m * N + n, total.to(y.dtype.element_ty), mask=n < N)


@triton.jit
def _dequantize_kernel(words, scale, zero, codebook, weight, groups, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """One row, BLOCK words of weight [N, K], each step rounded to the dtype of scale, as the definition does."""
    DTYPE: tl.constexpr = scale.dtype.element_ty
    n = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = word < groups * (GROUP // 8)
    j = tl.arange(0, 8)
    nibbles = (tl.load(words + n * groups * (GROUP // 8) + word, mask=there, other=0)[:, None] >> (4 * j)[None, :]) & 15
    place = n * groups + word // (GROUP // 8)
    if codebook is not None:
        values = tl.load(codebook + nibbles).to(DTYPE).to(tl.float32)
    elif zero is not None:
        zeros = tl.load(zero + place, mask=there, other=0).to(DTYPE).to(tl.float32)
        values = (nibbles.to(tl.float32) - zeros[:, None]).to(DTYPE).to(tl.float32)
    else:
        values = (nibbles - 8).to(tl.float32)
    values = (values * tl.load(scale + place, mask=there, other=0.0).to(tl.float32)[:, None]).to(DTYPE)
    weight += n * groups * GROUP + word[:, None] * 8 + j[None, :]
    tl.store(weight, values.to(weight.dtype.element_ty), mask=there[:, None])


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

    Up to 64 rows, the order of the sum in a row of y is chosen by N and K alone, not by the other rows. Above
    `tuning.INT4_DENSE_ROWS` the weights are dequantized to the dtype of x and torch multiplies.

    Args:
        x: [M, K] float32, float16 or bfloat16, its rows anywhere; needs no gradient.
        packed: uint8 [N, K/2], contiguous, from a multiple of 4 bytes on.
        scale: [N, K/group] floating, contiguous; the group is 32, 64 or 128.
        zero: as scale, of any dtype, or None: 8. Not looked at with a codebook.
        bias: [N] floating. codebook: [16] floating.
        int8: False; the kernel has no integers.

    Raises:
        ValueError: anything else.
    """
    if int8:
        raise ValueError("int4_matmul_triton does not round x to 8 bits")
    group = _checked(x, packed, scale, zero, bias, codebook)
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
    bm, bn, splits = launch.tiles["BM"], launch.tiles["BN"], launch.tiles["SPLITS"]
    parts = y if splits == 1 else torch.empty((splits, rows, features), dtype=torch.float32, device=x.device)
    _int4_matmul_kernel[triton.cdiv(rows, bm), triton.cdiv(features, bn), splits](
        x,
        words,
        scale,
        zero,
        bias if splits == 1 else None,
        codebook,
        parts,
        rows,
        features,
        groups,
        triton.cdiv(groups, splits),
        x.stride(0),
        GROUP=group,
        BM=bm,
        BN=bn,
        UNROLL=launch.tiles["UNROLL"],
        WARPS=launch.num_warps,
        ASM=x.dtype != torch.float32 and not INTERPRETED,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    if splits > 1:
        block = tuning.INT4_MERGE_COLUMNS
        _merge_kernel[triton.cdiv(features, block), rows](
            parts, bias, y, rows, features, SPLITS=splits, BLOCK=block, num_warps=4
        )
    return y


def _checked(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    bias: torch.Tensor | None,
    codebook: torch.Tensor | None,
) -> int:
    """The size of a group, if the arguments are what int4_matmul_triton takes."""
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
        raise ValueError(f"packed must be contiguous from a multiple of 4 bytes on, got {packed.stride()}")
    if x.stride(1) != 1:
        raise ValueError(f"the columns of x must lie side by side, got strides {x.stride()}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("int4_matmul_triton has no backward, and x requires a gradient")
    return group
