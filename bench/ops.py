"""Each operator at the sizes that matter, beside eager torch, torch.compile and torch's own kernels.

    python bench/ops.py [--op NAME] [--device cuda|cpu] [--size full|smoke] [--seconds 0.2] [--json FILE] [--tune]

Prints, for each contender: the median and the quartiles of its time, bytes or FLOPs per second, what part of the
machine's measured limit that is, and how much faster than eager it is. Every answer is compared with float64 before it
is timed; one that is not accepted is not timed. Contenders take turns; on a GPU the L2 cache is flushed before each
call and device events take the time. `full` sizes are those of 24 layers of hidden size 1024 and a vocabulary of
50,358. On a GPU other people's kernels (peers.py) run too, where they are installed. Exits with 1 where an answer of
bertgen's is not accepted. --tune looks for faster launches first, uses them, and writes them to kernels/tuned.py.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers
import torch
import torch.nn.functional as F
import tune
from bertgen.kernels.attention import attention_reference
from bertgen.kernels.checks import as_float64, difference
from bertgen.kernels.decode_attention import cross_decode_attention_reference, decode_attention_reference
from bertgen.kernels.int4_matmul import int4_matmul_reference
from bertgen.kernels.layernorm_gelu import add_layer_norm_reference, bias_gelu_reference
from bertgen.kernels.linear_gelu import linear_gelu_reference
from bertgen.kernels.top_log_probs import top_log_probs_reference

from bertgen import __version__, ops
from bertgen.kernels import tuning
from bertgen.quantization import quantize

TUNED = Path(__file__).parents[1] / "kernels" / "tuned.py"
Call = Callable[..., torch.Tensor]


@dataclass
class Contender:
    """A call without arguments, on tensors as its caller would hold them; `view` makes its answer the operator's."""

    call: Callable[[], torch.Tensor]
    view: Callable[[torch.Tensor], torch.Tensor] = lambda answer: answer
    judged: bool = True


@dataclass
class Row:
    """One operator at one size.

    Attributes:
        arguments: of the operator, by name.
        reference: its definition; run in float64 it is the truth.
        contenders: "eager" is what a model without bertgen would run.
        amount: bytes that must move, or FLOPs that must be done, whichever takes longer on the limit below.
        unit: "B" or "FLOP".
        peers: what makes the calls of other packages, on a GPU.
    """

    op: str
    size: str
    arguments: dict[str, Any]
    reference: Call
    contenders: dict[str, Contender]
    amount: float
    unit: str
    peers: dict[str, Callable[[], Callable[[], torch.Tensor]]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)


def attention_rows(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Row]:
    heads, width = (2, 16) if smoke else (16, 64)
    sizes = [(2, 16)] if smoke else [(128, 128), (64, 256), (32, 512)]
    for batch, length in sizes:
        for fill, causal in ((1.0, False), (0.6, False), (1.0, True)):
            torch.manual_seed(0)
            lengths = torch.full((batch,), length)
            if fill < 1:
                lengths = (torch.rand(batch) * 2 * (1 - fill) + 2 * fill - 1).mul(length).long().clamp(1, length)
            cu = torch.cat((torch.zeros(1), lengths.cumsum(0))).int().to(device)
            q, k, v = (torch.randn(int(lengths.sum()), heads, width, device=device, dtype=dtype) for _ in range(3))
            longest = int(lengths.max())
            inside = (torch.arange(longest) < lengths[:, None]).to(device)

            index = inside.flatten().nonzero()[:, 0]
            dense = [
                q.new_zeros(batch * longest, heads, width).index_copy(0, index, t).view(batch, longest, heads, width)
                for t in (q, k, v)
            ]
            arguments = dict(
                q=q, k=k, v=v, cu_q=cu, cu_k=cu, max_q=longest, max_k=longest, causal=causal,
            )  # fmt: skip
            contenders = {"bertgen": Contender(lambda a=arguments: ops.attention(**a))}
            mask = None if fill == 1 else inside[:, None, None]
            for name, call in _sdpas(dense, mask, causal, device).items():
                contenders[name] = Contender(call, lambda out, inside=inside: out.transpose(1, 2)[inside])
            yield Row(
                "attention",
                f"B{batch} S{length} H{heads} D{width}" + (" fill 0.6" if fill < 1 else "") + " causal" * causal,
                arguments,
                attention_reference,
                contenders,
                float(4 * heads * width * (lengths.double() ** 2).sum()) / (1 + causal),
                "FLOP",
                {"varlen_attn": lambda a=arguments: peers.varlen_attention(a)},
            )


