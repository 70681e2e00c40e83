"""Cases and variants of decode_attention and cross_decode_attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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
    """`tensor` with NaN and 65504 in turns where nobody may look."""
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
    """Make these arguments begin one element into memory that is no multiple of 16 bytes per row either."""
    for name in names:
        tensor = arguments[name]
        room = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] + 3)
        room[..., 1:-2] = tensor
        arguments[name] = room[..., 1:-2]


def _headed(arguments: Arguments, *names: str) -> None:
    """Put the heads of these arguments outermost in memory."""
    for name in names:
        arguments[name] = arguments[name].transpose(0, -2).contiguous().transpose(0, -2)


# A chunk has 128 keys; in float32 64 at head dim 32 and 32 at 64. From three chunks on programs share them, unless
# there are 264 programs (rows or sources, times heads).


def _counters(arguments: Arguments) -> None:
    """More counters than are needed; the kernel must leave them at zero."""
    arguments["arrivals"] = torch.zeros(50, dtype=torch.int32, device=arguments["q"].device)


# Self-attention


def _reference(*, arrivals: torch.Tensor | None = None, **arguments: Any) -> torch.Tensor:
    """The definition, which needs no counters."""
    return decode_attention_reference(**arguments)


def _row_case(
    name: str,
    rows: int,
    heads: int,
    width: int,
    length: int,
    *,
    capacity: int = 0,
    tabled: bool = True,
    core: bool = False,
    change: Callable[[Arguments], None] | None = None,
    written: tuple[str, ...] = ("key_pool", "value_pool"),
) -> Case:
    """Rows after some beam reorders, with room for `capacity` positions (0: two more than there are)."""

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        generator = torch.Generator().manual_seed(rows * 1000 + heads * 100 + width + length)
        room = capacity or length + 3
        spare = 7 if tabled else 0
        own = torch.arange(rows * room).view(rows, room)
        if tabled:
            own = torch.randperm(rows * room + spare, generator=generator)[: rows * room].view(rows, room)
        table = own.clone()
        for t in range(1, length + 1, 1 + length // 4) if tabled and rows else ():
            parents = torch.randint(rows, (rows,), generator=generator)
            table[:, :t] = table[parents][:, :t]
        hidden = torch.ones(rows * room + spare, dtype=torch.bool)
        hidden[table[:, :length].flatten()] = False  # the new position's own slot is poisoned too, until it is written
        table[:, length + 1 :] = 2147480000

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype).to(device)

        arguments = {name: normal(rows, heads, width) for name in ("q", "k", "v")}
        for name in ("key_pool", "value_pool"):
            arguments[name] = _poison(normal(rows * room + spare, heads, width), hidden)
        arguments["slots"] = own.to(device)[:, length]  # a column of a table, as a cache has it
        arguments["table"] = table.to(device) if tabled else None
        arguments["length"] = length
        if change:
            change(arguments)
        return arguments

    return Case(name, make, core=core, written=written)


def _short_table(arguments: Arguments) -> None:
    arguments["table"] = arguments["table"].int()


def _one_history(arguments: Arguments) -> None:
    """Every row descends from the first, the new position apart."""
    table, length = arguments["table"], arguments["length"]
    pools = [arguments[name] for name in ("key_pool", "value_pool")]
    for pool in pools:
        pool[table[1:, :length].flatten()] = float("nan")
    table[1:, :length] = table[0, :length]
    for pool in pools:
        pool[table[0, :length]] = torch.linspace(-1, 1, pool[0].numel()).view_as(pool[0]).to(pool)


def _sharp(arguments: Arguments) -> None:
    """Scores of some hundreds, rising: the largest comes last."""
    slots = arguments["table"][:, : arguments["length"]]
    scale = torch.linspace(1, 30, slots.shape[1]).to(arguments["q"])
    arguments["key_pool"][slots.flatten()] = (arguments["q"][:, None] * scale[:, None, None]).flatten(0, 1)


CASES = (
    _row_case("first token", 3, 2, 16, 0, core=True),
    _row_case("only one position", 2, 1, 16, 0, capacity=1, core=True),
    _row_case("beams share slots", 4, 2, 16, 9, core=True),
    _row_case("no table", 3, 2, 16, 9, tabled=False, core=True),
    _row_case("two chunks, head 24", 2, 2, 24, 200, core=True),
    _row_case("two chunks, no table", 2, 1, 16, 130, tabled=False),
    _row_case("shared chunks, head 24", 3, 2, 24, 300, core=True),
    _row_case("shared chunks, no table", 2, 1, 16, 290, tabled=False, core=True),
    _row_case(
        "shared chunks, counters given",
        3,
        2,
        16,
        290,
        core=True,
        change=_counters,
        written=("key_pool", "value_pool", "arrivals"),
    ),
    _row_case("grid longer than the history", 2, 1, 16, 5, capacity=400, core=True),
    _row_case("grid longer than the history, two chunks", 2, 1, 16, 140, capacity=600),
    _row_case("first token of a long table", 2, 1, 16, 0, capacity=300),
    _row_case("three chunks, many rows", 264, 1, 16, 260, change=_sharp),
    *(_row_case(f"{t} positions", 2, 1, 16, t) for t in (1, 2, 127, 128, 129, 256, 257, 384, 385, 641)),
    *(_row_case(f"head {d}", 2, 2, d, 33) for d in (8, 17, 31, 32, 48, 64, 80, 96, 100, 127, 128)),
    _row_case("head 128, shared chunks", 1, 1, 128, 130),
    _row_case("head 64, shared chunks", 1, 1, 64, 257),
    _row_case("head 80, no table", 2, 1, 80, 100, tabled=False),
    _row_case("int32 table", 3, 2, 16, 40, change=_short_table),
    _row_case("one history", 5, 1, 16, 300, change=_one_history),
    _row_case("sharp scores", 2, 1, 16, 300, change=_sharp),
    _row_case("sharp scores, two chunks", 2, 1, 16, 200, change=_sharp),
    _row_case("fused projection", 3, 2, 16, 9, core=True, change=lambda a: _fused(a, "q", "k", "v")),
    _row_case("pools in one", 3, 2, 16, 9, change=lambda a: _fused(a, "key_pool", "value_pool")),
    _row_case("misaligned", 3, 2, 16, 140, change=lambda a: _misaligned(a, "q", "k", "v", "key_pool", "value_pool")),
    _row_case("heads outermost", 3, 2, 16, 9, change=lambda a: _headed(a, "q", "k", "v", "key_pool", "value_pool")),
    _row_case("wide table", 3, 2, 16, 9, change=lambda a: a.update(table=a["table"].repeat(1, 3)[:, :12])),
    _row_case("no rows", 0, 2, 16, 3),
)


# Cross-attention


def _blind_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_mask: torch.Tensor | None = None,
    arrivals: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition, where hidden keys and values may be NaN."""
    if key_mask is not None:
        k, v = (torch.where(key_mask[..., None, None], t, 0.0) for t in (k, v))
    return cross_decode_attention_reference(q, k, v, key_mask)


