"""Cases and variants of top_log_probs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import tuning
from .checks import Case, Check, Variant
from .scores_cases import INF, Arguments, Fill, aligned, levels, rows_apart, special, variant, zeros
from .top_log_probs import (
    _block_max_kernel,
    _group_top_kernel,
    _row_top_kernel,
    top_log_probs_reference,
    top_log_probs_triton,
)


def _case(
    name: str,
    rows: int,
    vocabulary: int,
    count: int,
    group: int = 1,
    fill: Fill = lambda x: x,
    offsets: Callable[[torch.Tensor], torch.Tensor] | None = None,
    core: bool = False,
) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        generator = torch.Generator().manual_seed(rows * 1000003 + vocabulary * 1009 + count * 17 + group)
        scores = 3 * torch.randn(rows, vocabulary, generator=generator)
        added = None if offsets is None else offsets(torch.randn(rows, generator=generator)).to(device)
        return {"scores": fill(scores.to(dtype).to(device)), "count": count, "offsets": added, "group": group}

    return Case(name, make, core=core)


def _same_rows(scores: torch.Tensor) -> torch.Tensor:
    return scores[:1].repeat(len(scores), 1)


def _second_tile(scores: torch.Tensor) -> torch.Tensor:
    """The first tile of the last row is all -inf."""
    scores[-1, :2048] = -INF
    return scores


def _first_beam(offsets: torch.Tensor) -> torch.Tensor:
    """The start of a beam search: of the four beams of each source, all but the first are at -1e9."""
    return torch.where(torch.arange(len(offsets)) % 4 == 0, 0.0, -1e9)


CASES = (
    _case("greedy", 3, 300, 1),
    _case("greedy, ties", 3, 300, 1, fill=levels, core=True),
    _case("greedy, special values", 5, 300, 1, fill=special),
    _case("two beams", 4, 300, 4, 2, offsets=lambda x: x, core=True),
    _case("four beams", 8, 300, 8, 4, offsets=lambda x: x),
    _case("four beams, the first step", 4, 300, 8, 4, offsets=_first_beam),
    _case("two beams, ties", 4, 300, 4, 2, fill=levels),
    _case("four beams, ties", 8, 300, 8, 4, fill=levels),
    _case("three beams of the same scores", 3, 300, 3, 3, fill=_same_rows, core=True),
    _case("special values", 5, 300, 3, fill=special, offsets=lambda x: x, core=True),
    _case("a group with special values", 5, 300, 3, 5, fill=special, offsets=lambda x: x, core=True),
    _case("more than there are", 3, 3, 7, 3, core=True),
    _case("all there are", 2, 13, 13, core=True),
    _case("all there are, ties", 2, 13, 13, fill=levels),
    _case("one token", 2, 1, 1, core=True),
    _case("one token, four beams", 4, 1, 4, 4, offsets=lambda x: x),
    _case("zeros of both signs", 2, 200, 5, fill=zeros, core=True),
    _case("zeros of both signs, greedy", 3, 200, 1, fill=zeros),
    _case("rows apart", 3, 200, 4, fill=rows_apart, core=True),
    _case("rows apart, two beams", 4, 200, 4, 2, fill=rows_apart),
    _case("rows of a multiple of 128", 3, 358, 4, fill=aligned),
    _case("not aligned", 3, 200, 4, fill=lambda x: rows_apart(x, 1)),
    _case("one row for all", 3, 200, 4, 3, fill=lambda x: x[:1].expand_as(x), offsets=lambda x: x),
    _case("two tiles, one of a row impossible", 2, 2049, 4, fill=_second_tile, core=True),
    *(_case(f"{v} tokens", 2, v, 3, 2) for v in (5, 63, 64, 65, 127, 1009, 2047, 2048, 4097, 6007)),
    *(_case(f"{v} tokens, ties", 2, v, 6, 2, fill=levels) for v in (64, 65, 2048, 4097)),
    *(_case(f"{v} tokens, greedy", 2, v, 1, fill=levels) for v in (2, 64, 65, 2048, 4097)),
    *(_case(f"{n} of 1009", 3, 1009, n, offsets=lambda x: x) for n in (2, 15, 16, 17, 31, 32, 33, 63, 64)),
    *(_case(f"{n} of ties", 2, 1009, n, 2, fill=levels) for n in (16, 17, 64)),
    _case("64 of 64", 1, 64, 64),
    *(_case(f"{w} beams", 2 * w, 70, 2 * w, w, offsets=lambda x: x) for w in (2, 3, 5, 7, 16)),
    _case("16 beams, 64 candidates", 16, 70, 64, 16, offsets=lambda x: x),
    _case("large scores", 3, 300, 4, fill=lambda x: x * 1000),
    _case("small scores", 3, 300, 4, fill=lambda x: x / 4096),
    _case("a vocabulary", 1, 50358, 8),
    _case("a vocabulary, two beams", 2, 50358, 4, 2, fill=levels, offsets=lambda x: x),
    _case("no rows", 0, 300, 3, core=True),
    _case("no rows, four beams", 0, 300, 3, 4),
)


def _variants(vocabulary: int, stride: int, count: int, group: int, dtype: str) -> list[Variant]:
    row_count = min(count, vocabulary)
    first, second = tuning.top_log_probs(90, vocabulary, row_count)
    types = {
        "scores_ptr": f"*{dtype}", "block_max_ptr": "*i32", "tile_sums_ptr": "*fp32", "offsets_ptr": "*fp32",
        "values_ptr": "*fp32", "indices_ptr": "*i64", "out_values_ptr": "*fp32", "out_indices_ptr": "*i64",
        "num_blocks": "i32", "num_tiles": "i32", "group": "i32",
    }  # fmt: skip
    name = f"{count} of {group} x {vocabulary} in {stride} {dtype}"
    matrix = dict(STRIDE=stride, V=vocabulary)
    row = dict(COUNT=row_count, BLOCK_COUNT=tuning.power_of_2(row_count), BLOCK=first.tiles["BLOCK"])
    absent = {"offsets_ptr": None} if group == 1 else {}
    variants = [
        variant(f"{name}, maxima", _block_max_kernel, first, types, "score", **matrix),
        variant(f"{name}, rows", _row_top_kernel, second, types, **matrix, **row, **absent),
    ]
    if group > 1:
        sizes = dict(ROW_COUNT=row_count, COUNT=count, GROUP=group)
        blocks = dict(BLOCK_COUNT=tuning.power_of_2(count), BLOCK=tuning.power_of_2(group * row_count))
        variants.append(variant(f"{name}, groups", _group_top_kernel, tuning.Launch({}), types, **sizes, **blocks))
    return variants


VARIANTS = (
    *_variants(50358, 50358, 1, 1, "fp32"),
    *_variants(50358, 50432, 1, 1, "fp32"),
    *_variants(50358, 50432, 1, 1, "bf16"),
    *_variants(50432, 50432, 1, 1, "bf16"),
    *_variants(50358, 50358, 8, 4, "fp32"),
    *_variants(50358, 50432, 8, 4, "bf16"),
    *_variants(50358, 50432, 16, 8, "bf16"),
    *_variants(50358, 50432, 64, 16, "bf16"),
    *_variants(32000, 32000, 8, 4, "bf16"),
    *_variants(262144, 262144, 64, 16, "bf16"),
)

CHECK = Check(top_log_probs_reference, top_log_probs_triton, CASES, VARIANTS)
