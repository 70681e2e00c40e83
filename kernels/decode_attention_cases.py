"""Cases and variants of decode_attention and cross_decode_attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from . import tuning
from .checks import Case, Check, Variant
from .decode_attention import (
    _cross_decode_attention_kernel,
    _decode_attention_kernel,
    cross_decode_attention_reference,
    cross_decode_attention_triton,
    decode_attention_reference,
    decode_attention_triton,
)

Arguments = dict[str, Any]


def _poison(tensor: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """`tensor` with NaN and 65504 by turns at hidden places."""
    poison = torch.tensor([float("nan"), 65504.0]).repeat(hidden.shape[0])[: hidden.shape[0]]
    poison = poison.to(tensor).view(-1, *[1] * (tensor.dim() - 1)).expand_as(tensor)
    return torch.where(
        hidden.view(*hidden.shape, *[1] * (tensor.dim() - hidden.dim())).to(tensor.device), poison, tensor
    )


def _fused(arguments: Arguments, *names: str) -> None:
    """Make these arguments slices of one tensor, as a fused projection gives them: [..., names, H, D]."""
    whole = torch.stack([arguments[name] for name in names], -3)
    arguments.update(zip(names, whole.unbind(-3)))


def _misaligned(arguments: Arguments, *names: str) -> None:
    """Misalign these arguments: an offset of one element, and rows that are not a multiple of 16 bytes apart."""
    for name in names:
        tensor = arguments[name]
        room = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] + 3)
        room[..., 1:-2] = tensor
        arguments[name] = room[..., 1:-2]


def _headed(arguments: Arguments, *names: str) -> None:
    """Make the head dimension of these arguments the outermost one in memory."""
    for name in names:
        arguments[name] = arguments[name].transpose(0, -2).contiguous().transpose(0, -2)


# A chunk has 128 keys; in float32 64 at head dim 32 and 32 at 64. From three chunks on programs share them, unless
# there are 264 programs (rows or sources, times heads).


def _counters(arguments: Arguments) -> None:
    """More counters than are needed; the kernel must leave them at zero."""
    arguments["arrivals"] = torch.zeros(50, dtype=torch.int32, device=arguments["q"].device)


LAST_NUMBER = 2**31 - 1  # no slot, where a table has none


def _pools(
    arguments: Arguments, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, device: torch.device
) -> None:
    """Keys and values, poisoned where no row of the table that counts leads to."""
    table, lengths = arguments["table"], arguments["lengths"].clamp(0, arguments["table"].shape[1])
    counts = torch.arange(table.shape[1]) < lengths[:, None]
    hidden = torch.ones(shape[0], dtype=torch.bool).index_fill(0, table[counts].long(), False)
    arguments["table"] = table.where(counts, LAST_NUMBER).to(device)
    arguments["lengths"] = arguments["lengths"].to(device)
    for name in ("key_pool", "value_pool"):
        pool = torch.randn(shape, generator=generator).to(dtype).to(device)
        arguments[name] = _poison(pool, hidden)


# Self-attention


def _row_case(
    name: str,
    lengths: Sequence[int],
    heads: int,
    width: int,
    *,
    capacity: int | None = None,
    scratch: Sequence[int] = (),
    core: bool = False,
    change: Callable[[Arguments], None] | None = None,
    written: tuple[str, ...] = ("key_pool", "value_pool"),
) -> Case:
    """Rows of these lengths after some beam reorders; the table has `capacity` columns, by default the longest length.

    Args:
        scratch: rows that write to one slot, all the same values, since the result may be any of them.
    """

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        rows, columns = len(lengths), max((*lengths, 0)) if capacity is None else capacity
        generator = torch.Generator().manual_seed(rows * 1000 + heads * 100 + width + sum(lengths))
        slots = rows * (columns + 1) + 7
        # The last of a row's own slots is the one that it writes; it is poisoned until then.
        own = torch.randperm(slots, generator=generator)[: slots - 7].view(rows, columns + 1).int()
        for row in scratch:
            own[row, -1] = own[scratch[0], -1]
        table = own[:, :-1].clone()
        for t in range(1, columns, 1 + columns // 4) if rows else ():
            parents = torch.randint(rows, (rows,), generator=generator)
            table[:, :t] = table[parents][:, :t]

        arguments = {
            name: torch.randn(rows, heads, width, generator=generator).to(dtype).to(device) for name in ("q", "k", "v")
        }
        for row in scratch:
            arguments["k"][row], arguments["v"][row] = arguments["k"][scratch[0]], arguments["v"][scratch[0]]
        arguments["slots"] = own.to(device)[:, -1]  # a strided column, as in the cache
        arguments |= {"table": table, "lengths": torch.tensor(lengths, dtype=torch.int32)}
        _pools(arguments, (slots, heads, width), generator, dtype, device)
        if change:
            change(arguments)
        return arguments

    return Case(name, make, core=core, written=written)


def _one_history(arguments: Arguments) -> None:
    """All rows share the history of the first."""
    table = arguments["table"]
    for name in ("key_pool", "value_pool"):
        pool = arguments[name]
        pool[table[1:].flatten()] = float("nan")
        pool[table[0]] = torch.linspace(-1, 1, pool[0].numel()).view_as(pool[0]).to(pool)
    table[1:] = table[0]


def _sharp(arguments: Arguments) -> None:
    """Ascending scores up to some hundreds: the largest comes last."""
    slots, q = arguments["table"], arguments["q"]
    scale = torch.linspace(1, 30, slots.shape[1]).to(q)
    arguments["key_pool"][slots.flatten()] = (q[: len(slots), None] * scale[:, None, None]).flatten(0, 1)


def _wide_table(arguments: Arguments) -> None:
    """The table as a slice of a larger one; the lengths as a slice of a longer tensor."""
    table, lengths = arguments["table"], arguments["lengths"]
    arguments["table"] = F.pad(table, (5, 3, 1, 1), value=LAST_NUMBER)[1:-1, 5:-3]
    arguments["lengths"] = F.pad(lengths, (1, 1), value=LAST_NUMBER)[1:-1]


CASES = (
    _row_case("first token", [0] * 3, 2, 16, core=True),
    _row_case("first token of a table", [0] * 2, 1, 16, capacity=7, core=True),
    _row_case("beams share slots", [9] * 4, 2, 16, core=True),
    _row_case("lengths", [9, 0, 12, 1, 5], 2, 16, core=True),
    _row_case("lengths around a chunk", [127, 128, 0, 129, 200], 1, 24, core=True),
    _row_case("lengths, shared chunks", [300, 0, 1, 256, 257, 128, 129, 320], 1, 16, capacity=320, core=True),
    _row_case("lengths, one program a row", [260 * (i % 3 == 0) + i % 7 for i in range(264)], 1, 16),
    _row_case("lengths out of range", [-3, 5, 11, LAST_NUMBER, -LAST_NUMBER - 1], 1, 16, capacity=10, core=True),
    _row_case("lengths out of range, shared chunks", [-3, 5, 999, LAST_NUMBER], 1, 16, capacity=300),
    _row_case("finished rows share a slot", [9, 0, 12, 0, 12, 0], 2, 16, scratch=(1, 3, 5), core=True),
    _row_case("two chunks, head 24", [200] * 2, 2, 24, core=True),
    _row_case("shared chunks, head 24", [300] * 3, 2, 24, core=True),
    _row_case(
        "shared chunks, counters given",
        [290, 17, 130],
        2,
        16,
        core=True,
        change=_counters,
        written=("key_pool", "value_pool", "arrivals"),
    ),
    _row_case("grid longer than the history", [5] * 2, 1, 16, capacity=400, core=True),
    _row_case("grid longer than the history, two chunks", [140] * 2, 1, 16, capacity=600),
    _row_case("first token of a long table", [0] * 2, 1, 16, capacity=300),
    _row_case("three chunks, many rows", [260] * 264, 1, 16, change=_sharp),
    *(_row_case(f"{t} positions", [t] * 2, 1, 16) for t in (1, 2, 127, 128, 129, 256, 257, 384, 385, 641)),
    *(_row_case(f"head {d}", [33, 20], 2, d) for d in (8, 17, 31, 32, 48, 64, 80, 96, 100, 127, 128)),
    _row_case("head 128, shared chunks", [130], 1, 128),
    _row_case("head 64, shared chunks", [257], 1, 64),
    _row_case("int64 slots", [40] * 3, 2, 16, change=lambda a: a.update(slots=a["slots"].long())),
    _row_case("one history", [300] * 5, 1, 16, change=_one_history),
    _row_case("sharp scores", [300] * 2, 1, 16, change=_sharp),
    _row_case("sharp scores, two chunks", [200] * 2, 1, 16, change=_sharp),
    _row_case("fused projection", [9, 4, 0], 2, 16, core=True, change=lambda a: _fused(a, "q", "k", "v")),
    _row_case("pools in one", [9] * 3, 2, 16, change=lambda a: _fused(a, "key_pool", "value_pool")),
    _row_case("misaligned", [140] * 3, 2, 16, change=lambda a: _misaligned(a, "q", "k", "v", "key_pool", "value_pool")),
    _row_case("heads outermost", [9] * 3, 2, 16, change=lambda a: _headed(a, "q", "k", "v", "key_pool", "value_pool")),
    _row_case("wide table", [9, 300, 2], 2, 16, change=_wide_table),
    _row_case("no rows", [], 2, 16, capacity=3),
)


# Cross-attention


def _cross_case(
    name: str,
    rows: Sequence[int],
    lengths: Sequence[int],
    heads: int,
    width: int,
    *,
    capacity: int | None = None,
    most: int | None = None,
    extra: int = 0,
    shuffled: bool = True,
    core: bool = False,
    change: Callable[[Arguments], None] | None = None,
    written: tuple[str, ...] = (),
) -> Case:
    """Sources with these numbers of rows and keys, then `extra` rows without a source; max_rows is `most`."""

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        columns = max((*lengths, 0)) if capacity is None else capacity
        generator = torch.Generator().manual_seed(sum(rows) * 1000 + heads * 100 + width + sum(lengths))
        cu_rows = torch.tensor([0, *rows]).cumsum(0)
        slots = len(lengths) * columns + 7
        order = torch.randperm(slots, generator=generator) if shuffled else torch.arange(slots)
        arguments = {
            "q": torch.randn(sum(rows) + extra, heads, width, generator=generator).to(dtype).to(device),
            "table": order[: slots - 7].view(len(lengths), columns).int(),
            "lengths": torch.tensor(lengths, dtype=torch.int32),
            "cu_rows": cu_rows.int().to(device),
            "max_rows": max((*rows, 0)) if most is None else most,
        }
        _pools(arguments, (slots, heads, width), generator, dtype, device)
        if change:
            change(arguments)
        return arguments

    return Case(name, make, core=core, written=written)


def _one_source(arguments: Arguments) -> None:
    """All sources are the first."""
    arguments["table"][:] = arguments["table"][0]


FLOATS = ("q", "key_pool", "value_pool")
MIXED = [4, 0, 1, 33, 17, 4, 0], [20, 9, 0, 5, 40, 1, 0]

CROSS_CASES = (
    _cross_case("a source without keys", [4] * 3, [9, 4, 0], 2, 16, core=True),
    _cross_case("equal sources", [3] * 2, [9] * 2, 2, 16, core=True),
    _cross_case("slots in order", [3] * 2, [9] * 2, 2, 16, shuffled=False),
    _cross_case("only empty sources", [3] * 2, [0] * 2, 2, 16, core=True),
    _cross_case("only empty sources of a table", [3] * 2, [0] * 2, 2, 16, capacity=300),
    _cross_case("mixed", *MIXED, 2, 16, core=True),
    _cross_case("mixed, shared chunks", [4, 0, 1, 33, 17], [300, 9, 257, 128, 0], 1, 16, core=True),
    _cross_case("mixed, one program a source", [i % 4 for i in range(264)], [37 * (i % 9) for i in range(264)], 1, 16),
    _cross_case("mixed, many rows expected", *MIXED, 1, 16, most=70),
    _cross_case("rows after the last source", [2, 3], [9, 4], 2, 24, extra=5, core=True),
    _cross_case("rows after the last source, shared chunks", [2, 0, 17], [300, 4, 129], 2, 16, extra=4, core=True),
    _cross_case("rows after, sources without", [0, 0], [9, 4], 2, 16, extra=3, most=4),
    _cross_case("rows, but no sources", [], [], 2, 16, extra=3, most=4, core=True),
    _cross_case("lengths out of range", [2] * 4, [-3, 5, 11, LAST_NUMBER], 1, 16, capacity=10, core=True),
    _cross_case("lengths out of range, shared chunks", [2] * 3, [-3, 5, LAST_NUMBER], 1, 16, capacity=300),
    _cross_case("two chunks, head 24", [3] * 2, [200, 131], 2, 24, core=True),
    _cross_case("shared chunks, head 24", [3] * 2, [300, 150], 2, 24, core=True),
    _cross_case("three chunks, many sources", [2] * 264, [260 - i % 100 for i in range(264)], 1, 16),
    _cross_case(
        "shared chunks, counters given", [17] * 2, [290, 100], 2, 16, core=True, change=_counters, written=("arrivals",)
    ),
    _cross_case("one key", [4] * 2, [1] * 2, 1, 16, capacity=140),
    _cross_case("one key, shared chunks", [4] * 2, [1, 258], 1, 16, capacity=290, core=True),
    _cross_case("nothing seen, shared chunks", [4], [0], 1, 16, capacity=300),
    *(_cross_case(f"{w} rows", [w] * 2, [20, 11], 2, 16, core=w == 17) for w in (1, 2, 3, 5, 15, 16, 17, 32)),
    *(_cross_case(f"{w} rows in tiles", [w] * 2, [20, 11], 2, 16) for w in (33, 65)),
    *(_cross_case(f"{w} rows in tiles, shared chunks", [w] * 2, [260, 130], 1, 16) for w in (33, 65)),
    *(
        _cross_case(f"{s} keys", [4] * 2, [s] * 2, 1, 16)
        for s in (1, 2, 15, 16, 17, 127, 128, 129, 256, 257, 384, 385, 641)
    ),
    *(_cross_case(f"head {d}", [4] * 2, [33, 20], 2, d) for d in (8, 17, 31, 32, 48, 64, 80, 96, 100, 127, 128)),
    _cross_case("head 64, shared chunks", [4], [257], 1, 64),
    _cross_case("head 128, shared chunks", [4], [130], 1, 128),
    _cross_case("two requests, one source", [4, 3], [20] * 2, 2, 16, change=_one_source),
    _cross_case("fused projection", *MIXED, 2, 16, change=lambda a: _fused(a, *FLOATS[1:]), core=True),
    _cross_case("misaligned", [4, 3], [140, 9], 2, 16, change=lambda a: _misaligned(a, *FLOATS)),
    _cross_case("heads outermost", [4, 3], [20, 9], 2, 16, change=lambda a: _headed(a, *FLOATS)),
    _cross_case("wide table", [4, 3, 1], [20, 300, 7], 2, 16, change=_wide_table),
    _cross_case("sharp scores", [1] * 2, [300] * 2, 1, 16, change=_sharp),
    _cross_case("no rows", [0] * 2, [3] * 2, 2, 16),
    _cross_case("no rows of a tile", [0] * 2, [3] * 2, 2, 16, most=4),
)


def _variant(
    name: str, kernel: Any, launch: tuning.Launch, dtype: str, width: int, strides: list[str], *, cross: bool
) -> Variant:
    """One of the two kernels as its launcher calls it on contiguous tensors of `dtype`."""
    tiles = dict(launch.tiles)
    split = tiles.pop("CHUNKS") > 1
    pointers = ["q_ptr", "key_pool_ptr", "value_pool_ptr", "out_ptr"] + ([] if cross else ["k_ptr", "v_ptr"])
    integers = ["table_ptr", "lengths_ptr", "cu_rows_ptr" if cross else "slots_ptr"]
    unaligned = ("capacity", "stride_table", *(("rows", "sources") if cross else ("stride_slots",)))
    signature = {name: f"*{dtype}" for name in pointers} | {name: "*i32" for name in integers}
    signature |= {name: "i32" for name in (*unaligned, "heads", *strides)} | {"scale": "fp32"}
    constants = tiles | {"HEAD_DIM": width, "BLOCK_D": max(16, tuning.power_of_2(width)), "SPLIT": split}
    workspace = {"stats_ptr": "*fp32", "acc_ptr": "*fp32", "counters_ptr": "*i32"}
    if split:
        signature |= workspace
    else:
        constants |= dict.fromkeys(workspace)
    if not cross:
        constants["STAGES"] = launch.num_stages
    return Variant(
        name,
        kernel,
        signature,
        constants,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        unaligned=unaligned,
        present={arch: ("LDGSTS.128", "HMMA")[: 1 + cross * (dtype != "fp32")] for arch in (80, 90, 100)},
        per=None if split else ("key", tiles["BLOCK_N"]),
    )


POOLS = [f"stride_{t}_{d}" for t in ("key", "value") for d in ("slot", "head")]


def _row_variant(name: str, rows: int, heads: int, width: int, dtype: str = "bf16") -> Variant:
    launch = tuning.decode_attention(90, rows * heads, 512, width, 4 if dtype == "fp32" else 2)
    strides = [f"stride_{t}_{d}" for t in "qkv" for d in ("row", "head")] + POOLS
    return _variant(name, _decode_attention_kernel, launch, dtype, width, strides, cross=False)


def _cross_variant(name: str, sources: int, beams: int, heads: int, width: int, dtype: str = "bf16") -> Variant:
    launch = tuning.cross_decode_attention(90, sources * heads, 512, beams, width, 4 if dtype == "fp32" else 2)
    strides = ["stride_q_row", "stride_q_head", *POOLS]
    return _variant(name, _cross_decode_attention_kernel, launch, dtype, width, strides, cross=True)


VARIANTS = (
    _row_variant("1 row, 16 heads of 64", 1, 16, 64),
    _row_variant("64 rows, 16 heads of 64", 64, 16, 64),
    _row_variant("64 rows, 16 heads of 64, float32", 64, 16, 64, "fp32"),
    _row_variant("1 row, 8 heads of 128", 1, 8, 128),
    _row_variant("64 rows, 8 heads of 128", 64, 8, 128),
)
CROSS_VARIANTS = (
    _cross_variant("1 source, 4 beams, 16 heads of 64", 1, 4, 16, 64),
    _cross_variant("1 source, 17 beams, 16 heads of 64", 1, 17, 16, 64),
    _cross_variant("64 sources, 4 beams, 16 heads of 64", 64, 4, 16, 64),
    _cross_variant("64 sources, 4 beams, 16 heads of 64, float32", 64, 4, 16, 64, "fp32"),
    _cross_variant("64 sources, 17 beams, 16 heads of 64", 64, 17, 16, 64),
    _cross_variant("64 sources, 4 beams, 8 heads of 128", 64, 4, 8, 128),
    _cross_variant("64 sources, 17 beams, 8 heads of 128", 64, 17, 8, 128),
)
CHECK = Check(decode_attention_reference, decode_attention_triton, CASES, VARIANTS)
CROSS_CHECK = Check(cross_decode_attention_reference, cross_decode_attention_triton, CROSS_CASES, CROSS_VARIANTS)