def _cross_case(
    name: str,
    sources: int,
    beams: int,
    heads: int,
    width: int,
    length: int,
    mask: str | None = "random",
    *,
    core: bool = False,
    change: Callable[[Arguments], None] | None = None,
    written: tuple[str, ...] = (),
) -> Case:
    """Sources of which a mask shows some keys; the last one has none at all where it is "random"."""

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        generator = torch.Generator().manual_seed(sources * 1000 + beams * 100 + width + length)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype).to(device)

        arguments = {"q": normal(sources * beams, heads, width)}
        arguments |= {name: normal(sources, length, heads, width) for name in ("k", "v")}
        arguments["key_mask"] = None
        if mask:
            seen = torch.rand(sources, length, generator=generator) < 0.6
            if mask == "random":
                seen[-1] = False
            elif mask == "last":
                seen[:], seen[:, -1] = False, True
            elif mask == "prefix":
                seen = torch.arange(length) < torch.randint(1, length + 1, (sources, 1), generator=generator)
            for name in ("k", "v"):
                arguments[name] = _poison(arguments[name].flatten(0, 1), ~seen.flatten()).view_as(arguments[name])
            arguments["key_mask"] = seen.to(device)
        if change:
            change(arguments)
        return arguments

    return Case(name, make, core=core, written=written)


