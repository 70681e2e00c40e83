"""Cases and variants of the kernels in layernorm_gelu.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from . import tuning
from .activations import FUSED_ACTIVATIONS, KERNEL_ACTIVATIONS
from .checks import Case, Check, Variant, arg_names
from .layernorm_gelu import (
    MAX_GRADIENT_COLUMNS,
    _bias_gelu_bwd_kernel,
    _bias_gelu_fwd_kernel,
    _norm_bwd_kernel,
    _norm_fwd_kernel,
    add_layer_norm_reference,
    add_layer_norm_triton,
    bias_gelu_reference,
    bias_gelu_triton,
    gelu_layer_norm_reference,
    gelu_layer_norm_triton,
    layer_norm_gelu_reference,
    layer_norm_gelu_triton,
)

Fill = Callable[[torch.Tensor], torch.Tensor]
EPS = 1e-12
NORM_TENSORS = ("x", "bias", "residual", "weight", "shift")


def _strided(t: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """The same matrix with gaps of NaN between its rows, starting `offset` elements into its memory."""
    m, n = t.shape
    wide = torch.full((m, n + 8 + offset), math.nan, dtype=t.dtype, device=t.device)
    wide[:, offset : offset + n] = t
    return wide[:, offset : offset + n]


def _tensors(
    m: int, n: int, dtype: torch.dtype, device: torch.device, fill: Fill, wide: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """Arguments of add_layer_norm; those in `wide` are float32, as under autocast."""
    generator = torch.Generator().manual_seed(m * 10007 + n)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, residual, bias, weight, shift = random(m, n), random(m, n), random(n), random(n) + 1, random(n)
    tensors = dict(x=x, bias=bias, residual=residual, weight=weight, shift=shift)
    tensors = {name: t.to(torch.float32 if name in wide else dtype).to(device) for name, t in tensors.items()}
    return {**tensors, "x": fill(tensors["x"])}


def _norm_case(
    name: str,
    m: int,
    n: int,
    fill: Fill = lambda x: x,
    without: tuple[str, ...] = (),
    core: bool = False,
    wide: tuple[str, ...] = (),
    **options: Any,
) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        tensors: dict[str, Any] = _tensors(m, n, dtype, device, fill, wide)
        tensors.update(dict.fromkeys(without))
        return {**tensors, "eps": EPS, **options}

    gradients = NORM_TENSORS if n <= MAX_GRADIENT_COLUMNS else ()
    return Case(name, make, tuple(t for t in gradients if t not in without), core)


def _act_case(
    name: str,
    m: int,
    n: int,
    fill: Fill = lambda x: x,
    norm: bool = False,
    activation: str = "gelu",
    core: bool = False,
    without: tuple[str, ...] = (),
    gradients: bool = True,
    wide: tuple[str, ...] = (),
) -> Case:
    """A case of bias_gelu; with `norm`, of layer_norm_gelu and gelu_layer_norm."""
    names = ("x", "weight", "shift") if norm else ("x", "bias")

    def make(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        tensors = _tensors(m, n, dtype, device, fill, wide)
        arguments: dict[str, Any] = {name: None if name in without else tensors[name] for name in names}
        return {**arguments, "activation": activation, **({"eps": EPS} if norm else {})}

    return Case(name, make, tuple(t for t in names if t not in without) if gradients else (), core)


def _noise_on_offset(x: torch.Tensor) -> torch.Tensor:
    return (x.float() * 1e-3 + 1e4).to(x.dtype)


def _outlier(x: torch.Tensor) -> torch.Tensor:
    """One outlier per row, at different columns."""
    row = torch.arange(len(x), device=x.device)
    x[row, row * 7 % x.shape[1]] = 6e4
    return x


def _constant(x: torch.Tensor) -> torch.Tensor:
    return torch.full_like(x, 77.7) * torch.arange(1, len(x) + 1, dtype=x.dtype, device=x.device)[:, None]


def _large_constant(x: torch.Tensor) -> torch.Tensor:
    return 54321.7 - 1.7 * torch.arange(len(x), device=x.device)[:, None].expand_as(x).to(x.dtype)


def _ramp(x: torch.Tensor) -> torch.Tensor:
    """From tail to tail, and the kinks."""
    ramp = torch.linspace(-12, 12, x.numel(), device=x.device).to(x.dtype)
    ramp[:12] = torch.tensor([0.0, -0.0, 3, -3, 6, -6, 10, -10, 20, -20, 100, -100])
    return ramp.view_as(x)


def _special(x: torch.Tensor) -> torch.Tensor:
    x[0, :3] = torch.tensor([math.inf, -math.inf, math.nan])
    return x


SIZES = [(1, 1), (3, 7), (17, 8), (2, 63), (3, 64), (17, 65), (3, 1000), (2, 1024), (2, 4097)]
EDGES: list[tuple[str, Fill]] = [
    ("constant rows", _constant),
    ("large constant rows", _large_constant),
    ("zeros", torch.zeros_like),
    ("noise on 1e4", _noise_on_offset),
    ("an outlier", _outlier),
]

WIDE = ("residual", "weight", "shift")  # under autocast

NORM_CASES = (
    _norm_case("autocast", 17, 65, without=("bias",), wide=WIDE, core=True),
    _norm_case("autocast, float32 bias", 3, 1000, wide=(*WIDE, "bias")),
    _norm_case("autocast, bias and residual in 16 bits", 5, 72, _strided, wide=("weight", "shift")),
    _norm_case("autocast, no residual", 3, 64, without=("bias", "residual"), wide=WIDE, core=True),
    _norm_case("autocast, more rows than programs", 530, 513, without=("bias",), wide=WIDE),
    _norm_case("autocast, everything dropped", 3, 65, without=("bias",), wide=WIDE, dropout=1.0),
    *(_norm_case(f"{m} x {n}", m, n, core=n in (7, 1024)) for m, n in SIZES),
    _norm_case("no rows", 0, 64, core=True),
    _norm_case("no bias", 3, 64, without=("bias",), core=True),
    _norm_case("no residual", 3, 64, without=("residual",), core=True),
    _norm_case("norm alone", 17, 65, without=("bias", "residual"), core=True),
    _norm_case("rows apart", 5, 72, _strided, core=True),
    _norm_case("not aligned", 5, 65, lambda x: _strided(x, 1)),
    _norm_case("one row for all", 5, 64, lambda x: x[:1].expand_as(x)),
    _norm_case("many tiles of rows", 70, 40),
    _norm_case("more rows than programs", 530, 513),
    _norm_case("everything dropped", 3, 65, dropout=1.0, core=True),
    _norm_case("everything and no residual dropped", 3, 64, without=("residual",), dropout=1.0),
    *(_norm_case(name, 5, 64, fill, without=("bias", "residual"), core=True) for name, fill in EDGES),
    *(_norm_case(f"{name}, 1000 columns", 2, 1000, fill, without=("bias", "residual")) for name, fill in EDGES),
)

ACT_CASES = (
    _act_case("float32 bias", 17, 65, wide=("bias",), core=True),
    _act_case("float32 bias, more rows than programs", 530, 513, wide=("bias",)),
    *(_act_case(f"{m} x {n}", m, n, core=n in (7, 1024)) for m, n in SIZES),
    _act_case("no rows", 0, 64, core=True),
    _act_case("no bias", 3, 64, without=("bias",), core=True),
    _act_case("rows apart", 5, 72, _strided, core=True),
    _act_case("not aligned", 5, 65, lambda x: _strided(x, 1)),
    _act_case("one row for all", 5, 64, lambda x: x[:1].expand_as(x)),
    _act_case("many tiles of rows", 140, 40),
    _act_case("more rows than programs", 530, 513),
    _act_case("two tiles of columns and of rows", 9, 1030),
    *(_act_case(a, 6, 64, _ramp, activation=a, without=("bias",), core=a == "gelu") for a in FUSED_ACTIVATIONS),
    *(_act_case(f"{a}, inf and nan", 2, 8, _special, activation=a, gradients=False) for a in FUSED_ACTIVATIONS),
)

NORM_ACT_CASES = (
    _act_case("float32 parameters", 17, 65, norm=True, wide=("weight", "shift"), core=True),
    *(_act_case(f"{m} x {n}", m, n, norm=True, core=n == 65, gradients=n <= MAX_GRADIENT_COLUMNS) for m, n in SIZES),
    _act_case("no rows", 0, 64, norm=True, core=True),
    _act_case("rows apart", 5, 72, _strided, norm=True, core=True),
    _act_case("many tiles of rows", 70, 40, norm=True),
    *(_act_case(name, 5, 64, fill, norm=True) for name, fill in EDGES),
    # Enough elements that plain torch has an error: the bound on ours is a multiple of it.
    *(_act_case(a, 6, 1000, norm=True, activation=a) for a in FUSED_ACTIVATIONS if a != "gelu"),
)


# Dropout: the same seed drops the same elements, so one call yields the mask and another one is compared.


def _dropped_triton(dropout: float, **arguments: Any) -> torch.Tensor:
    torch.manual_seed(5)
    return add_layer_norm_triton(dropout=dropout, **arguments)


def _kept_elements(x: torch.Tensor, dropout: float) -> torch.Tensor:
    """The dropout mask of the kernel for this shape and the seed above: with a huge eps, LayerNorm is linear."""
    signs = (1.0 - 2 * (torch.arange(x.shape[1], device=x.device) % 2)).expand(x.shape).contiguous()
    ones = torch.ones_like(signs[0])
    y = _dropped_triton(dropout, x=signs, bias=None, residual=None, weight=ones, shift=0 * ones, eps=1e6)
    return signs * y * 1e3 > 0.5 / (1 - dropout)


def _dropped_reference(dropout: float, x: torch.Tensor, **rest: Any) -> torch.Tensor:
    mask = _kept_elements(x, dropout)
    # The share of kept elements, and of equal neighbours along rows and columns: within five standard deviations.
    alike = dropout**2 + (1 - dropout) ** 2
    for flags, share in ((mask, 1 - dropout), (mask[:, 1:] == mask[:, :-1], alike), (mask[1:] == mask[:-1], alike)):
        actual = float(flags.double().mean())
        if abs(actual - share) > 5 * math.sqrt(share * (1 - share) / flags.numel()):
            raise ArithmeticError(f"dropout of {dropout}: a share of {actual} instead of {share}")
    bias, residual, weight, shift = (rest[name] for name in NORM_TENSORS[1:])
    x = torch.where(mask, (x if bias is None else x + bias) / (1 - dropout), 0)
    return F.layer_norm(x if residual is None else x + residual, x.shape[-1:], weight, shift, rest["eps"])


DROPOUT_CASES = (
    _norm_case("0.1, autocast", 40, 33, without=("bias",), wide=WIDE, dropout=0.1, core=True),
    _norm_case("0.1", 40, 33, dropout=0.1, core=True),
    _norm_case("0.5", 70, 72, _strided, dropout=0.5),
    _norm_case("0.9, 1024 columns", 3, 1024, dropout=0.9),
    _norm_case("0.3, norm and dropout alone", 5, 64, dropout=0.3, without=("bias", "residual")),
)


# Strided gradients: those of a concatenated tensor are views of its gradient.


def _joined(norm: Callable[..., torch.Tensor], act: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def function(transposed: bool, x: torch.Tensor, bias: torch.Tensor, **rest: Any) -> torch.Tensor:
        parts = norm(x=x, bias=bias, **rest), act(x=x, bias=bias)
        return torch.cat([part.t() if transposed else part for part in parts], 1)

    return function


JOINED_CASES = (
    _norm_case("gradients with rows apart", 3, 40, transposed=False, core=True),
    _norm_case("gradients transposed", 3, 40, transposed=True, core=True),
)


# Variants

_POINTERS = [f"{name}_ptr" for name in ("x", "bias", "residual", "weight", "shift", "y", "dy", "dx", "dresidual")]
_TYPES = {"M": "i32", "stride_x": "i32", "stride_residual": "i32", "stride_dy": "i32", "eps": "fp32", "seed": "i64",
          "dropout_threshold": "i32", "dropout_scale": "fp32", "partial_ptr": "*fp32"}  # fmt: skip
WIDE_ACCESSES = {arch: ("LDG.128", "STG.128") for arch in (80, 90, 100)}


def _variant(
    name: str, kernel: Any, launch: tuning.Launch, rule: str = "", wide: tuple[str, ...] = (), **constants: Any
) -> Variant:
    types = {**_TYPES, **dict.fromkeys(_POINTERS, "*bf16"), **dict.fromkeys(wide, "*fp32")}
    constants = {**launch.tiles, **constants}
    signature = {name: types[name] for name in arg_names(kernel) if name not in constants}
    elements = launch.tiles["ROWS"] * launch.tiles["BLOCK"]
    return Variant(
        name, kernel, signature, constants, launch.num_warps,
        unaligned=("M", "seed", "dropout_threshold"), present=WIDE_ACCESSES, per=("element", elements),
        launch=(rule, (constants["N"],)) if rule else None,
    )  # fmt: skip


def _norm_variants(name: str, columns: int, wide: tuple[str, ...] = (), **constants: Any) -> list[Variant]:
    constants = {"BEFORE": "linear", "AFTER": "linear", "DROPOUT": False, **constants, "N": columns}
    variants = [_variant(name, _norm_fwd_kernel, tuning.norm(90, columns), "norm", wide, **constants)]
    if columns <= MAX_GRADIENT_COLUMNS:
        launch, backward = tuning.norm_backward(90, columns)[0], dict(constants)
        if not constants["DROPOUT"] and not wide:
            backward["dresidual_ptr"] = None
        variants.append(_variant(f"{name} backward", _norm_bwd_kernel, launch, "", wide, **backward))
    return variants


_WIDE = tuple(f"{name}_ptr" for name in (*WIDE, "y", "dy", "dresidual"))

NORM_VARIANTS = (
    *_norm_variants("1024 autocast", 1024, _WIDE, bias_ptr=None),
    *_norm_variants("4096 autocast", 4096, _WIDE, bias_ptr=None),
    *_norm_variants("1024 dropout autocast", 1024, _WIDE, bias_ptr=None, DROPOUT=True),
    *_norm_variants("1024", 1024),
    *_norm_variants("4096", 4096),
    *_norm_variants("16384", 16384),
    *_norm_variants("64", 64),
    *_norm_variants("1024 dropout", 1024, DROPOUT=True),
    *_norm_variants("4096 dropout", 4096, DROPOUT=True),
)
_ALONE = {"bias_ptr": None, "residual_ptr": None}
LAYER_NORM_GELU_VARIANTS = tuple(_norm_variants("1024", 1024, AFTER="gelu", **_ALONE))
GELU_LAYER_NORM_VARIANTS = tuple(_norm_variants("1024", 1024, BEFORE="gelu", **_ALONE))
ACT_VARIANTS = tuple(
    _variant(
        f"{columns} {kind}{wide}{name}", kernel, launch, rule, ("bias_ptr",) * bool(wide), N=columns, ACTIVATION=kind
    )
    for wide in ("", " float32 bias")
    for columns in (1024, 4096)
    for kind in dict.fromkeys(KERNEL_ACTIVATIONS.values())
    for name, kernel, launch, rule in (
        ("", _bias_gelu_fwd_kernel, tuning.bias_gelu(90, columns), "bias_gelu"),
        (" backward", _bias_gelu_bwd_kernel, tuning.bias_gelu_backward(90, columns)[0], ""),
    )
    if (columns == 4096 or kind == "gelu") and (kind == "gelu" or not wide)
)

CHECKS = {
    "add_layer_norm": Check(add_layer_norm_reference, add_layer_norm_triton, NORM_CASES, NORM_VARIANTS),
    "add_layer_norm_dropout": Check(_dropped_reference, _dropped_triton, DROPOUT_CASES, ()),
    "add_layer_norm_joined": Check(
        _joined(add_layer_norm_reference, bias_gelu_reference),
        _joined(add_layer_norm_triton, bias_gelu_triton),
        JOINED_CASES,
        (),
    ),
    "bias_gelu": Check(bias_gelu_reference, bias_gelu_triton, ACT_CASES, ACT_VARIANTS),
    "layer_norm_gelu": Check(
        layer_norm_gelu_reference, layer_norm_gelu_triton, NORM_ACT_CASES, LAYER_NORM_GELU_VARIANTS
    ),
    "gelu_layer_norm": Check(
        gelu_layer_norm_reference, gelu_layer_norm_triton, NORM_ACT_CASES, GELU_LAYER_NORM_VARIANTS
    ),
}