def _sdpas(
    dense: list[torch.Tensor], mask: torch.Tensor | None, causal: bool, device: torch.device
) -> dict[str, Callable[[], torch.Tensor]]:
    """torch's attention over a padded batch [B, S, H, D]: as it chooses, compiled, and by each of its backends."""
    q, k, v = (t.transpose(1, 2) for t in dense)

    def attend() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)

    calls = {"eager": attend}
    if device.type == "cuda":
        from torch.nn.attention import SDPBackend, sdpa_kernel

        calls["compiled"] = torch.compile(attend, dynamic=False)
        backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
        for backend in backends + [SDPBackend.FLASH_ATTENTION] * (mask is None):

            def forced(backend=backend) -> torch.Tensor:
                with sdpa_kernel(backend):
                    return attend()

            calls[backend.name.split("_")[0].lower()] = forced
    return calls


def decode_rows(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Row]:
    heads, width = (2, 16) if smoke else (16, 64)
    item = torch.finfo(dtype).bits // 8
    for rows, past in [(4, 7)] if smoke else [(1, 256), (64, 256), (256, 128)]:
        torch.manual_seed(0)
        capacity = past + 1
        pools = [torch.randn(rows * capacity, heads, width, device=device, dtype=dtype) for _ in range(2)]
        q, k, v = (torch.randn(rows, heads, width, device=device, dtype=dtype) for _ in range(3))
        table = torch.arange(rows * capacity, device=device, dtype=torch.int32).view(rows, capacity)

        lengths = torch.full((rows,), past, dtype=torch.int32, device=device)
        arguments = dict(
            q=q, k=k, v=v, key_pool=pools[0], value_pool=pools[1], slots=table[:, past], table=table, lengths=lengths
        )  # fmt: skip

        def eager(q=q, k=k, v=v, pools=pools, rows=rows, past=past) -> torch.Tensor:
            """Keys and values in order, grown by one position, as a cache that is concatenated has them."""
            keys, values = (
                torch.cat((pool.view(rows, -1, *q.shape[1:])[:, :past], new[:, None]), 1).transpose(1, 2)
                for pool, new in zip(pools, (k, v))
            )
            return F.scaled_dot_product_attention(q[:, :, None], keys, values)[:, :, 0]

        yield Row(
            "decode_attention",
            f"R{rows} t{past} H{heads} D{width}",
            arguments,
            decode_attention_reference,
            {"eager": Contender(eager), "bertgen": Contender(lambda a=arguments: ops.decode_attention(**a))},
            2.0 * rows * capacity * heads * width * item,
            "B",
        )
    for sources, beams, length in [(2, 2, 5)] if smoke else [(1, 4, 512), (16, 4, 512), (64, 4, 512)]:
        torch.manual_seed(0)
        q = torch.randn(sources * beams, heads, width, device=device, dtype=dtype)
        k, v = (torch.randn(sources, length, heads, width, device=device, dtype=dtype) for _ in range(2))
        copies = [t.repeat_interleave(beams, 0).transpose(1, 2).contiguous() for t in (k, v)]

        def per_beam(q=q, copies=copies) -> torch.Tensor:
            """Keys and values once per beam, as transformers keeps them."""
            return F.scaled_dot_product_attention(q[:, :, None], *copies)[:, :, 0]

        table = torch.arange(sources * length, device=device, dtype=torch.int32).view(sources, length)
        arguments = dict(
            q=q, key_pool=k.flatten(0, 1), value_pool=v.flatten(0, 1), table=table,
            lengths=torch.full((sources,), length, dtype=torch.int32, device=device),
            cu_rows=torch.arange(sources + 1, dtype=torch.int32, device=device) * beams, max_rows=beams,
        )  # fmt: skip

        yield Row(
            "cross_decode_attention",
            f"B{sources} W{beams} S{length} H{heads} D{width}",
            arguments,
            cross_decode_attention_reference,
            {"eager": Contender(per_beam), "bertgen": Contender(lambda a=arguments: ops.cross_decode_attention(**a))},
            2.0 * sources * length * heads * width * item,
            "B",
        )


