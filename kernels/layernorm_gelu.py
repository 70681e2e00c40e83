"""LayerNorm and GELU with their neighbours, the element-wise half of a post-LN transformer layer.

    add_layer_norm:  y = LayerNorm(dropout(x + bias) + residual) * weight + shift      (x, residual [M, N])
    bias_gelu:       y = act(x + bias)
    layer_norm_gelu: y = act(LayerNorm(x))          gelu_layer_norm: y = LayerNorm(act(x))

LayerNorm: Ba et al. 2016, arXiv 1607.06450; statistics and eps in float32. GELU: Hendrycks and Gimpel 2016,
arXiv 1606.08415; "gelu" is the exact form with erf, the tanh forms go by their own names.

Each is one pass over memory: bias, dropout, residual, activation and LayerNorm in registers. add_layer_norm moves
3 M N * itemsize bytes (torch's kernels one after another: 5, with dropout 8), the others 2; going back, which computes
the sums again from what came in and keeps nothing, 4 (with dropout 5), bias_gelu 3. Gradients of weight, shift and bias
are sums per program, added by one more sum in a fixed order. So all are bound by memory: 16384 x 1024 in bfloat16 are
101 MB, 23 us at the 4.3 TB/s of an H200, and there are 46 instructions for an element of add_layer_norm in that time
(31 of bias_gelu, 62 of the way back). bench/offline.py counts what they take: 22, 21 and 40.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from . import tuning
from .language import tl, triton


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_10": lambda x: F.gelu(x).clamp(-10, 10),
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "hardswish": F.hardswish,
    "laplace": lambda x: 0.5 * (1 + torch.erf((x - math.sqrt(0.5)) / (math.sqrt(0.25 / math.pi) * math.sqrt(2)))),
    "leaky_relu": F.leaky_relu,
    "linear": lambda x: x,
    "mish": F.mish,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(),
    "tanh": torch.tanh,
}
ACTIVATIONS = tuple(_ACTIVATIONS)


def activation_function(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of an activation name of ACTIVATIONS; KeyError for any other."""
    return _ACTIVATIONS[name]