def _wide_mask(arguments: Arguments) -> None:
    mask = arguments["key_mask"]
    arguments["key_mask"] = torch.cat((~mask, mask, ~mask), 1)[:, mask.shape[1] : 2 * mask.shape[1]]


def _positions_first(arguments: Arguments) -> None:
    for name in ("k", "v"):
        arguments[name] = arguments[name].transpose(0, 1).contiguous().transpose(0, 1)


CROSS_CASES = (
    _cross_case("a source without keys", 3, 4, 2, 16, 9, core=True),
    _cross_case("no mask", 2, 3, 2, 16, 9, None, core=True),
    _cross_case("empty sources", 2, 3, 2, 16, 0, None, core=True),
    _cross_case("two chunks, head 24", 2, 3, 2, 24, 200, core=True),
    _cross_case("two chunks, no mask", 2, 1, 1, 16, 130, None),
    _cross_case("shared chunks, head 24", 2, 3, 2, 24, 300, core=True),
    _cross_case("shared chunks, no mask", 2, 1, 1, 16, 290, None, core=True),
    _cross_case("three chunks, many sources", 264, 2, 1, 16, 260, "prefix"),
    _cross_case("shared chunks, counters given", 2, 17, 2, 16, 290, core=True, change=_counters, written=("arrivals",)),
    _cross_case("only the last key", 2, 4, 1, 16, 140, "last", core=True),
    _cross_case("only the last key, shared chunks", 2, 4, 1, 16, 290, "last", core=True),
    _cross_case("sources end early", 3, 4, 1, 16, 200, "prefix"),
    _cross_case("sources end early, shared chunks", 3, 4, 1, 16, 270, "prefix"),
    _cross_case("nothing seen, shared chunks", 1, 4, 1, 16, 300),
    *(_cross_case(f"{w} rows", 2, w, 2, 16, 20, core=w == 17) for w in (1, 2, 3, 5, 15, 16, 17, 32)),
    *(_cross_case(f"{w} rows in tiles", 2, w, 2, 16, 20) for w in (33, 65)),
    *(_cross_case(f"{w} rows in tiles, shared chunks", 2, w, 1, 16, 260) for w in (33, 65)),
    *(
        _cross_case(f"{s} keys", 2, 4, 1, 16, s, None)
        for s in (1, 2, 15, 16, 17, 127, 128, 129, 256, 257, 384, 385, 641)
    ),
    *(_cross_case(f"head {d}", 2, 4, 2, d, 33) for d in (8, 17, 31, 32, 48, 64, 80, 96, 100, 127, 128)),
    _cross_case("head 64, shared chunks", 1, 4, 1, 64, 257, "prefix"),
    _cross_case("head 128, shared chunks", 1, 4, 1, 128, 130, "prefix"),
    _cross_case("fused projection", 2, 4, 2, 16, 20, change=lambda a: _fused(a, "k", "v"), core=True),
    _cross_case("misaligned", 2, 4, 2, 16, 140, change=lambda a: _misaligned(a, "q", "k", "v")),
    _cross_case("heads outermost", 2, 4, 2, 16, 20, change=lambda a: _headed(a, "q")),
    _cross_case("positions outermost", 2, 4, 2, 16, 20, change=_positions_first),
    _cross_case("mask of a wider batch", 2, 4, 2, 16, 20, change=_wide_mask),
    _cross_case("sharp scores", 2, 4, 1, 16, 300, None, change=lambda a: a.update(k=a["k"] * 100)),
    _cross_case("no rows", 2, 0, 2, 16, 3, None),
)