def layer_norm_rows(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Row]:
    rows, hidden, wide = (8, 32, 64) if smoke else (16384, 1024, 4096)
    item = torch.finfo(dtype).bits // 8
    torch.manual_seed(0)
    x, residual = (torch.randn(rows, hidden, device=device, dtype=dtype) for _ in range(2))
    bias, weight, shift = (torch.randn(hidden, device=device, dtype=dtype) for _ in range(3))

    def eager() -> torch.Tensor:
        return F.layer_norm(x + bias + residual, x.shape[-1:], weight, shift, 1e-12)

    arguments = dict(x=x, bias=bias, residual=residual, weight=weight, shift=shift, eps=1e-12)
    yield Row(
        "add_layer_norm",
        f"{rows} x {hidden}",
        arguments,
        add_layer_norm_reference,
        _with_compiled(eager, lambda: ops.add_layer_norm(**arguments)),
        3.0 * rows * hidden * item,
        "B",
        {"liger": lambda: peers.liger_layer_norm(**arguments)},
    )
    y, b = torch.randn(rows, wide, device=device, dtype=dtype), torch.randn(wide, device=device, dtype=dtype)
    yield Row(
        "bias_gelu",
        f"{rows} x {wide}",
        dict(x=y, bias=b),
        bias_gelu_reference,
        _with_compiled(lambda: F.gelu(y + b), lambda: ops.bias_gelu(y, b)),
        2.0 * rows * wide * item,
        "B",
    )


def _with_compiled(eager: Callable[[], torch.Tensor], ours: Callable[[], torch.Tensor]) -> dict[str, Contender]:
    calls = {"eager": eager, "compiled": torch.compile(eager, dynamic=False), "bertgen": ours}
    return {name: Contender(call) for name, call in calls.items()}


def int4_rows(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Row]:
    shapes = [(64, 64)] if smoke else [(50432, 1024), (1024, 1024), (4096, 1024), (1024, 4096)]
    for n, k in shapes:
        torch.manual_seed(0)
        weight = torch.randn(n, k, device=device) / math.sqrt(k)
        packed, scale, _ = quantize(weight.to(dtype))
        dense = weight.to(dtype)
        for m in (1, 3) if smoke else (1, 4, 16, 64, 256):
            x = torch.randn(m, k, device=device, dtype=dtype)

            arguments = dict(x=x, packed=packed, scale=scale)
            contenders = {
                # Of the weights before they were rounded: another product.
                "16 bits": Contender(lambda x=x, w=dense: F.linear(x, w), judged=False),
                "bertgen": Contender(lambda a=arguments: ops.int4_matmul(**a)),
            }
            yield Row(
                "int4_matmul",
                f"M{m} N{n} K{k} g64",
                arguments,
                int4_matmul_reference,
                contenders,
                n * k / 2 + n * k / 64 * torch.finfo(dtype).bits / 8,
                "B",
                {
                    "tinygemm": lambda a=arguments: peers.tinygemm(**a),
                    "gemlite": lambda a=arguments: peers.gemlite_int4(**a),
                    "bitsandbytes": lambda x=x, w=dense: peers.bitsandbytes_nf4(x, w, 64),
                    "torchao": lambda x=x, w=dense: peers.torchao_int4(x, w, 64),
                },
            )