def add_layer_norm_reference(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """LayerNorm(dropout(x + bias) + residual); x and residual [M, N], bias, weight and shift [N]; dtype of x."""
    if bias is not None:
        x = x + bias
    if dropout:
        x = F.dropout(x, dropout)
    if residual is not None:
        x = x + residual
    return F.layer_norm(x, x.shape[-1:], weight, shift, eps)


def bias_gelu_reference(x: torch.Tensor, bias: torch.Tensor | None, activation: str = "gelu") -> torch.Tensor:
    """act(x + bias); x [M, N], bias [N]."""
    return activation_function(activation)(x if bias is None else x + bias)


def layer_norm_gelu_reference(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> torch.Tensor:
    """act(LayerNorm(x)); x [M, N], weight and shift [N]."""
    return activation_function(activation)(F.layer_norm(x, x.shape[-1:], weight, shift, eps))


def gelu_layer_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> torch.Tensor:
    """LayerNorm(act(x)), the order of BERT's own prediction head; shapes as layer_norm_gelu_reference."""
    return F.layer_norm(activation_function(activation)(x), x.shape[-1:], weight, shift, eps)


# The kernels, where all of LayerNorm is one: after(LayerNorm(dropout(before(x + bias)) + residual))

# Activations that the kernels have, by what they compute: names of one function share it.
_FUSED = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_10": "gelu_10",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "hardswish": "hardswish",
    "laplace": "laplace",
    "leaky_relu": "leaky_relu",
    "linear": "linear",
    "mish": "mish",
    "relu": "relu",
    "relu2": "relu2",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
}
FUSED_ACTIVATIONS = tuple(_FUSED)
MAX_COLUMNS = 16384  # of a LayerNorm: a row lies in the registers of one program,
MAX_GRADIENT_COLUMNS = 4096  # and so do three rows of sums, going back


@triton.jit
def half_erf(x):
    """erf(|x| / sqrt(2)) / 2, which is what the normal distribution's function adds to 1/2: largest error 4.1e-8.

    -log2 of the distribution's tail is |x| times a polynomial of degree 9 (a least-maximum fit made for this), then
    comes one exp2: 13 instructions, where `tl.erf` takes 35. Exactly 1/2 where the tail vanishes. The error is that
    over all floats with a rightly rounded exp2 (`half_erf_error` beside the cases); a GPU's, good to 2^-22.5 of its
    value, adds at most 5.5e-8.
    """
    a = tl.abs(x)
    p = 5.966569460724713e-08 * a - 1.4468751032836735e-06
    p = p * a + 1.5609317415510304e-05
    p = p * a - 9.60515026235953e-05
    p = p * a + 0.0003273835754953325
    p = p * a - 6.756529910489917e-05
    p = p * a - 0.006893498357385397
    p = p * a + 0.05242001637816429
    p = p * a + 0.4592241942882538
    p = p * a + 1.1511040925979614
    return 0.5 - 0.5 * tl.exp2(-p * a)


@triton.jit
def activate(x, KIND: tl.constexpr):
    """The activation KIND, a value of _FUSED, of a float32 tile."""
    if KIND == "gelu":
        y = 0.5 * x + tl.abs(x) * half_erf(x)
    elif KIND == "gelu_10":
        gelu = 0.5 * x + tl.abs(x) * half_erf(x)
        y = tl.where(gelu > 10, 10.0, gelu)  # a GELU is never below -0.17
    elif KIND == "gelu_tanh":
        y = x * tl.sigmoid(x * (1.5957691216057308 + 0.07135481282553484 * x * x))
    elif KIND == "quick_gelu":
        y = x * tl.sigmoid(1.702 * x)
    elif KIND == "silu":
        y = x * tl.sigmoid(x)
    elif KIND == "sigmoid":
        y = tl.sigmoid(x)
    elif KIND == "mish":
        e = tl.exp(tl.minimum(x, 20.0))
        e = e * (e + 2)
        y = tl.where(x > 20, x, x * (e / (e + 2)))
    elif KIND == "laplace":
        z = (x - 0.7071067811865476) * 3.5449077018110318
        y = tl.where(z < 0, 0.5 - half_erf(z), 0.5 + half_erf(z))
    elif KIND == "hardswish":
        y = tl.where(x <= -3, x * 0.0, tl.where(x >= 3, x, x * (x + 3) * 0.16666666666666666))
    elif KIND == "leaky_relu":
        y = tl.where(x < 0, 0.01 * x, x)
    elif KIND == "relu":
        y = tl.where(x < 0, 0.0, x)
    elif KIND == "relu2":
        y = tl.where(x < 0, 0.0, x * x)
    elif KIND == "relu6":
        y = tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    else:
        tl.static_assert(KIND == "linear")
        y = x
    return y


@triton.jit
def _logistic(x):
    """1 / (1 + exp(-x)) and its derivative, both with all their digits in both tails."""
    e = tl.exp(-tl.abs(x))
    r = 1 / (1 + e)
    return tl.where(x < 0, e * r, r), e * r * r


@triton.jit
def slope(x, KIND: tl.constexpr):
    """The derivative of `activate`, with torch's choice where there are two."""
    if KIND == "gelu" or KIND == "gelu_10":
        h = half_erf(x)
        y = tl.where(x < 0, 0.5 - h, 0.5 + h) + x * 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)
        if KIND == "gelu_10":
            y = tl.where(0.5 * x + tl.abs(x) * h > 10, 0.0, y)
    elif KIND == "gelu_tanh":
        s, d = _logistic(x * (1.5957691216057308 + 0.07135481282553484 * x * x))
        y = s + x * d * (1.5957691216057308 + 0.21406443847660452 * x * x)
    elif KIND == "quick_gelu":
        s, d = _logistic(1.702 * x)
        y = s + 1.702 * x * d
    elif KIND == "silu":
        s, d = _logistic(x)
        y = s + x * d
    elif KIND == "sigmoid":
        _, y = _logistic(x)
    elif KIND == "mish":
        e = tl.exp(tl.minimum(x, 20.0))
        e = e * (e + 2)
        t = e / (e + 2)
        s, _ = _logistic(x)
        y = tl.where(x > 20, 1.0, t + x * s * (1 - t * t))
    elif KIND == "laplace":
        z = (x - 0.7071067811865476) * 3.5449077018110318
        y = 1.4142135623730951 * tl.exp2(-0.7213475204444817 * z * z)
    elif KIND == "hardswish":
        y = tl.where(x <= -3, 0.0, tl.where(x >= 3, 1.0, x * 0.3333333333333333 + 0.5))
    elif KIND == "leaky_relu":
        y = tl.where(x > 0, 1.0, 0.01)
    elif KIND == "relu":
        y = tl.where(x > 0, 1.0, 0.0)
    elif KIND == "relu2":
        y = tl.where(x > 0, 2 * x, 0.0)
    elif KIND == "relu6":
        y = tl.where((x > 0) & (x < 6), 1.0, 0.0)
    else:
        tl.static_assert(KIND == "linear")
        y = x * 0.0 + 1.0
    return y