def _variant(
    name: str,
    kernel: Any,
    launch: tuning.Launch,
    kind: str,
    width: int,
    strides: list[str],
    optional: dict[str, str | None],
    *,
    cross: bool,
) -> Variant:
    """One of the two kernels as its launcher calls it on contiguous tensors of the type `kind`."""
    tiles = dict(launch.tiles)
    split = tiles.pop("CHUNKS") > 1
    pointers = ["q", "k", "v", "out"] + ([] if cross else ["key_pool", "value_pool"])
    shared = {"sums": "*fp32", "mixes": "*fp32", "arrivals": "*i32"}
    optional = optional | {name: kind if split else None for name, kind in shared.items()}
    unaligned = ("length", "W", "mask_source") if cross else ("length", "base", "slots_row")
    signature = {name: f"*{kind}" for name in pointers} | ({} if cross else {"slots": "*i64"})
    signature |= {name: "i32" for name in (*unaligned, "heads", *strides)} | {"scale": "fp32"}
    signature |= {name: kind for name, kind in optional.items() if kind}
    constants = {name: None for name, kind in optional.items() if not kind}
    constants |= tiles | {"D": width, "BLOCK_D": max(16, tuning.power_of_2(width)), "SPLIT": split}
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
        present={arch: ("LDGSTS.128", "HMMA")[: 1 + cross * (kind != "fp32")] for arch in (80, 90, 100)},
        per=None if split else ("key", tiles["BLOCK"]),
    )


def _row_variant(name: str, rows: int, heads: int, width: int, table: str | None, kind: str = "bf16") -> Variant:
    launch = tuning.decode_attention(90, rows * heads, 512, width, 4 if kind == "fp32" else 2)
    strides = [f"{t}_{d}" for t in "qkv" for d in ("row", "head")]
    strides += [f"{t}_{d}" for t in ("keys", "values") for d in ("slot", "head")]
    optional = {"table": table and f"*{table}"}
    return _variant(name, _decode_attention_kernel, launch, kind, width, strides, optional, cross=False)


def _cross_variant(
    name: str, sources: int, beams: int, heads: int, width: int, masked: bool, kind: str = "bf16"
) -> Variant:
    launch = tuning.cross_decode_attention(90, sources * heads, 512, beams, width, 4 if kind == "fp32" else 2)
    strides = ["q_row", "q_head"] + [f"{t}_{d}" for t in "kv" for d in ("source", "position", "head")]
    optional = {"key_mask": "*u8" if masked else None}
    return _variant(name, _cross_decode_attention_kernel, launch, kind, width, strides, optional, cross=True)


VARIANTS = (
    _row_variant("1 row, 16 heads of 64", 1, 16, 64, "i64"),
    _row_variant("64 rows, 16 heads of 64", 64, 16, 64, "i64"),
    _row_variant("64 rows, 16 heads of 64, int32 table", 64, 16, 64, "i32"),
    _row_variant("64 rows, 16 heads of 64, no table", 64, 16, 64, None),
    _row_variant("64 rows, 16 heads of 64, float32", 64, 16, 64, "i64", "fp32"),
    _row_variant("1 row, 8 heads of 128", 1, 8, 128, "i64"),
    _row_variant("64 rows, 8 heads of 128", 64, 8, 128, "i64"),
)
CROSS_VARIANTS = (
    _cross_variant("1 source, 4 beams, 16 heads of 64", 1, 4, 16, 64, False),
    _cross_variant("1 source, 4 beams, 16 heads of 64, mask", 1, 4, 16, 64, True),
    _cross_variant("64 sources, 4 beams, 16 heads of 64", 64, 4, 16, 64, False),
    _cross_variant("64 sources, 4 beams, 16 heads of 64, mask", 64, 4, 16, 64, True),
    _cross_variant("64 sources, 4 beams, 16 heads of 64, float32", 64, 4, 16, 64, False, "fp32"),
    _cross_variant("64 sources, 17 beams, 16 heads of 64, mask", 64, 17, 16, 64, True),
    _cross_variant("1 source, 17 beams, 16 heads of 64, mask", 1, 17, 16, 64, True),
    _cross_variant("64 sources, 4 beams, 8 heads of 128", 64, 4, 8, 128, False),
    _cross_variant("64 sources, 17 beams, 8 heads of 128, mask", 64, 17, 8, 128, True),
)
CHECK = Check(_reference, decode_attention_triton, CASES, VARIANTS)
CROSS_CHECK = Check(_blind_reference, cross_decode_attention_triton, CROSS_CASES, CROSS_VARIANTS)