def linear_rows(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Row]:
    sizes = [(8, 32, 64)] if smoke else [(rows, 1024, 4096) for rows in (2048, 4096, 16384)]
    for rows, hidden, wide in sizes:
        torch.manual_seed(0)
        x = torch.randn(rows, hidden, device=device, dtype=dtype)
        weight = (torch.randn(wide, hidden, device=device) / math.sqrt(hidden)).to(dtype)
        bias = torch.randn(wide, device=device, dtype=dtype)
        contenders = _with_compiled(
            lambda x=x, w=weight, b=bias: F.gelu(F.linear(x, w, b)),
            lambda x=x, w=weight, b=bias: ops.linear(x, w, b, "gelu"),
        )
        contenders["product alone"] = Contender(lambda x=x, w=weight: F.linear(x, w), judged=False)
        arguments = dict(x=x, weight=weight, bias=bias)
        amount = 2.0 * rows * hidden * wide
        yield Row(
            "linear_gelu", f"{rows} x {wide} K{hidden}", arguments, linear_gelu_reference, contenders, amount, "FLOP"
        )


def choice_rows(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Row]:
    vocabulary, item = 101 if smoke else 50358, torch.finfo(dtype).bits // 8
    for sources, beams in [(2, 3)] if smoke else [(64, 1), (64, 4)]:
        torch.manual_seed(0)
        scores = torch.randn(sources * beams, vocabulary, device=device, dtype=dtype) * 3
        offsets = torch.randn(sources * beams, device=device)
        count = 1 if beams == 1 else 2 * beams

        def eager(scores=scores, offsets=offsets, beams=beams, count=count) -> torch.Tensor:
            total = scores.float().log_softmax(-1) + offsets[:, None]
            return total.unflatten(0, (-1, beams)).flatten(1).topk(count).values

        def ours(scores=scores, offsets=offsets, beams=beams, count=count) -> torch.Tensor:
            return ops.top_log_probs(scores, count, offsets, beams)[0]

        yield Row(
            "top_log_probs",
            f"B{sources} W{beams} V{vocabulary}",
            dict(scores=scores, count=count, offsets=offsets, group=beams),
            lambda **named: top_log_probs_reference(**named)[0],
            _with_compiled(eager, ours),
            float(scores.numel() * item),
            "B",
        )


ROWS = {
    "attention": attention_rows,
    "decode_attention": decode_rows,
    "layernorm_gelu": layer_norm_rows,
    "linear_gelu": linear_rows,
    "int4_matmul": int4_rows,
    "top_log_probs": choice_rows,
}


OWN_WEIGHTS = ("bitsandbytes", "torchao")  # they round in their own way: another product


def judge(row: Row, device: torch.device) -> None:
    """Drop the contenders whose answers are not accepted, or that cannot run here, with the reason."""
    for name, make in row.peers.items() if device.type == "cuda" else ():
        try:
            row.contenders[name] = Contender(make(), judged=name not in OWN_WEIGHTS)
        except Exception as error:  # whatever another package raises
            row.rejected[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    copied = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in row.arguments.items()}
    plain, exact = row.reference(**copied), row.reference(**as_float64(copied))
    for name, contender in list(row.contenders.items()):
        try:
            answer = contender.view(contender.call())
            problem = difference(answer, plain, exact) if contender.judged else None
        except Exception as error:
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
        if problem is not None:
            row.rejected[name] = problem
            del row.contenders[name]


def faster_launches(row: Row, device: torch.device, flush: torch.Tensor | None) -> dict[tune.Key, tuning.Launch]:
    """What the tuner finds for bertgen's own call."""
    call = row.contenders["bertgen"].call
    copied = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in row.arguments.items()}
    plain, exact = row.reference(**copied), row.reference(**as_float64(copied))

    def seconds(call: Callable[[], Any]) -> float:
        return statistics.median(_one(call, device, flush) for _ in range(7))

    return tune.tuned(call, lambda: difference(call(), plain, exact) is None, seconds)


def measure(row: Row, device: torch.device, seconds: float, flush: torch.Tensor | None) -> None:
    """Time the contenders by turns, each for about so many seconds."""
    for contender in row.contenders.values():
        contender.call()
    turns, started = 0, time.perf_counter()
    while turns < 5 or time.perf_counter() - started < seconds * len(row.contenders):
        for name, contender in row.contenders.items():
            row.seconds.setdefault(name, []).append(_one(contender.call, device, flush))
        turns += 1


