"""Cases and compiled variants of attention."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch

from . import tuning
from .attention import (
    _attention_bwd_dkv_kernel,
    _attention_bwd_dq_kernel,
    _attention_fwd_kernel,
    attention_reference,
    attention_triton,
)
from .checks import Case, Check, Variant, arg_names

SEED = 20


def _case(
    name: str,
    queries: list[int],
    keys: list[int] | None = None,
    heads: int = 2,
    width: int = 16,
    *,
    layout: str = "contiguous",
    factor: float = 1.0,
    shift: float = 0.0,
    hidden: float | None = None,
    start: list[int] | None = None,
    seen: list[int] | None = None,
    gradients: bool = True,
    core: bool = False,
    **options: Any,
) -> Case:
    """A case of sequences with these numbers of queries and keys (None: as many as queries).

    Args:
        name, queries, keys, heads, width: the shape.
        layout: memory layout of q, k and v; see `_with_layout`.
        factor: scales the queries. shift: is added to queries and subtracted from keys, for very negative scores.
        hidden: value written into the keys and values that key_len hides.
        start, seen: q_start and key_len.
        gradients, core: as of `Case`.
        options: further arguments of the operator.
    """

    def make(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        lengths = queries if keys is None else keys
        q, k, v = (torch.randn(sum(n), heads, width, generator=generator) for n in (queries, lengths, lengths))
        q, k = q * factor + shift, k - shift
        cu_q, cu_k = (torch.tensor([0, *accumulate(n)], dtype=torch.int32) for n in (queries, lengths))
        arguments: dict[str, Any] = dict(options)
        if start is not None:
            arguments["q_start"] = torch.tensor(start, dtype=torch.int64).to(device)
        if seen is not None:
            arguments["key_len"] = torch.tensor(seen, dtype=torch.int32).to(device)
        if hidden is not None:
            k, v = (_hide(x, cu_k, torch.tensor(seen), hidden) for x in (k, v))
        q, k, v = (x.to(dtype).to(device) for x in (q, k, v))
        q, k, v = _with_layout(layout, q, k, v)
        arguments |= {"q": q, "k": k, "v": v, "cu_q": cu_q.to(device), "cu_k": cu_k.to(device)}
        return arguments | {"max_q": max(queries, default=0), "max_k": max(lengths, default=0)}

    return Case(name, make, ("q", "k", "v") if gradients else (), core)


def _hide(x: torch.Tensor, cu_seqlens: torch.Tensor, key_len: torch.Tensor, value: float) -> torch.Tensor:
    """x with `value` at the tokens that key_len hides."""
    position = torch.arange(x.shape[0], device=x.device)
    batch = torch.searchsorted(cu_seqlens[1:].contiguous(), position, right=True)
    return torch.where((position - cu_seqlens[batch] >= key_len[batch])[:, None, None], value, x)


def _with_layout(layout: str, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """The same tensors in another memory layout, with NaN in the gaps."""

    def copied(x: torch.Tensor, index: int) -> torch.Tensor:
        tokens, heads, width = x.shape
        if layout == "fused":  # one of three projections side by side
            storage = x.new_full((tokens, 3, heads, width), torch.nan)
            view = storage[:, index]
        elif layout == "head first":
            view = x.new_full((heads, tokens + 1, width + 8), torch.nan)[:, 1:, :width].transpose(0, 1)
        elif layout == "misaligned":
            view = x.new_full((tokens, heads, width + 1), torch.nan)[..., 1:]
        else:
            return x.contiguous()
        view.copy_(x)
        return view

    return [copied(x, index) for index, x in enumerate(tensors)]


def _philox(seed: int, counter: list[torch.Tensor]) -> torch.Tensor:
    """Philox4x32-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405): the four words of each counter, last."""
    low = 0xFFFFFFFF
    a, b, c, d = counter
    for i in range(10):
        left, right = (seed + i * 0x9E3779B9) & low, ((seed >> 32) + i * 0xBB67AE85) & low
        first, second = a * 0xD2511F53, c * 0xCD9E8D57  # may overflow: the low 64 bits are correct
        a, b, c, d = (second >> 32 & low) ^ b ^ left, second & low, (first >> 32 & low) ^ d ^ right, first & low
    return torch.stack((a, b, c, d), -1)


def _dropped_reference(q, k, v, cu_q, cu_k, max_q, max_k, *, causal=False, q_start=None, key_len=None, dropout=0.0):
    """Attention per sequence, with the documented dropout mask of the kernel."""
    seed = int(torch.randint(2**63 - 1, ()))
    heads, outputs = q.shape[1], []
    for batch in range(cu_q.numel() - 1):
        query = q[cu_q[batch] : cu_q[batch + 1]]
        key, value = (x[cu_k[batch] : cu_k[batch + 1]] for x in (k, v))
        i, j = torch.arange(len(query), device=q.device)[:, None], torch.arange(len(key), device=q.device)
        score = torch.einsum("ihd,jhd->hij", query, key).to(torch.promote_types(q.dtype, torch.float32))
        score = score * q.shape[2] ** -0.5
        if causal:
            score = score.masked_fill(j > i + (0 if q_start is None else q_start[batch]), -torch.inf)
        if key_len is not None:
            score = score.masked_fill(j >= key_len[batch], -torch.inf)
        empty = (score == -torch.inf).all(-1, keepdim=True)
        weight = score.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
        batch_head = batch * heads + torch.arange(heads, device=q.device)[:, None, None]
        counter = [n.expand(heads, len(query), len(key)) for n in (j // 4, i, batch_head, torch.zeros_like(batch_head))]
        word = _philox(seed, counter).gather(-1, (j % 4).expand(counter[0].shape)[..., None])[..., 0]
        signed = torch.where(word < 2**31, word, word - 2**32)
        weight = torch.where(signed >= round(dropout * 2**32) - 2**31, weight / (1 - dropout), 0.0)
        outputs.append(torch.einsum("hij,jhd->ihd", weight.to(q.dtype), value))
    return torch.cat(outputs)


def _reference(**arguments: Any) -> torch.Tensor:
    """The reference; with dropout, under the mask of the kernel."""
    if arguments.get("key_len") is not None:
        # Hidden values must not affect the result, but the reference multiplies them by 0, and 0 * NaN is NaN.
        arguments |= {x: _hide(arguments[x], arguments["cu_k"], arguments["key_len"], 0.0) for x in ("k", "v")}
    if not arguments.get("dropout"):
        return attention_reference(**arguments)
    torch.manual_seed(SEED)
    return _dropped_reference(**arguments)


def _triton(**arguments: Any) -> torch.Tensor:
    torch.manual_seed(SEED)
    return attention_triton(**arguments)


CASES = (
    # One tile of keys. Rows shorter than a tile of queries, as long as one, longer; none.
    _case("short rows", [5, 1, 0, 7], core=True),
    _case("tiles of queries", [63, 64, 65, 1], [3, 5, 1, 2], heads=1),
    _case("many heads", [3, 2], heads=5),
    _case("one tile, causal", [65, 4, 0, 13], causal=True, core=True),
    _case("one full tile of keys", [2, 3], [128, 127], heads=1),
    # More tiles of keys.
    _case("two tiles of keys", [2, 3, 1], [129, 5, 0], core=True),
    _case("tiles of keys", [1, 2, 3, 4], [255, 256, 257, 127], heads=1),
    _case("causal tiles", [193, 66], heads=1, causal=True, core=True),
    _case("causal tiles, edges", [128, 129, 127], heads=1, causal=True),
    _case("more queries than keys", [139, 5], [131, 2], heads=1, causal=True),
    _case("continued", [3, 66, 1], [150, 197, 140], heads=1, causal=True, start=[147, 131, 139], core=True),
    _case("last query, next tile", [64], [129], heads=1, causal=True, start=[65]),
    _case("start anywhere", [70, 5, 3, 3], [135, 9, 9, 4], heads=1, causal=True, start=[-3, -9, 2**40, -(2**40)]),
    # Hidden keys.
    _case("no key seen", [3, 4, 2], [5, 0, 7], seen=[0, 0, 2], hidden=torch.nan, core=True),
    _case("key lengths", [3, 4, 2, 1], [190, 140, 130, 7], heads=1, seen=[128, 0, 999, -1], hidden=torch.nan),
    _case("key lengths, causal", [139, 66], heads=1, causal=True, seen=[67, 64], hidden=torch.nan),
    _case("scores far below 0", [3], [5], width=64, seen=[4], hidden=0.0, shift=3.6),
    _case("scores far below 0, tiles", [5], [131], heads=1, width=64, shift=3.6),
    _case("scores far apart", [5, 7], [131, 9], factor=30.0, gradients=False),
    # Head dims: powers of two and others, down to 1 and to the limit.
    *(_case(f"head dim {d}", [5, 70], [9, 131], heads=1, width=d, core=d == 24) for d in (1, 24, 48, 64, 80, 96)),
    _case("head dim 128", [5, 70], [9, 131], heads=1, width=128),
    _case("head dim 20, causal", [5, 70], heads=3, width=20, causal=True),
    # Layouts.
    _case("fused projections", [5, 66], width=24, layout="fused", core=True),
    _case("head first", [5, 66], [9, 131], heads=2, layout="head first"),
    _case("misaligned", [5, 66], [9, 131], layout="misaligned"),
    # Nothing to do.
    _case("no rows", [], gradients=False),
    _case("no queries", [0, 0], [3, 4], gradients=False, core=True),
    _case("no keys", [3, 4], [0, 0], gradients=False, core=True),
    _case("no heads", [3, 4], heads=0, gradients=False),
    # Dropout, with a mask that the reference computes itself.
    _case("dropout", [5, 0, 67], [9, 3, 6], dropout=0.1, core=True),
    _case("dropout, causal tiles", [5, 131], heads=1, causal=True, dropout=0.5),
    _case("dropout, tiles", [3, 66], [131, 70], dropout=0.9, seen=[129, 0], hidden=torch.nan),
)


def _variant(name: str, kernel: Any, rule: str, written: tuple[str, ...], **options: Any) -> Variant:
    """A kernel as it is launched.

    Args:
        written: tensors of `dtype` besides q, k and v.
        options: constants; and `width`, `dtype`, `lengths` (whether there are q_start and key_len).
    """
    width, dtype = options.pop("width", 64), options.pop("dtype", "bf16")
    shape = (width, 4 if dtype == "fp32" else 2, options.get("DROPOUT", False))
    launch = tuning.RULES[rule](90, *shape)
    tensors = dict.fromkeys((f"{name}_ptr" for name in ("q", "k", "v", *written)), f"*{dtype}")
    sums = {name: "*fp32" for name in ("lse_ptr", "delta_ptr") if name in arg_names(kernel)}
    sequences = dict.fromkeys(("cu_seqlens_q_ptr", "cu_seqlens_k_ptr", "q_start_ptr", "key_len_ptr"), "*i32")
    strides = [name for name in arg_names(kernel) if name.startswith("stride_")]
    scalars = {"scale": "fp32", "dropout_scale": "fp32", "seed": "i64", "dropout_threshold": "i32"}
    constants = {
        **{"HEAD_DIM": width, "BLOCK_D": tuning.power_of_2(width), "CAUSAL": False, "DROPOUT": False},
        **({} if options.pop("lengths", False) else {"q_start_ptr": None, "key_len_ptr": None}),
        **launch.tiles,
        **options,
    }
    signature = tensors | sums | sequences | dict.fromkeys((*strides, "total_q", "heads", "tiles"), "i32") | scalars
    return Variant(
        name,
        kernel,
        {name: kind for name, kind in signature.items() if name not in constants},
        constants,
        launch.num_warps,
        launch.num_stages,
        unaligned=("total_q", "tiles", "seed", "dropout_threshold"),
        present={80: ("HMMA",), 90: ("HGMMA",), 100: ("UTCHMMA",)} if dtype != "fp32" else {},
        per=("score", launch.tiles["BLOCK_M"] * launch.tiles["BLOCK_N"]),
        launch=(rule, shape),
    )


def _forward(name: str, width: int = 64, dtype: str = "bf16", **options: Any) -> Variant:
    options = {"lse_ptr": None, "ONE_TILE": 0, "width": width, "dtype": dtype, **options}
    if options["lse_ptr"]:
        del options["lse_ptr"]
    return _variant(f"forward, {name}", _attention_fwd_kernel, "attention", ("out",), **options)


def _backward(name: str, width: int = 64, dtype: str = "bf16", **options: Any) -> tuple[Variant, Variant]:
    options |= {"width": width, "dtype": dtype}
    queries = (f"dq, {name}", _attention_bwd_dq_kernel, "attention_dq", ("dout", "out", "dq"))
    keys = (f"dkv, {name}", _attention_bwd_dkv_kernel, "attention_dkv", ("dout", "dk", "dv"))
    return _variant(*queries, **options), _variant(*keys, **options)


VARIANTS = (
    _forward("one tile", ONE_TILE=1),
    _forward("tiles"),
    _forward("causal", CAUSAL=True),
    _forward("causal, lengths", CAUSAL=True, lengths=True),
    _forward("training", lse_ptr=True, DROPOUT=True),
    _forward("training, causal", lse_ptr=True, CAUSAL=True, DROPOUT=True),
    _forward("head dim 80", width=80),
    _forward("head dim 80, causal", width=80, CAUSAL=True, lse_ptr=True),
    _forward("head dim 128", width=128, CAUSAL=True, lse_ptr=True),
    _forward("head dim 128, dropout", width=128, CAUSAL=True, lse_ptr=True, DROPOUT=True),
    _forward("float32", dtype="fp32", CAUSAL=True, lse_ptr=True, DROPOUT=True),
    _forward("float32, head dim 128", dtype="fp32", width=128, CAUSAL=True, lse_ptr=True, DROPOUT=True),
    *_backward("full"),
    *_backward("causal", CAUSAL=True),
    *_backward("causal, lengths", CAUSAL=True, lengths=True),
    *_backward("dropout", CAUSAL=True, DROPOUT=True),
    *_backward("head dim 80", width=80),
    *_backward("head dim 128", width=128, CAUSAL=True),
    *_backward("head dim 128, dropout", width=128, CAUSAL=True, DROPOUT=True),
    *_backward("float32", dtype="fp32", CAUSAL=True, DROPOUT=True),
    _backward("float32, head dim 128", dtype="fp32", width=128, CAUSAL=True)[1],  # dq spills 4 words there
)

CHECK = Check(_reference, _triton, CASES, VARIANTS)