@triton.jit
def _vector(pointer, column, inside):
    """One number for each column, as [1, columns]."""
    return tl.load(pointer + column, mask=inside, other=0.0)[None, :]


@triton.jit
def _kept(seed, row, drop, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Which elements dropout lets through: a function of the seed, the row and the column alone, as [ROWS, BLOCK].

    Philox gives four numbers at a time, for four columns; of each, 24 bits are compared. Seven rounds are the fewest
    that pass every test of its authors (Salmon et al. 2011).
    """
    group = tl.broadcast_to(tl.arange(0, BLOCK // 4)[None, :], (ROWS, BLOCK // 4))
    rows = tl.broadcast_to(row.to(tl.int32)[:, None], (ROWS, BLOCK // 4))
    a, b, c, d = tl.philox(seed, group, rows, tl.zeros_like(group), tl.zeros_like(group), 7)
    bits = tl.join(tl.join(a, b), tl.join(c, d)).reshape(ROWS, BLOCK)
    return (bits >> 8).to(tl.int32) >= drop


@triton.jit
def _standardize(s, within, eps, COLUMNS: tl.constexpr):
    """(s - mean) / sqrt(variance + eps) of the columns within each row, and the factor.

    Two passes over registers, the second correcting the first's mean: a row of equal numbers gives exactly nothing, and
    noise on a large offset keeps its digits.
    """
    s = tl.where(within, s, 0.0)
    s = tl.where(within, s - (tl.sum(s, 1) / COLUMNS)[:, None], 0.0)
    rest = tl.sum(s, 1) / COLUMNS
    variance = tl.maximum(tl.sum(s * s, 1) / COLUMNS - rest * rest, 0.0)
    factor = tl.rsqrt(variance + eps)[:, None]
    return (s - rest[:, None]) * factor, factor


@triton.jit(do_not_specialize=["rows", "seed", "drop"])
def _norm_kernel(
    x,  # [rows, COLUMNS], rows x_stride apart
    bias,  # [COLUMNS] or None
    residual,  # as x, rows residual_stride apart, or None
    weight,  # [COLUMNS]
    shift,  # [COLUMNS]
    y,  # [rows, COLUMNS], contiguous
    rows,
    x_stride,
    residual_stride,
    eps,
    seed,
    drop,  # of 2 ** 24 elements so many are dropped
    scale,  # of those that are not
    COLUMNS: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    DROPOUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    within = column < COLUMNS
    inside = (row < rows)[:, None] & within[None, :]
    s = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        r = tl.load(residual + row[:, None] * residual_stride + column[None, :], mask=inside, other=0.0)
    # Before the reductions, so that they are there when those end.
    w, t = _vector(weight, column, within), _vector(shift, column, within)
    if bias is not None:
        s += _vector(bias, column, within).to(tl.float32)
    s = activate(s, BEFORE)
    if DROPOUT:
        s = tl.where(_kept(seed, row, drop, ROWS, BLOCK), s * scale, 0.0)
    if residual is not None:
        s += r.to(tl.float32)
    s, _ = _standardize(s, within[None, :], eps, COLUMNS)
    s = activate(s * w.to(tl.float32) + t.to(tl.float32), AFTER)
    tl.store(y + row[:, None] * COLUMNS + column[None, :], s.to(y.dtype.element_ty), mask=inside)


def _norm(x, bias, residual, weight, shift, eps, before, after, dropout, seed) -> torch.Tensor:
    rows, columns = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        launch = tuning.norm(tuning.architecture(x.device), columns)
        _norm_kernel[(-(-rows // launch.tiles["ROWS"]),)](
            x, bias, residual, weight, shift, y, rows, x.stride(0), 0 if residual is None else residual.stride(0), eps,
            seed, *_dropping(dropout), columns, before, after, dropout > 0, **launch.tiles, num_warps=launch.num_warps,
        )  # fmt: skip
    return y


def _dropping(dropout: float) -> tuple[int, float]:
    return round(dropout * 2**24), 0.0 if dropout == 1 else 1 / (1 - dropout)


@triton.jit(do_not_specialize=["rows", "seed", "drop"])
def _norm_backward_kernel(
    x,  # as in _norm_kernel, down to shift
    bias,
    residual,
    weight,
    shift,
    dy,  # [rows, COLUMNS], rows dy_stride apart
    dx,  # [rows, COLUMNS], contiguous
    dresidual,  # as dx; None where it is dx
    sums,  # [3, programs, COLUMNS] float32: of this program's rows for weight, shift and bias; or None
    rows,
    x_stride,
    residual_stride,
    dy_stride,
    eps,
    seed,
    drop,
    scale,
    COLUMNS: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    DROPOUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    column = tl.arange(0, BLOCK)
    within = column < COLUMNS
    w, t = _vector(weight, column, within).to(tl.float32), _vector(shift, column, within).to(tl.float32)
    if bias is not None:
        b = _vector(bias, column, within).to(tl.float32)
    if sums is not None:
        dweight = tl.zeros((ROWS, BLOCK), tl.float32)
        dshift = tl.zeros((ROWS, BLOCK), tl.float32)
        dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    # Rows past the last have dy = 0, and with it every gradient.
    for start in range(first, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & within[None, :]
        u = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        dz = tl.load(dy + row[:, None] * dy_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            u += b
        s = activate(u, BEFORE)
        if DROPOUT:
            kept = _kept(seed, row, drop, ROWS, BLOCK)
            s = tl.where(kept, s * scale, 0.0)
        if residual is not None:
            r = tl.load(residual + row[:, None] * residual_stride + column[None, :], mask=inside, other=0.0)
            s += r.to(tl.float32)
        s, factor = _standardize(s, within[None, :], eps, COLUMNS)
        if AFTER != "linear":
            dz *= slope(s * w + t, AFTER)
        g = dz * w
        ds = (g - (tl.sum(g, 1) / COLUMNS)[:, None] - s * (tl.sum(g * s, 1) / COLUMNS)[:, None]) * factor
        place = row[:, None] * COLUMNS + column[None, :]
        if dresidual is not None:
            tl.store(dresidual + place, ds.to(dresidual.dtype.element_ty), mask=inside)
        if DROPOUT:
            ds = tl.where(kept, ds * scale, 0.0)
        if BEFORE != "linear":
            ds *= slope(u, BEFORE)
        tl.store(dx + place, ds.to(dx.dtype.element_ty), mask=inside)
        if sums is not None:
            dweight += dz * s
            dshift += dz
            if bias is not None:
                dbias += ds
    if sums is not None:
        out = sums + tl.program_id(0).to(tl.int64) * COLUMNS + column
        size = tl.num_programs(0).to(tl.int64) * COLUMNS
        tl.store(out, tl.sum(dweight, 0), mask=within)
        tl.store(out + size, tl.sum(dshift, 0), mask=within)
        tl.store(out + 2 * size, tl.sum(dbias, 0), mask=within)


class _Norm(torch.autograd.Function):
    """after(LayerNorm(dropout(before(x + bias)) + residual)); keeps its inputs and computes statistics again."""

    @staticmethod
    def forward(ctx, x, bias, residual, weight, shift, eps, before, after, dropout, seed):
        ctx.save_for_backward(x, bias, residual, weight, shift)
        ctx.rest = (eps, before, after, dropout, seed)
        return _norm(x, bias, residual, weight, shift, eps, before, after, dropout, seed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, bias, residual, weight, shift = ctx.saved_tensors
        eps, before, after, dropout, seed = ctx.rest
        rows, columns = x.shape
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dresidual = torch.empty_like(dx) if dropout and residual is not None else None
        launch, programs = tuning.norm_backward(tuning.architecture(x.device), columns)
        programs = min(programs, -(-rows // launch.tiles["ROWS"]))
        sums = None
        if any(ctx.needs_input_grad[i] for i in (1, 3, 4)):
            sums = torch.empty((3, programs, columns), dtype=torch.float32, device=x.device)
        if x.numel():
            dy = _dense(dy)
            _norm_backward_kernel[(programs,)](
                x, bias, residual, weight, shift, dy, dx, dresidual, sums, rows, x.stride(0),
                0 if residual is None else residual.stride(0), dy.stride(0), eps, seed, *_dropping(dropout), columns,
                before, after, dropout > 0, **launch.tiles, num_warps=launch.num_warps,
            )  # fmt: skip
        dweight, dshift, dbias = (None, None, None) if sums is None else sums.sum(1).to(x.dtype)
        dresidual = dx if dresidual is None else dresidual
        return (
            dx, None if bias is None else dbias, None if residual is None else dresidual, dweight, dshift,
            None, None, None, None, None,
        )  # fmt: skip


def _dense(t: torch.Tensor) -> torch.Tensor:
    """The tensor, its last dimension contiguous."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _obstacle(
    rows: tuple[torch.Tensor | None, ...], vectors: tuple[torch.Tensor | None, ...], activation: str = "gelu"
) -> str | None:
    """Why a kernel does not take these arguments: `rows` should be as the first, [M, N], and `vectors` [N]."""
    x = rows[0]
    if activation not in _FUSED:
        return f"activation {activation!r} is none of {', '.join(FUSED_ACTIVATIONS)}"
    if x.dim() != 2:
        return f"x has {x.dim()} dimensions instead of 2"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"{x.dtype} is none of float32, float16 and bfloat16"
    for t, shape in [(t, x.shape) for t in rows] + [(t, x.shape[1:]) for t in vectors]:
        if t is None:
            continue
        if t.shape != shape:
            return f"a shape of {tuple(t.shape)} where {tuple(shape)} is needed"
        if t.dtype != x.dtype or t.device != x.device:
            return f"{t.dtype} on {t.device} beside {x.dtype} on {x.device}"
        if t.stride(-1) != 1 and t.shape[-1] > 1:
            return f"a last dimension with a stride of {t.stride(-1)} instead of 1"
    return None