def _one(call: Callable[[], Any], device: torch.device, flush: torch.Tensor | None) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    assert flush is not None
    flush.zero_()
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def limits(device: torch.device, dtype: torch.dtype, smoke: bool) -> dict[str, float]:
    """Bytes and FLOPs per second that this machine reaches on a copy and on a large matrix product."""
    size, side = (2**20, 128) if smoke else (2**28, 8192) if device.type == "cuda" else (2**25, 1024)
    a, b = (torch.empty(size, device=device, dtype=torch.uint8) for _ in range(2))
    x = torch.randn(side, side, device=device, dtype=dtype)

    def best(call: Callable[[], Any]) -> float:
        call()
        flush = torch.empty(1, device=device)
        return min(_one(call, device, flush) for _ in range(10))

    return {"B": 2 * size / best(lambda: a.copy_(b)), "FLOP": 2 * side**3 / best(lambda: x @ x)}


def described(row: Row, limit: dict[str, float]) -> dict[str, Any]:
    """A row as it is printed and written."""
    result: dict[str, Any] = {"op": row.op, "size": row.size, "unit": row.unit, "amount": row.amount, "times": {}}
    base = row.seconds.get("eager") or row.seconds.get("16 bits")
    for name, seconds in row.seconds.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        rate = row.amount / middle
        result["times"][name] = {
            "seconds": middle, "quartiles": [low, high], "rate": rate, "of the limit": rate / limit[row.unit],
            "faster than eager": None if base is None else statistics.median(base) / middle,
        }  # fmt: skip
    result["rejected"] = row.rejected
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=list(ROWS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=("full", "smoke"), default="full")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each contender of a row (default: 0.2)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tune", type=Path, nargs="?", const=TUNED, help=f"write to another file than {TUNED.name}")
    args = parser.parse_args()
    device, smoke = torch.device(args.device), args.size == "smoke"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    limit = limits(device, dtype, smoke)
    flush = torch.empty(2**28, device=device, dtype=torch.uint8) if device.type == "cuda" else None
    print(f"limits: {limit['B'] / 1e9:.0f} GB/s, {limit['FLOP'] / 1e9:.0f} GFLOP/s; {dtype} on {device}")
    print("| op | size | contender | us (quartiles) | rate | of the limit | faster than eager |")
    print("|---|---|---|---|---|---|---|")
    table = []
    with torch.no_grad(), tuning.measured({}) as launches:
        for op, rows in ROWS.items():
            if args.op in (None, op):
                for row in rows(device, dtype, smoke):
                    if args.tune:
                        launches.update(faster_launches(row, device, flush))
                    judge(row, device)
                    measure(row, device, args.seconds, flush)
                    table.append(described(row, limit))
                    _show(table[-1])
        if args.tune:
            machine = _machine(device)
            args.tune.write_text(tune.source(launches, machine["device"], machine["commit"]))
    if args.json:
        args.json.write_text(json.dumps({**_machine(device), "limits": limit, "rows": table}, indent=1) + "\n")
    return any("bertgen" in row["rejected"] for row in table)


def _show(row: dict[str, Any]) -> None:
    for name, t in row["times"].items():
        low, high = (1e6 * q for q in t["quartiles"])
        faster = "" if t["faster than eager"] is None else f"{t['faster than eager']:.2f}x"
        print(
            f"| {row['op']} | {row['size']} | {name} | {1e6 * t['seconds']:.1f} ({low:.1f} to {high:.1f}) | "
            f"{t['rate'] / 1e9:.1f} G{row['unit']}/s | {100 * t['of the limit']:.0f}% | {faster} |",
            flush=True,
        )
    for name, problem in row["rejected"].items():
        print(f"| {row['op']} | {row['size']} | {name} | not timed: {problem} | | | |", flush=True)


def _machine(device: torch.device) -> dict[str, Any]:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name, "python": platform.python_version(), "torch": torch.__version__, "bertgen": __version__,
        "commit": git("rev-parse", "--short", "HEAD"), "dirty": bool(git("status", "--porcelain")),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
