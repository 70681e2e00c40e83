"""Cases and variants of sample.

Tokens are compared exactly, so no case may be near a tie: between the random numbers of two tokens, or between the mass
above a token and top_p. The seeds below are chosen so; tests/kernels/test_sample.py measures the
margins.
"""

from __future__ import annotations

import torch

from . import tuning
from .checks import Case, Check, Variant
from .sample import _limits_kernel, _merge_kernel, _sample_kernel, sample_reference, sample_triton
from .scores_cases import INF, Arguments, Fill, aligned, levels, rows_apart, special, variant, zeros


def _case(
    name: str,
    rows: int,
    vocabulary: int,
    fill: Fill = lambda x: x,
    seed: int = 0,
    core: bool = False,
    **options: float | tuple[float, ...],
) -> Case:
    """`options`: one number for all rows, or a tuple that is repeated over the rows."""

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        generator = torch.Generator().manual_seed(rows * 1000003 + vocabulary + 7919 * seed)
        scores = fill((3 * torch.randn(rows, vocabulary, generator=generator)).to(dtype).to(device))
        arguments: Arguments = {"scores": scores}
        for option, off, kind in (
            ("temperature", 1.0, torch.float32),
            ("top_k", 0, torch.int32),
            ("top_p", 1.0, torch.float32),
            ("min_p", 0.0, torch.float32),
        ):
            value = options.get(option, off)
            values = value if isinstance(value, tuple) else (value,)
            arguments[option] = torch.tensor([values[i % len(values)] for i in range(rows)], dtype=kind, device=device)
        for number in ("seed", "request", "step"):
            arguments[number] = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator).to(device)
        return arguments

    return Case(name, make, core=core)


def _long_k(case: Case) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        arguments = case.make(dtype, device)
        return {**arguments, "top_k": arguments["top_k"].long()}

    return Case(f"{case.name}, int64 top-k", make, core=case.core)


def _some_impossible(scores: torch.Tensor) -> torch.Tensor:
    scores[:, ::3] = -INF
    return scores


def _peaked(scores: torch.Tensor) -> torch.Tensor:
    scores[:, 7] = 60.0
    return scores


