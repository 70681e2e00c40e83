"""LayerNorm and GELU fused with their neighbours: the element-wise half of a post-LN transformer layer.

    add_layer_norm:  y = LayerNorm(dropout(x + bias) + residual) * weight + shift      (x, residual [M, N])
    bias_gelu:       y = act(x + bias)
    layer_norm_gelu: y = act(LayerNorm(x))          gelu_layer_norm: y = LayerNorm(act(x))

LayerNorm: Ba et al. 2016, arXiv 1607.06450; statistics and eps in float32. act: activations.py.

Under autocast the products are in 16 bits, and parameters and the residual in float32. The kernels take this mixture as
it is: x in 16 bits beside float32. Outputs and gradients then have the dtypes that torch gives them.

Each is one pass over memory: bias, dropout, residual, activation and LayerNorm are fused in registers. Forward,
add_layer_norm moves 3 M N * itemsize bytes (separate torch kernels: 5, with dropout 8), the others 2. Backward,
LayerNorm moves 4 (with dropout 5), bias_gelu 3: the backward saves only the inputs and recomputes from them. Gradients
of weight, shift and bias are partial sums per program, which one more sum adds in a fixed order.

All are bound by memory: 16384 x 1024 in bfloat16 are 101 MB, 23 us at the 4.3 TB/s of an H200. In that time there is
room for 46 instructions per element of add_layer_norm, 31 of bias_gelu and 62 of the LayerNorm backward;
bench/offline.py counts 22, 21 and 40.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import tuning
from .activations import ACTIVATIONS as ACTIVATIONS  # public from this module, too
from .activations import (
    FUSED_ACTIVATIONS,
    KERNEL_ACTIVATIONS,
    activate,
    activation_function,
    activation_grad,
)
from .language import tl, triton


def add_layer_norm_reference(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """LayerNorm(dropout(x + bias) + residual); x and residual [M, N], bias, weight and shift [N]; the widest dtype."""
    if bias is not None:
        x = x + bias
    if dropout:
        x = F.dropout(x, dropout)
    if residual is not None:
        x = x + residual
    return _layer_norm(x, weight, shift, eps)


def _layer_norm(x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm in the wider dtype of x and the parameters, as torch computes it on a GPU under autocast."""
    if x.dtype != weight.dtype:
        dtype = torch.promote_types(x.dtype, weight.dtype)
        x, weight, shift = x.to(dtype), weight.to(dtype), shift.to(dtype)
    return F.layer_norm(x, x.shape[-1:], weight, shift, eps)


def bias_gelu_reference(x: torch.Tensor, bias: torch.Tensor | None, activation: str = "gelu") -> torch.Tensor:
    """act(x + bias); x [M, N], bias [N]; dtype of x, as a product under autocast takes its bias."""
    return activation_function(activation)(x if bias is None else x + bias.to(x.dtype))


