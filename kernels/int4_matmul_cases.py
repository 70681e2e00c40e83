"""Cases and variants of int4_matmul."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .checks import Case, Check, Variant
from .int4_matmul import (
    _dequantize_kernel,
    _int4_matmul_kernel,
    _merge_splits_kernel,
    int4_matmul_reference,
    int4_matmul_triton,
)
from .tuning import INT4_DENSE_ROWS, INT4_DEQUANTIZE_WORDS, INT4_MERGE_COLUMNS, RULES, power_of_2

# QLoRA's NF4 (Dettmers et al. 2023, appendix E) and the values of 4-bit floats, largest 1.
NF4 = (
    *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
)
FP4 = tuple(sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3))


def _case(
    rows: int,
    features: int,
    columns: int,
    group: int,
    form: str = "symmetric",
    bias: bool = False,
    special: str = "",
    core: bool = False,
) -> Case:
    """A case, named after its arguments.

    form is one of symmetric, zero, fraction (zero points between levels), integer (zero points as int64), NF4, FP4.
    special is one of sliced (x is columns of a wider tensor), row (x is one row, repeated with stride 0), low and high
    (every nibble 0, 15), shifted (x starts at an odd element), mean (x is far from 0), mixed (scales in float32), both
    (zero points that a codebook makes void).
    """

    def make(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        seed = torch.Generator().manual_seed(rows + 100 * features + columns + group)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=seed)

        wide = normal(rows + 1, columns + 24) + (8 if special == "mean" else 0)
        x = wide[1:, 8 : 8 + columns].to(dtype)
        if special == "sliced":
            x = wide.to(dtype)[1:, 8 : 8 + columns]
        elif special == "shifted":
            x = wide.to(dtype)[:rows, 1 : 1 + columns]
        elif special == "row":
            x = x[:1].expand(rows, columns)
        packed = torch.randint(0, 256, (features, columns // 2), generator=seed, dtype=torch.uint8)
        if special in ("low", "high"):
            packed.fill_(0 if special == "low" else 255)
        shape = features, columns // group
        scale = (normal(*shape) / 8).to(torch.float32 if special == "mixed" else dtype)
        arguments: dict[str, Any] = {"x": x, "packed": packed, "scale": scale}
        if form in ("zero", "integer") or special == "both":
            zero = torch.randint(0, 16, shape, generator=seed)
            arguments["zero"] = zero if form == "integer" else zero.to(dtype)
        elif form == "fraction":
            arguments["zero"] = (15 * torch.rand(*shape, generator=seed)).to(dtype)
        if form in ("NF4", "FP4"):
            arguments["codebook"] = torch.tensor(NF4 if form == "NF4" else FP4).to(scale.dtype)
        if bias:
            arguments["bias"] = normal(features).to(dtype) * 4
        return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}

    parts = f"{rows}x{features}x{columns}", f"group-{group}", form, "bias" if bias else "", special
    return Case("-".join(p for p in parts if p), make, core=core)


FORMS = ("symmetric", "zero", "fraction", "integer", "NF4", "FP4")
CASES = (
    # nothing; every number of rows at the edges of a tile
    _case(0, 64, 64, 32, bias=True, core=True),
    *(_case(m, 63, 64, 32, bias=True, core=m in (1, 17)) for m in (1, 2, 15, 16, 17, 33, 64, 65)),
    # every form with every group, with and without bias
    *(
        _case(3, 65, 256, group, form, bias=bias, core=bias and group == 128)
        for group in (32, 64, 128)
        for form in FORMS
        for bias in (False, True)
    ),
    # N at the edges of a tile, K of one group up to many
    *(_case(2, n, 64, 64, "zero", bias=True) for n in (1, 63, 64)),
    *(_case(40, 1, k, g, "zero", core=(k, g) == (64, 32)) for k, g in ((32, 32), (64, 32), (192, 64), (192, 32))),
    *(_case(2, 7, k, 32, form, bias=True) for k in (288, 1024) for form in ("symmetric", "zero")),
    # splits of K, of equal and of unequal length, and none with more than 64 rows
    *(_case(2, 129, k, 128, "zero", bias=True, core=k == 2176) for k in (2048, 2176, 4224)),
    *(_case(m, 3, 2176, 128, form, bias=m == 65) for m in (16, 64, 65) for form in ("symmetric", "NF4")),
    _case(1, 129, 4096, 64, "FP4"),
    _case(17, 65, 1024, 128, "zero", bias=True),
    _case(1, 64, 1024, 64, "NF4"),
    _case(65, 3, 1024, 64, "NF4", bias=True),
    # x in every position, nibbles and values at their ends
    *(_case(4, 33, 64, 32, form, special=s) for s in ("sliced", "shifted", "row") for form in ("zero", "NF4")),
    *(_case(4, 33, 128, 64, form, special=s) for s in ("low", "high", "mean", "mixed") for form in FORMS),
    _case(4, 33, 64, 32, "NF4", special="both"),
    # more rows than are multiplied tile by tile: dequantized
    _case(INT4_DENSE_ROWS + 1, 5, 64, 32, "zero", bias=True, core=True),
    *(_case(INT4_DENSE_ROWS + 1, 2, 32, 32, form) for form in ("symmetric", "NF4")),
    *(_case(17, 3, 1088, 64, form, bias=True) for form in FORMS),
)


def _variants() -> tuple[Variant, ...]:
    """The matrices of the family in bfloat16: the kernel with each launch it gets, by form and group."""
    variants: dict[str, Variant] = {}

    def add(features, columns, rows, form="symmetric", group=128, dtype="bf16", aligned=True):
        for arch in (80, 90, 100):
            add_for(arch, features, columns, rows, form, group, dtype, aligned)

    def add_for(arch, features, columns, rows, form, group, dtype, aligned):
        shape = (power_of_2(rows), features, columns, group, form == "zero", dtype == "fp32")
        launch = RULES["int4_matmul"](arch, *shape)
        splits = launch.tiles["SPLITS"]
        signature = {"x_ptr": f"*{dtype}", "words_ptr": "*i32", "scale_ptr": f"*{dtype}", "y_ptr": f"*{dtype}"}
        constants: dict[str, Any] = {"zero_ptr": None, "bias_ptr": None, "codebook_ptr": None}
        if form == "zero":
            signature["zero_ptr"] = constants.pop("zero_ptr") or f"*{dtype}"
        if form == "codebook":
            signature["codebook_ptr"] = constants.pop("codebook_ptr") or f"*{dtype}"
        if splits == 1:
            signature["bias_ptr"] = constants.pop("bias_ptr") or f"*{dtype}"
        else:
            signature["y_ptr"] = "*fp32"
        integers = ("M", "N", "groups", "groups_per_split", "stride_x")
        tiles = {name: launch.tiles[name] for name in ("BLOCK_M", "BLOCK_N", "UNROLL")}
        constants |= {"GROUP": group, **tiles, "WARPS": launch.num_warps, "USE_PTX": dtype != "fp32"}
        unaligned = ("M", "groups", "groups_per_split", *(() if aligned else ("N",)))
        split = "-split" if splits > 1 else ""
        variant = Variant(
            f"{form}-{group}-{dtype}-{tiles['BLOCK_N']}x{tiles['BLOCK_M']}{split}{'' if aligned else '-unaligned'}",
            _int4_matmul_kernel,
            {**signature, **{name: "i32" for name in integers}},
            constants,
            launch.num_warps,
            launch.num_stages,
            unaligned=unaligned,
            present={} if dtype == "fp32" else {80: ("HMMA",), 90: ("HGMMA",), 100: ("UTCHMMA",)},
            per=("weight", tiles["BLOCK_N"] * group * tiles["UNROLL"]),
            architectures=(arch,),
            launch=("int4_matmul", shape),
        )
        known = variants.setdefault(variant.name, variant)
        if arch not in known.architectures:
            variants[variant.name] = replace(known, architectures=(*known.architectures, arch))

    for rows in (1, 16, 17, 64):
        add(50358, 1024, rows, aligned=False)
        for features, columns in ((50432, 1024), (1024, 1024), (4096, 1024), (1024, 4096)):
            add(features, columns, rows)
        for form in ("zero", "codebook"):
            for group in (64, 128):
                add(50432, 1024, rows, form, group)
        add(1024, 1024, rows, "zero")
        add(1024, 1024, rows, "codebook", 64)
        add(1024, 1024, rows, "zero", 64)
    for features in (1024, 50432):
        add(features, 1024, 1, group=32)
        for rows in (1, 17):
            add(features, 1024, rows, group=64)
            for group in (64, 128):
                add(features, 1024, rows, group=group, dtype="fp16")
    add(1024, 1024, 64, group=64)
    for form in ("zero", "codebook"):
        add(1024, 1024, 1, form, 32)
    add(50432, 1024, 1, "codebook", 64, dtype="fp16")
    add(50432, 1024, 1, dtype="fp32")
    return (
        *variants.values(),
        Variant(
            "merge",
            _merge_splits_kernel,
            {"partial_ptr": "*fp32", "bias_ptr": "*bf16", "y_ptr": "*bf16", "M": "i32", "N": "i32"},
            {"SPLITS": 8, "BLOCK": INT4_MERGE_COLUMNS},
            unaligned=("M",),
        ),
        Variant(
            "dequantize",
            _dequantize_kernel,
            {"words_ptr": "*i32", "scale_ptr": "*bf16", "weight_ptr": "*bf16", "groups": "i32"},
            {"zero_ptr": None, "codebook_ptr": None, "GROUP": 128, "BLOCK": INT4_DEQUANTIZE_WORDS},
            unaligned=("groups",),
            present={80: ("STG.128",), 90: ("STG.128",), 100: ("STG.128",)},
        ),
    )


VARIANTS = _variants()
CHECK = Check(int4_matmul_reference, int4_matmul_triton, CASES, VARIANTS)