def _norm_obstacle(x, bias, residual, weight, shift, activation: str = "gelu") -> str | None:
    recorded = _recorded(x, bias, residual, weight, shift)
    limit = MAX_GRADIENT_COLUMNS if recorded else MAX_COLUMNS
    if x.dim() == 2 and x.shape[1] > limit:
        return f"{x.shape[1]} columns, the kernel takes {limit}" + " where gradients are wanted" * recorded
    return _obstacle((x, residual), (bias, weight, shift), activation)


def _demand(obstacle: str | None) -> None:
    if obstacle is not None:
        raise ValueError(obstacle)


def _recorded(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd wants to know."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _normalized(x, bias, residual, weight, shift, *rest) -> torch.Tensor:
    call = _Norm.apply if _recorded(x, bias, residual, weight, shift) else _norm
    return call(x, bias, residual, weight, shift, *rest)


def add_layer_norm_refuses(x, bias, residual, weight, shift, eps, dropout=0.0) -> str | None:
    """Why add_layer_norm_triton does not take these arguments; None where it does."""
    if not 0 <= dropout <= 1:
        return f"dropout is {dropout}, not between 0 and 1"
    return _norm_obstacle(x, bias, residual, weight, shift)


def add_layer_norm_triton(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """As add_layer_norm_reference, with gradients; the dropped elements are others, under a seed of torch's.

    Args:
        x, residual: [M, N] with any stride between rows, N at most MAX_COLUMNS (MAX_GRADIENT_COLUMNS where autograd
            records). bias, weight, shift: [N].

    Raises:
        ValueError: a shape, dtype, device, stride or probability that the kernel does not take.
    """
    _demand(add_layer_norm_refuses(x, bias, residual, weight, shift, eps, dropout))
    # Drawn on the host, so that nothing waits for the device; always 64 bits, so that nothing is compiled twice.
    seed = int(torch.randint(2**32, 2**63 - 1, (), device="cpu")) if dropout else 2**32
    return _normalized(x, bias, residual, weight, shift, eps, "linear", "linear", float(dropout), seed)


def layer_norm_gelu_refuses(x, weight, shift, eps, activation="gelu") -> str | None:
    """Why layer_norm_gelu_triton and gelu_layer_norm_triton do not take these arguments; None where they do."""
    return _norm_obstacle(x, None, None, weight, shift, activation)


def layer_norm_gelu_triton(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> torch.Tensor:
    """As layer_norm_gelu_reference, for FUSED_ACTIVATIONS; takes and raises what add_layer_norm_triton does."""
    _demand(layer_norm_gelu_refuses(x, weight, shift, eps, activation))
    return _normalized(x, None, None, weight, shift, eps, "linear", _FUSED[activation], 0.0, 2**32)


gelu_layer_norm_refuses = layer_norm_gelu_refuses


def gelu_layer_norm_triton(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float, activation: str = "gelu"
) -> torch.Tensor:
    """As gelu_layer_norm_reference, for FUSED_ACTIVATIONS; takes and raises what add_layer_norm_triton does."""
    _demand(gelu_layer_norm_refuses(x, weight, shift, eps, activation))
    return _normalized(x, None, None, weight, shift, eps, _FUSED[activation], "linear", 0.0, 2**32)


@triton.jit(do_not_specialize=["rows"])
def _bias_gelu_kernel(
    x,  # [rows, COLUMNS], rows x_stride apart
    bias,  # [COLUMNS] or None
    y,  # [rows, COLUMNS], contiguous
    rows,
    x_stride,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = column < COLUMNS
    inside = (row < rows)[:, None] & within[None, :]
    u = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        u += _vector(bias, column, within).to(tl.float32)
    u = activate(u, KIND)
    tl.store(y + row[:, None] * COLUMNS + column[None, :], u.to(y.dtype.element_ty), mask=inside)


def _bias_gelu(x: torch.Tensor, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
    rows, columns = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        launch = tuning.bias_gelu(tuning.architecture(x.device), columns)
        grid = (-(-rows // launch.tiles["ROWS"]), -(-columns // launch.tiles["BLOCK"]))
        _bias_gelu_kernel[grid](
            x, bias, y, rows, x.stride(0), columns, kind, **launch.tiles, num_warps=launch.num_warps
        )
    return y


@triton.jit(do_not_specialize=["rows"])
def _bias_gelu_backward_kernel(
    x,  # as in _bias_gelu_kernel
    bias,
    dy,  # [rows, COLUMNS], rows dy_stride apart
    dx,  # [rows, COLUMNS], contiguous
    sums,  # [programs, COLUMNS] float32: of this program's rows, for bias; or None
    rows,
    x_stride,
    dy_stride,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = column < COLUMNS
    if bias is not None:
        b = _vector(bias, column, within).to(tl.float32)
    if sums is not None:
        dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(first, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & within[None, :]
        u = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        du = tl.load(dy + row[:, None] * dy_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            u += b
        du *= slope(u, KIND)
        tl.store(dx + row[:, None] * COLUMNS + column[None, :], du.to(dx.dtype.element_ty), mask=inside)
        if sums is not None:
            dbias += du
    if sums is not None:
        tl.store(sums + tl.program_id(0).to(tl.int64) * COLUMNS + column, tl.sum(dbias, 0), mask=within)


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, kind):
        ctx.save_for_backward(x, bias)
        ctx.kind = kind
        return _bias_gelu(x, bias, kind)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, bias = ctx.saved_tensors
        rows, columns = x.shape
        dx, sums = torch.empty(x.shape, dtype=x.dtype, device=x.device), None
        launch, programs = tuning.bias_gelu_backward(tuning.architecture(x.device), columns)
        programs = min(programs, -(-rows // launch.tiles["ROWS"]))
        if ctx.needs_input_grad[1]:
            sums = torch.empty((programs, columns), dtype=torch.float32, device=x.device)
        if x.numel():
            dy = _dense(dy)
            _bias_gelu_backward_kernel[(programs, -(-columns // launch.tiles["BLOCK"]))](
                x, bias, dy, dx, sums, rows, x.stride(0), dy.stride(0), columns, ctx.kind,
                **launch.tiles, num_warps=launch.num_warps,
            )  # fmt: skip
        return dx, None if sums is None else sums.sum(0).to(x.dtype), None


def bias_gelu_refuses(x, bias, activation="gelu") -> str | None:
    """Why bias_gelu_triton does not take these arguments; None where it does."""
    return _obstacle((x,), (bias,), activation)


def bias_gelu_triton(x: torch.Tensor, bias: torch.Tensor | None, activation: str = "gelu") -> torch.Tensor:
    """As bias_gelu_reference, with gradients, for FUSED_ACTIVATIONS.

    Args:
        x: [M, N] with any stride between rows. bias: [N].

    Raises:
        ValueError: an activation, shape, dtype, device or stride that the kernel does not take.
    """
    _demand(bias_gelu_refuses(x, bias, activation))
    call = _BiasGelu.apply if _recorded(x, bias) else _bias_gelu
    return call(x, bias, _FUSED[activation])