def layer_norm_gelu_reference(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> torch.Tensor:
    """act(LayerNorm(x)); x [M, N], weight and shift [N]."""
    return activation_function(activation)(_layer_norm(x, weight, shift, eps))


def gelu_layer_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> torch.Tensor:
    """LayerNorm(act(x)), the order of BERT's prediction head; shapes as layer_norm_gelu_reference."""
    return _layer_norm(activation_function(activation)(x), weight, shift, eps)


# The kernel of all three: after(LayerNorm(dropout(before(x + bias)) + residual))

MAX_COLUMNS = 16384  # of LayerNorm: a program holds a row in registers
MAX_GRADIENT_COLUMNS = 4096  # of the backward: a program also holds three rows of gradient sums


@triton.jit
def _load_row_vector(ptr, offs_n, mask_n):
    """[N] parameters as [1, N]."""
    return tl.load(ptr + offs_n, mask=mask_n, other=0.0)[None, :]


@triton.jit
def _dropout_mask(seed, row, threshold, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Whether dropout keeps each element, [ROWS, BLOCK]: a function of the seed, the row and the column alone.

    Philox gives four words at a time, for four adjacent columns; 24 bits of each are compared with `threshold`. Seven
    rounds are the fewest that pass all tests of its authors (Salmon et al. 2011).
    """
    offs_four = tl.broadcast_to(tl.arange(0, BLOCK // 4)[None, :], (ROWS, BLOCK // 4))
    rows = tl.broadcast_to(row.to(tl.int32)[:, None], (ROWS, BLOCK // 4))
    a, b, c, d = tl.philox(seed, offs_four, rows, tl.zeros_like(offs_four), tl.zeros_like(offs_four), 7)
    bits = tl.join(tl.join(a, b), tl.join(c, d)).reshape(ROWS, BLOCK)
    return (bits >> 8).to(tl.int32) >= threshold


@triton.jit
def _standardize(x, mask_n, eps, N: tl.constexpr):
    """(x - mean) * rstd of each row, over the columns in mask_n; and rstd.

    The mean is computed in two passes over registers, of which the second corrects the first: a row of equal numbers
    gives exactly 0, and small differences on a large mean keep their precision.
    """
    x = tl.where(mask_n, x, 0.0)
    x = tl.where(mask_n, x - (tl.sum(x, 1) / N)[:, None], 0.0)
    mean = tl.sum(x, 1) / N  # what the first pass left
    variance = tl.maximum(tl.sum(x * x, 1) / N - mean * mean, 0.0)
    rstd = tl.rsqrt(variance + eps)[:, None]
    return (x - mean[:, None]) * rstd, rstd


@triton.jit(do_not_specialize=["M", "seed", "dropout_threshold"])
def _norm_fwd_kernel(
    x_ptr,  # [M, N], rows stride_x apart
    bias_ptr,  # [N] or None
    residual_ptr,  # as x, rows stride_residual apart, or None
    weight_ptr,  # [N]
    shift_ptr,  # [N]
    y_ptr,  # [M, N], contiguous
    M,
    stride_x,
    stride_residual,
    eps,
    seed,
    dropout_threshold,  # dropout probability * 2 ** 24
    dropout_scale,  # 1 / (1 - dropout probability)
    N: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    DROPOUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    offs_n = tl.arange(0, BLOCK)
    mask_n = offs_n < N
    mask = (row < M)[:, None] & mask_n[None, :]
    x = tl.load(x_ptr + row[:, None] * stride_x + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + row[:, None] * stride_residual + offs_n[None, :], mask=mask, other=0.0)
    # Issued before the reductions, so that the loads complete during them.
    weight, shift = _load_row_vector(weight_ptr, offs_n, mask_n), _load_row_vector(shift_ptr, offs_n, mask_n)
    if bias_ptr is not None:
        x += _load_row_vector(bias_ptr, offs_n, mask_n).to(tl.float32)
    x = activate(x, BEFORE)
    if DROPOUT:
        x = tl.where(_dropout_mask(seed, row, dropout_threshold, ROWS, BLOCK), x * dropout_scale, 0.0)
    if residual_ptr is not None:
        x += residual.to(tl.float32)
    x_hat, _ = _standardize(x, mask_n[None, :], eps, N)
    y = activate(x_hat * weight.to(tl.float32) + shift.to(tl.float32), AFTER)
    tl.store(y_ptr + row[:, None] * N + offs_n[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


def _norm_forward(x, bias, residual, weight, shift, eps, before, after, dropout, seed) -> torch.Tensor:
    rows, columns = x.shape
    y = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    if y.numel():
        launch = tuning.norm(tuning.architecture(x.device), columns)
        _norm_fwd_kernel[(-(-rows // launch.tiles["ROWS"]),)](
            x, bias, residual, weight, shift, y, rows, x.stride(0), 0 if residual is None else residual.stride(0), eps,
            seed, *_dropout_arguments(dropout), columns, before, after, dropout > 0,
            **launch.tiles, num_warps=launch.num_warps,
        )  # fmt: skip
    return y


def _dropout_arguments(dropout: float) -> tuple[int, float]:
    """dropout_threshold and dropout_scale of the kernels."""
    return round(dropout * 2**24), 0.0 if dropout == 1 else 1 / (1 - dropout)


@triton.jit(do_not_specialize=["M", "seed", "dropout_threshold"])
def _norm_bwd_kernel(
    x_ptr,  # to shift_ptr as in _norm_fwd_kernel
    bias_ptr,
    residual_ptr,
    weight_ptr,
    shift_ptr,
    dy_ptr,  # [M, N], rows stride_dy apart
    dx_ptr,  # [M, N], contiguous
    dresidual_ptr,  # as dx; None where it equals dx
    partial_ptr,  # float32 [3, programs, N]: gradients of weight, shift and bias over this program's rows; or None
    M,
    stride_x,
    stride_residual,
    stride_dy,
    eps,
    seed,
    dropout_threshold,
    dropout_scale,
    N: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    DROPOUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    offs_n = tl.arange(0, BLOCK)
    mask_n = offs_n < N
    weight = _load_row_vector(weight_ptr, offs_n, mask_n).to(tl.float32)
    shift = _load_row_vector(shift_ptr, offs_n, mask_n).to(tl.float32)
    if bias_ptr is not None:
        bias = _load_row_vector(bias_ptr, offs_n, mask_n).to(tl.float32)
    if partial_ptr is not None:
        dweight = tl.zeros((ROWS, BLOCK), tl.float32)
        dshift = tl.zeros((ROWS, BLOCK), tl.float32)
        dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    # Rows past the last one have dy = 0, so all their gradients are 0.
    for start in range(first, M, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < M)[:, None] & mask_n[None, :]
        x = tl.load(x_ptr + row[:, None] * stride_x + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row[:, None] * stride_dy + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            x += bias
        z = activate(x, BEFORE)
        if DROPOUT:
            dropout_mask = _dropout_mask(seed, row, dropout_threshold, ROWS, BLOCK)
            z = tl.where(dropout_mask, z * dropout_scale, 0.0)
        if residual_ptr is not None:
            r = tl.load(residual_ptr + row[:, None] * stride_residual + offs_n[None, :], mask=mask, other=0.0)
            z += r.to(tl.float32)
        z_hat, rstd = _standardize(z, mask_n[None, :], eps, N)
        if AFTER != "linear":
            dy *= activation_grad(z_hat * weight + shift, AFTER)
        dz_hat = dy * weight
        dz = (dz_hat - (tl.sum(dz_hat, 1) / N)[:, None] - z_hat * (tl.sum(dz_hat * z_hat, 1) / N)[:, None]) * rstd
        offs = row[:, None] * N + offs_n[None, :]
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + offs, dz.to(dresidual_ptr.dtype.element_ty), mask=mask)
        if DROPOUT:
            dz = tl.where(dropout_mask, dz * dropout_scale, 0.0)
        if BEFORE != "linear":
            dz *= activation_grad(x, BEFORE)
        tl.store(dx_ptr + offs, dz.to(dx_ptr.dtype.element_ty), mask=mask)
        if partial_ptr is not None:
            dweight += dy * z_hat
            dshift += dy
            if bias_ptr is not None:
                dbias += dz
    if partial_ptr is not None:
        out_ptr = partial_ptr + tl.program_id(0).to(tl.int64) * N + offs_n
        stride_partial = tl.num_programs(0).to(tl.int64) * N
        tl.store(out_ptr, tl.sum(dweight, 0), mask=mask_n)
        tl.store(out_ptr + stride_partial, tl.sum(dshift, 0), mask=mask_n)
        tl.store(out_ptr + 2 * stride_partial, tl.sum(dbias, 0), mask=mask_n)


class _Norm(torch.autograd.Function):
    """after(LayerNorm(dropout(before(x + bias)) + residual)); saves its inputs and recomputes the statistics."""

    @staticmethod
    def forward(ctx, x, bias, residual, weight, shift, eps, before, after, dropout, seed):
        ctx.save_for_backward(x, bias, residual, weight, shift)
        ctx.options = (eps, before, after, dropout, seed)
        return _norm_forward(x, bias, residual, weight, shift, eps, before, after, dropout, seed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, bias, residual, weight, shift = ctx.saved_tensors
        eps, before, after, dropout, seed = ctx.options
        rows, columns = x.shape
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dresidual = None
        if residual is not None and (dropout or residual.dtype != x.dtype):
            dresidual = torch.empty(x.shape, dtype=residual.dtype, device=x.device)
        launch, programs = tuning.norm_backward(tuning.architecture(x.device), columns)
        programs = min(programs, -(-rows // launch.tiles["ROWS"]))
        partial = None
        if any(ctx.needs_input_grad[i] for i in (1, 3, 4)):
            partial = torch.empty((3, programs, columns), dtype=torch.float32, device=x.device)
        if x.numel():
            dy = _last_dim_contiguous(dy)
            _norm_bwd_kernel[(programs,)](
                x, bias, residual, weight, shift, dy, dx, dresidual, partial, rows, x.stride(0),
                0 if residual is None else residual.stride(0), dy.stride(0), eps, seed, *_dropout_arguments(dropout),
                columns, before, after, dropout > 0, **launch.tiles, num_warps=launch.num_warps,
            )  # fmt: skip
        dweight, dshift, dbias = (None, None, None) if partial is None else partial.sum(1).to(weight.dtype)
        if bias is not None and dbias is not None:
            dbias = dbias.to(bias.dtype)
        dresidual = dx if dresidual is None else dresidual
        return (
            dx, None if bias is None else dbias, None if residual is None else dresidual, dweight, dshift,
            None, None, None, None, None,
        )  # fmt: skip


def _last_dim_contiguous(x: torch.Tensor) -> torch.Tensor:
    """x, copied if its last dimension is strided."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _why_not(
    matrices: tuple[torch.Tensor | None, ...], vectors: tuple[torch.Tensor | None, ...], activation: str = "gelu"
) -> str | None:
    """Why a kernel does not take these arguments; matrices must be like the first one, [M, N], and vectors [N].

    All but the first matrix may be float32 as well: under autocast a product is in 16 bits.
    """
    x = matrices[0]
    if activation not in KERNEL_ACTIVATIONS:
        return f"activation {activation!r} is none of {', '.join(FUSED_ACTIVATIONS)}"
    if x.dim() != 2:
        return f"x has {x.dim()} dimensions instead of 2"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"{x.dtype} is none of float32, float16 and bfloat16"
    for t, shape in [(t, x.shape) for t in matrices] + [(t, x.shape[1:]) for t in vectors]:
        if t is None:
            continue
        if t.shape != shape:
            return f"a tensor has shape {tuple(t.shape)} instead of {tuple(shape)}"
        if t.dtype not in (x.dtype, torch.float32) or t.device != x.device:
            return f"a tensor is {t.dtype} on {t.device}, x is {x.dtype} on {x.device}"
        if t.stride(-1) != 1 and t.shape[-1] > 1:
            return f"the last dimension of a tensor has stride {t.stride(-1)} instead of 1"
    return None


def _why_not_norm(x, bias, residual, weight, shift, activation: str = "gelu") -> str | None:
    needs_grad = _needs_grad(x, bias, residual, weight, shift)
    limit = MAX_GRADIENT_COLUMNS if needs_grad else MAX_COLUMNS
    if x.dim() == 2 and x.shape[1] > limit:
        return f"x has {x.shape[1]} columns, the kernel takes at most {limit}" + " with gradients" * needs_grad
    for name, t in (("shift", shift), ("residual", residual), ("bias", bias)):
        if t is not None and t.dtype != weight.dtype and (t.dtype != x.dtype or t is shift):
            return f"{name} is {t.dtype}, weight is {weight.dtype}"
    return _why_not((x, residual), (bias, weight, shift), activation)


def _check(reason: str | None) -> None:
    if reason is not None:
        raise ValueError(reason)


def _needs_grad(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd records a call with these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _norm(x, bias, residual, weight, shift, *options) -> torch.Tensor:
    function = _Norm.apply if _needs_grad(x, bias, residual, weight, shift) else _norm_forward
    return function(x, bias, residual, weight, shift, *options)


def why_not_add_layer_norm(x, bias, residual, weight, shift, eps, dropout=0.0) -> str | None:
    """Why add_layer_norm_triton does not take these arguments, as one clause; None where it does."""
    if not 0 <= dropout <= 1:
        return f"dropout is {dropout}, it must be from 0 to 1"
    return _why_not_norm(x, bias, residual, weight, shift)


def add_layer_norm_triton(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """As add_layer_norm_reference, with gradients; dropout draws another mask, seeded by torch's default generator.

    Args:
        x, residual: [M, N], rows of any stride, N at most MAX_COLUMNS (MAX_GRADIENT_COLUMNS where autograd
            records the call). bias, weight, shift: [N]. Weight and shift, and then bias and residual, may be float32
            where x has 16 bits; the output has their dtype.

    Raises:
        ValueError: a shape, dtype, device, stride or probability that the kernel does not take.
    """
    _check(why_not_add_layer_norm(x, bias, residual, weight, shift, eps, dropout))
    # Drawn on the host to avoid a device sync; always above 32 bits, so that one variant is compiled.
    seed = int(torch.randint(2**32, 2**63 - 1, (), device="cpu")) if dropout else 2**32
    return _norm(x, bias, residual, weight, shift, eps, "linear", "linear", float(dropout), seed)


def why_not_layer_norm_gelu(x, weight, shift, eps, activation="gelu") -> str | None:
    """Why layer_norm_gelu_triton and gelu_layer_norm_triton do not take these arguments, as one clause, or None."""
    return _why_not_norm(x, None, None, weight, shift, activation)


def layer_norm_gelu_triton(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> torch.Tensor:
    """As layer_norm_gelu_reference, for FUSED_ACTIVATIONS; takes and raises what add_layer_norm_triton does."""
    _check(why_not_layer_norm_gelu(x, weight, shift, eps, activation))
    return _norm(x, None, None, weight, shift, eps, "linear", KERNEL_ACTIVATIONS[activation], 0.0, 2**32)


why_not_gelu_layer_norm = why_not_layer_norm_gelu


def gelu_layer_norm_triton(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> torch.Tensor:
    """As gelu_layer_norm_reference, for FUSED_ACTIVATIONS; takes and raises what add_layer_norm_triton does."""
    _check(why_not_gelu_layer_norm(x, weight, shift, eps, activation))
    return _norm(x, None, None, weight, shift, eps, KERNEL_ACTIVATIONS[activation], "linear", 0.0, 2**32)


@triton.jit(do_not_specialize=["M"])
def _bias_gelu_fwd_kernel(
    x_ptr,  # [M, N], rows stride_x apart
    bias_ptr,  # [N] or None
    y_ptr,  # [M, N], contiguous
    M,
    stride_x,
    N: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    offs_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask_n = offs_n < N
    mask = (row < M)[:, None] & mask_n[None, :]
    x = tl.load(x_ptr + row[:, None] * stride_x + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        x += _load_row_vector(bias_ptr, offs_n, mask_n).to(tl.float32)
    y = activate(x, ACTIVATION)
    tl.store(y_ptr + row[:, None] * N + offs_n[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


def _bias_gelu_forward(x: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    rows, columns = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        launch = tuning.bias_gelu(tuning.architecture(x.device), columns)
        grid = (-(-rows // launch.tiles["ROWS"]), -(-columns // launch.tiles["BLOCK"]))
        _bias_gelu_fwd_kernel[grid](
            x, bias, y, rows, x.stride(0), columns, activation, **launch.tiles, num_warps=launch.num_warps
        )
    return y


@triton.jit(do_not_specialize=["M"])
def _bias_gelu_bwd_kernel(
    x_ptr,  # as in _bias_gelu_fwd_kernel
    bias_ptr,
    dy_ptr,  # [M, N], rows stride_dy apart
    dx_ptr,  # [M, N], contiguous
    partial_ptr,  # float32 [programs, N]: gradient of bias over this program's rows; or None
    M,
    stride_x,
    stride_dy,
    N: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    offs_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask_n = offs_n < N
    if bias_ptr is not None:
        bias = _load_row_vector(bias_ptr, offs_n, mask_n).to(tl.float32)
    if partial_ptr is not None:
        dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(first, M, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < M)[:, None] & mask_n[None, :]
        x = tl.load(x_ptr + row[:, None] * stride_x + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
        dx = tl.load(dy_ptr + row[:, None] * stride_dy + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            x += bias
        dx *= activation_grad(x, ACTIVATION)
        tl.store(dx_ptr + row[:, None] * N + offs_n[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if partial_ptr is not None:
            dbias += dx
    if partial_ptr is not None:
        tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * N + offs_n, tl.sum(dbias, 0), mask=mask_n)


class _BiasGelu(torch.autograd.Function):
    """act(x + bias); saves its inputs."""

    @staticmethod
    def forward(ctx, x, bias, activation):
        ctx.save_for_backward(x, bias)
        ctx.activation = activation
        return _bias_gelu_forward(x, bias, activation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, bias = ctx.saved_tensors
        rows, columns = x.shape
        dx, partial = torch.empty(x.shape, dtype=x.dtype, device=x.device), None
        launch, programs = tuning.bias_gelu_backward(tuning.architecture(x.device), columns)
        programs = min(programs, -(-rows // launch.tiles["ROWS"]))
        if ctx.needs_input_grad[1]:
            partial = torch.empty((programs, columns), dtype=torch.float32, device=x.device)
        if x.numel():
            dy = _last_dim_contiguous(dy)
            _bias_gelu_bwd_kernel[(programs, -(-columns // launch.tiles["BLOCK"]))](
                x, bias, dy, dx, partial, rows, x.stride(0), dy.stride(0), columns, ctx.activation,
                **launch.tiles, num_warps=launch.num_warps,
            )  # fmt: skip
        return dx, None if partial is None else partial.sum(0).to(bias.dtype), None


def why_not_bias_gelu(x, bias, activation="gelu") -> str | None:
    """Why bias_gelu_triton does not take these arguments, as one clause; None where it does."""
    return _why_not((x,), (bias,), activation)


def bias_gelu_triton(x: torch.Tensor, bias: torch.Tensor | None, activation: str = "gelu") -> torch.Tensor:
    """As bias_gelu_reference, with gradients, for FUSED_ACTIVATIONS.

    Args:
        x: [M, N] with any stride between rows. bias: [N], of x's dtype or float32.

    Raises:
        ValueError: an activation, shape, dtype, device or stride that the kernel does not take.
    """
    _check(why_not_bias_gelu(x, bias, activation))
    function = _BiasGelu.apply if _needs_grad(x, bias) else _bias_gelu_forward
    return function(x, bias, KERNEL_ACTIVATIONS[activation])