CASES = (
    _case("no limits", 4, 300, core=True),
    _case("temperatures", 5, 300, temperature=(0.3, 1.0, 2.0, 0.0, 100.0), core=True),
    _case("greedy, ties", 3, 300, levels, temperature=(0.0, -1.0)),
    _case("top-k", 5, 300, top_k=(1, 7, 299, 300, 1000), core=True),
    _case("top-k, ties", 6, 300, levels, top_k=(1, 2, 7, 150, 299, 0)),
    _case("top-p", 4, 300, top_p=(0.9, 0.05, 0.0, 1.0), core=True),
    _case("top-p, ties", 3, 300, levels, top_p=(0.9991, 0.97, 0.95), core=True),
    _case("min-p", 5, 300, min_p=(0.1, 0.01, 0.9, 1.0, 2.0), core=True),
    _case(
        "all limits, rows apart", 2, 300, rows_apart, temperature=(0.7, 1.4), top_k=(50, 20), top_p=0.9, min_p=0.05,
        core=True,
    ),
    _case("rows of all kinds", 6, 300, temperature=(0.0, 0.7, 1.0), top_k=(0, 5), top_p=(1.0, 0.8, 0.6, 0.9)),
    _case("special values", 5, 300, special, core=True),
    _case("special values, greedy", 5, 300, special, temperature=0.0),
    _case("special values, limits", 5, 300, special, top_k=(3, 9), top_p=0.9, min_p=0.01),
    _case("special values, extreme temperatures", 5, 300, special, temperature=(INF, 1e-38), top_p=0.9),
    _case("extreme temperatures", 4, 300, temperature=(INF, 1e-38, 1e30, 1e-6), top_k=20, top_p=0.8871),
    _case("impossible tokens", 4, 300, _some_impossible, top_k=(190, 250, 199, 201)),
    _case("impossible tokens, top-p", 4, 300, _some_impossible, top_p=(0.9, 0.2)),
    _case("one of weight", 3, 300, _peaked, top_p=(0.9, 1.0), top_k=(0, 4)),
    _case("all equal", 4, 300, lambda x: x * 0 + 1, top_p=(1.0, 0.5051, 0.1007)),
    _case("all equal, top-k", 4, 300, lambda x: x * 0 - 1, top_k=(0, 1, 299)),
    _case("zeros of both signs", 3, 300, zeros, top_k=(0, 5), top_p=(0.5049, 1.0)),
    _case("around zero", 4, 300, lambda x: x.sign() * x.abs() ** 5 / 512, top_k=(150, 100), top_p=(0.6, 1.0)),
    _case("tiny scores", 4, 300, lambda x: x / 2048, top_k=(150, 3), top_p=(0.6, 1.0)),
    _case("large scores", 4, 300, lambda x: x * 3000, temperature=(1000.0, 1.0), top_k=20, top_p=0.9),
    _case("not aligned", 3, 301, lambda x: rows_apart(x, 1), top_k=20, top_p=0.9),
    _case("rows of a multiple of 128", 3, 358, aligned, top_p=0.9),
    _case("one row for all", 4, 300, lambda x: x[:1].expand_as(x), top_p=0.9),
    *(
        _case(f"{v} tokens", 5, v, seed=2, temperature=(1.0, 0.8), top_k=(0, 40, 3), top_p=(0.95, 1.0))
        for v in (1, 2, 3, 4, 5, 31, 1023, 1024, 1025, 4095, 4096, 4097)
    ),
    *(_case(f"{v} tokens, ties", 3, v, levels, top_p=(0.701, 0.303, 0.95)) for v in (31, 4096, 4097, 9001)),
    _long_k(_case("all limits", 3, 300, top_k=(5, 2**31 - 1), top_p=0.9)),
    _case("a vocabulary", 1, 50358, temperature=1.0),
    _case("a vocabulary, all limits", 2, 50358, temperature=0.8, top_k=(50, 0), top_p=0.9),
    _case("no rows", 0, 300, core=True),
)  # fmt: skip


def _variants(vocabulary: int, stride: int, dtype: str, top_k: str = "i32") -> list[Variant]:
    limits_launch, sample_launch = tuning.sample(90, vocabulary)
    types = {
        "scores_ptr": f"*{dtype}", "top_k_ptr": f"*{top_k}", "limits_ptr": "*fp32", "first_column_ptr": "*i32",
        "tile_keys_ptr": "*i64", "tile_sums_ptr": "*fp32", "tokens_ptr": "*i64", "log_probs_ptr": "*fp32",
        "num_tiles": "i32", **dict.fromkeys(("temperature_ptr", "top_p_ptr", "min_p_ptr"), "*fp32"),
        **dict.fromkeys(("seed_ptr", "request_ptr", "step_ptr"), "*i64"),
    }  # fmt: skip
    name = f"{vocabulary} in {stride} {dtype} {top_k}"
    matrix = dict(STRIDE=stride, V=vocabulary)
    tiles = tuning.power_of_2(-(-vocabulary // sample_launch.tiles["BLOCK"]))
    return [
        variant(f"{name}, limits", _limits_kernel, limits_launch, types, "score", **matrix),
        variant(f"{name}, draw", _sample_kernel, sample_launch, types, "score", **matrix),
        variant(f"{name}, drawn", _merge_kernel, tuning.Launch({}, 1), types, STRIDE=stride, TILES=tiles),
    ]


VARIANTS = (
    *_variants(50358, 50358, "fp32"),
    *_variants(50358, 50432, "fp32", "i64"),
    *_variants(50358, 50432, "bf16"),
    *_variants(50432, 50432, "bf16"),
    *_variants(32000, 32000, "fp32"),
)

CHECK = Check(sample_reference, sample_triton, CASES, VARIANTS)
