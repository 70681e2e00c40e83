"""Cases and variants of linear_gelu."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from . import tuning
from .checks import Case, Check, Variant
from .linear_gelu import (
    _linear_gelu,
    _linear_gelu_kernel,
    linear_gelu_reference,
    linear_gelu_triton,
    why_not_linear_gelu,
)

Change = Callable[[dict[str, Any]], None]


def _fused(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """linear_gelu by the fused kernel, also where `tuning.linear_gelu` is None."""
    reason = why_not_linear_gelu(x, weight, bias)
    if reason is not None:
        raise ValueError(reason)
    return _linear_gelu(x, weight, bias)


def _case(
    rows: int, features: int, columns: int, note: str = "", change: Change | None = None, core: bool = False
) -> Case:
    """A case, named after its arguments and a note on what `change` does to them."""

    def make(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(rows + 100 * features + 10007 * columns)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        weight = normal(features, columns) / math.sqrt(max(columns, 1))
        arguments: dict[str, Any] = {"x": normal(rows, columns), "weight": weight, "bias": normal(features)}
        arguments = {name: t.to(dtype).to(device) for name, t in arguments.items()}
        if change is not None:
            change(arguments)
        return arguments

    return Case(f"{rows}x{features}x{columns}" + (f", {note}" if note else ""), make, core=core)


def _wide(pad: int, start: int) -> Change:
    """Put gaps of `pad` NaNs between the rows of x, and start it `start` elements into its memory."""

    def change(arguments: dict[str, Any]) -> None:
        x = arguments["x"]
        rows, columns = x.shape
        wide = torch.full((rows, columns + pad), math.nan, dtype=x.dtype, device=x.device)
        wide[:, start : start + columns] = x
        arguments["x"] = wide[:, start : start + columns]

    return change


def _one_row(arguments: dict[str, Any]) -> None:
    arguments["x"] = arguments["x"][:1].expand(arguments["x"].shape)


def _overlapping(arguments: dict[str, Any]) -> None:
    """Overlapping rows, 16 elements apart."""
    rows, columns = arguments["x"].shape
    arguments["x"] = arguments["x"].reshape(-1)[: 16 * (rows - 1) + columns].as_strided((rows, columns), (16, 1))


def _no_columns(arguments: dict[str, Any]) -> None:
    """K = 0, by slices of matrices with gaps between rows."""
    arguments["x"], arguments["weight"] = arguments["x"][:, :0], arguments["weight"][:, :0]


def _no_bias(arguments: dict[str, Any]) -> None:
    arguments["bias"] = None


def _ramp(arguments: dict[str, Any]) -> None:
    """The activation from tail to tail."""
    arguments["weight"].zero_()
    arguments["bias"] = torch.linspace(-12, 12, len(arguments["bias"])).to(arguments["bias"])


def _special(arguments: dict[str, Any]) -> None:
    """Infinities and a NaN, which must not affect other rows and columns of the tile."""
    arguments["x"][1, 0], arguments["x"][2, 4] = math.inf, math.nan
    arguments["weight"][5, 0] = math.inf


def _large(arguments: dict[str, Any]) -> None:
    """Sums above the range of float16; the bias brings some of them back into it."""
    arguments["x"].fill_(60.0)
    arguments["weight"].fill_(60.0)
    arguments["bias"].copy_(torch.linspace(-60000, 0, len(arguments["bias"])))


# With descriptors (16 bits, rows a multiple of 16 elements apart) tiles are 128 x 128 x 64; with pointers 64 x 64 x 32.
# GROUP_M is 8.
CASES = (
    _case(0, 64, 64, core=True),
    _case(3, 0, 64),
    _case(3, 64, 0),
    _case(3, 65, 0, core=True),
    _case(3, 64, 16, "and no column of it", _no_columns),
    # descriptors, around tiles in every direction
    *(_case(m, 128, 64, core=m == 129) for m in (1, 127, 128, 129)),
    *(_case(5, n, 64, core=n == 144) for n in (16, 64, 112, 144)),
    *(_case(5, 80, k, core=k == 80) for k in (16, 32, 48, 80, 128, 208)),
    _case(131, 144, 144, core=True),
    # pointers, likewise, with a rest of K and without
    *(_case(m, 31, 33, core=m == 65) for m in (1, 31, 63, 64, 65, 127, 128, 129)),
    *(_case(5, n, 33, core=n == 1) for n in (1, 31, 63, 64, 65, 67)),
    *(_case(5, 65, k, core=k == 31) for k in (1, 31, 32, 33, 63, 64, 65, 96, 97)),
    _case(131, 131, 131, core=True),
    # layouts of x
    _case(131, 80, 64, "rows apart", _wide(32, 16), core=True),
    _case(131, 80, 128, "rows apart and not aligned", _wide(25, 8), core=True),
    _case(5, 80, 128, "half as aligned", _wide(24, 8)),
    _case(5, 80, 128, "starts at an odd element", _wide(16, 1)),
    _case(5, 72, 67, "rows apart, odd", _wide(6, 3)),
    _case(5, 80, 64, "one row for all", _one_row, core=True),
    _case(5, 80, 64, "overlapping rows", _overlapping),
    # several bands, the last one lower
    _case(9 * 128 + 5, 144, 16, "two bands"),
    _case(10 * 64 + 5, 69, 7, "two bands by pointers"),
    # arguments and values
    _case(5, 144, 80, "no bias", _no_bias, core=True),
    _case(5, 65, 67, "no bias", _no_bias),
    _case(3, 192, 16, "tail to tail", _ramp, core=True),
    _case(5, 80, 64, "inf and nan", _special),
    _case(5, 72, 67, "inf and nan", _special),
    _case(5, 80, 32, "large sums", _large),
)
# Small products, for which tuning.linear_gelu is None.
CHOICE_CASES = (
    _case(0, 64, 64, core=True),
    _case(131, 144, 80, core=True),
    _case(5, 65, 67, "no bias", _no_bias),
    _case(5, 80, 64, "rows apart", _wide(32, 16)),
)


def _variant(
    name: str,
    launch: tuning.Launch,
    dtype: str,
    architectures: tuple[int, ...] = (80, 90, 100),
    even_k: bool = True,
    aligned: bool = True,
) -> Variant:
    tiles = launch.tiles
    block_m, block_n, block_k = (tiles[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    signature = dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "y_ptr"), f"*{dtype}")
    if tiles["USE_TMA"]:
        for matrix, height, width in (
            ("x_ptr", block_m, block_k),
            ("weight_ptr", block_n, block_k),
            ("y_ptr", block_m, block_n),
        ):
            signature[matrix] = f"tensordesc<{dtype}[{height}, {width}]>"
    integers = ("M", "N", "K", "stride_x")
    return Variant(
        name,
        _linear_gelu_kernel,
        {**signature, **dict.fromkeys(integers, "i32")},
        {**tiles, "EVEN_K": even_k},
        launch.num_warps,
        launch.num_stages,
        unaligned=("M",) if aligned else ("x_ptr", *integers),
        present={} if dtype == "fp32" else {80: ("HMMA",), 90: ("HGMMA",), 100: ("UTCHMMA",)},
        per=("element", block_m * block_n),
        architectures=architectures,
    )


VARIANTS = (
    *(_variant(f"{t} descriptors", tuning.linear_gelu_tiles(90, 2, True), t, (90, 100)) for t in ("bf16", "fp16")),
    *(_variant(f"{t} pointers", tuning.linear_gelu_tiles(80, 2, True), t, (80,)) for t in ("bf16", "fp16")),
    _variant("bf16 pointers, rest of K", tuning.linear_gelu_tiles(80, 2, True), "bf16", (80,), even_k=False),
    _variant("bf16 not aligned", tuning.linear_gelu_tiles(90, 2, False), "bf16", aligned=False),
    _variant("bf16 ragged", tuning.linear_gelu_tiles(90, 2, False), "bf16", even_k=False, aligned=False),
    _variant("fp32", tuning.linear_gelu_tiles(90, 4, True), "fp32"),
    _variant("fp32 ragged", tuning.linear_gelu_tiles(90, 4, False), "fp32", even_k=False, aligned=False),
)
CHECKS = {
    "linear_gelu": Check(linear_gelu_reference, _fused, CASES, VARIANTS),
    "linear_gelu_choice": Check(linear_gelu_reference, linear_gelu_triton, CHOICE_CASES, ()),
}
