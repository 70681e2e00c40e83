"""Operators at the sizes of real models, with their contenders: eager torch, torch.compile, torch's own kernels.

`full`: 24 layers of hidden size 1024, a vocabulary of 50,358 and batches that fill a GPU. `small`: 6 layers of hidden
size 768, a vocabulary of 32,000 and batches for a CPU. `smoke`: tiny sizes for a quick test.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from bertgen.kernels.attention import attention_reference
from bertgen.kernels.decode_attention import cross_decode_attention_reference, decode_attention_reference
from bertgen.kernels.int4_matmul import int4_matmul_reference
from bertgen.kernels.layernorm_gelu import add_layer_norm_reference, bias_gelu_reference
from bertgen.kernels.linear import linear_onednn, linear_reference
from bertgen.kernels.linear_gelu import linear_gelu_reference
from bertgen.kernels.top_log_probs import top_log_probs_reference

from bertgen import ops
from bertgen.config import BertGenerationConfig
from bertgen.layers.attention import AttentionContext
from bertgen.model import BertGenerationEncoder
from bertgen.packing import Packing
from bertgen.quantization.int4 import quantize

from . import peers
from .contenders import silent_transformers

Call = Callable[[], torch.Tensor]
NORM, GELU, SOFTMAX = 8.0, 10.0, 4.0  # approximate operations per element


@dataclass(frozen=True)
class Contender:
    """An implementation of an operator.

    Attributes:
        make: the operator's arguments, by name -> a call without arguments, on tensors in the layout that it expects.
        view: converts its output to that of the operator.
        judged: whether its output must equal the operator's; with other weights, say, it cannot.
    """

    make: Callable[..., Call]
    view: Callable[[torch.Tensor], torch.Tensor] = lambda answer: answer
    judged: bool = True


@dataclass(frozen=True)
class Shape:
    """An operator at one size.

    Attributes:
        arguments: of the operator, by name.
        reference: its reference implementation; in float64 it gives the exact output.
        contenders: by name; "eager" is what a model without bertgen runs.
        bytes, flop: minimum of bytes to move and of operations.
    """

    op: str
    params: dict[str, Any]
    arguments: dict[str, Any]
    reference: Callable[..., torch.Tensor]
    contenders: dict[str, Contender]
    bytes: float
    flop: float


class Sizes(NamedTuple):
    """The sizes of one model and its batches."""

    heads: int
    width: int  # of a head
    encoder: tuple[tuple[int, int], ...]  # batch, length
    decode: tuple[tuple[int, int], ...]  # rows, past positions
    cross: tuple[tuple[int, int, int], ...]  # sources, beams, length
    reorder: tuple[tuple[int, int, int], ...]  # sources, beams, positions
    tokens: int  # of operators that process each token separately
    hidden: int
    linear: tuple[tuple[int, int], ...]  # N, K
    few: tuple[int, ...]  # rows of such products
    gelu: tuple[int, ...]  # rows of the first product of a feed-forward block
    int4: tuple[tuple[int, int], ...]  # N, K
    int4_rows: tuple[int, ...]
    vocabulary: int
    choice: tuple[tuple[int, int], ...]  # sources, beams
    layers: int
    whole: tuple[tuple[int, int], ...]  # batch, length of a whole encoder


SIZES = {
    "full": Sizes(
        16, 64, ((128, 128), (64, 256), (32, 512)), ((1, 256), (64, 256), (256, 128)),
        ((1, 4, 512), (16, 4, 512), (64, 4, 512)), ((64, 4, 128), (64, 4, 256)), 16384, 1024,
        ((50432, 1024), (1024, 1024), (4096, 1024), (1024, 4096)), (1, 16, 64, 256), (2048, 4096, 16384),
        ((50432, 1024), (1024, 1024), (4096, 1024), (1024, 4096)), (1, 4, 8, 16, 32, 64, 128, 256),
        50358, ((64, 1), (64, 4)), 24, ((32, 512),),
    ),
    "small": Sizes(
        12, 64, ((16, 64), (8, 128), (2, 512)), ((1, 32), (16, 32), (64, 128)),
        ((1, 4, 64), (16, 4, 64), (16, 4, 512)), ((16, 4, 64), (16, 4, 256)), 1024, 768,
        ((32000, 768), (3072, 768), (768, 3072), (2304, 768), (768, 768), (8000, 256), (1024, 256)),
        (1, 4, 16, 32, 64), (16, 64, 1024),
        ((32000, 768), (3072, 768), (768, 3072), (768, 768)), (1, 4, 16, 64),
        32000, ((16, 1), (16, 4)), 6, ((16, 64),),
    ),
    "smoke": Sizes(
        2, 16, ((2, 16),), ((4, 7),), ((2, 2, 5),), ((2, 2, 5),), 8, 32, ((64, 32),), (3,), (8,), ((64, 64),), (1, 3),
        101, ((2, 3),), 2, ((2, 16),),
    ),
}  # fmt: skip


def shapes(size: str, device: torch.device, dtype: torch.dtype, only: str | None = None) -> Iterator[Shape]:
    """All shapes of a size, or those of one operator; lazily, since they are large."""
    for name, make in MAKERS.items():
        if only in (None, name):
            yield from make(SIZES[size], device, dtype)


def of(function: Callable[..., Any], **more: Any) -> Callable[..., Call]:
    """A `Contender.make` for a function that takes the operator's arguments."""
    return lambda **arguments: functools.partial(function, **arguments, **more)


def compiled(function: Callable[..., Any]) -> Callable[..., Call]:
    """A `Contender.make` for a function compiled by torch.compile for static shapes."""
    return lambda **arguments: functools.partial(torch.compile(function, dynamic=False), **arguments)


# Attention


def attention(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Shape]:
    for batch, length in sizes.encoder:
        for fill, causal in ((1.0, False), (0.6, False), (1.0, True)):
            lengths = _lengths(batch, length, fill)
            cu = torch.cat((torch.zeros(1), lengths.cumsum(0))).int().to(device)
            tokens, longest = int(lengths.sum()), int(lengths.max())
            q, k, v = torch.randn(3, tokens, sizes.heads, sizes.width, device=device, dtype=dtype).unbind()
            inside = (torch.arange(longest) < lengths[:, None]).to(device)
            padded = functools.partial(_padded, inside=inside, masked=fill < 1)
            contenders = {
                name: Contender(padded(attend), lambda out, inside=inside: out.transpose(1, 2)[inside])
                for name, attend in _attentions(device, fill < 1).items()
            }
            contenders["bertgen"] = Contender(of(ops.attention))
            if device.type == "cuda":
                contenders["varlen_attn"] = Contender(lambda **a: peers.varlen_attention(a))
            arguments = dict(q=q, k=k, v=v, cu_q=cu, cu_k=cu, max_q=longest, max_k=longest, causal=causal)
            flop = float(4 * sizes.heads * sizes.width * (lengths.double() ** 2).sum()) / (1 + causal)
            yield Shape(
                "attention",
                dict(batch=batch, length=length, heads=sizes.heads, width=sizes.width, fill=fill, causal=causal),
                arguments, attention_reference, contenders, 4.0 * q.nbytes, flop,
            )  # fmt: skip


def _lengths(batch: int, length: int, fill: float) -> torch.Tensor:
    """Lengths of a batch, deterministic: all equal to `length`, or `fill` of it on average."""
    torch.manual_seed(0)
    if fill == 1:
        return torch.full((batch,), length)
    return (torch.rand(batch) * 2 * (1 - fill) + 2 * fill - 1).mul(length).long().clamp(1, length)


def _padded(attend: Callable[..., torch.Tensor], inside: torch.Tensor, masked: bool) -> Callable[..., Call]:
    """A `Contender.make` on a padded batch [B, H, S, D], as in models without packing."""

    def make(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, **rest: Any) -> Call:
        index = inside.flatten().nonzero()[:, 0]
        dense = [
            t.new_zeros(inside.numel(), *t.shape[1:]).index_copy(0, index, t).view(*inside.shape, *t.shape[1:])
            for t in (q, k, v)
        ]
        mask = inside[:, None, None] if masked else None
        return functools.partial(attend, *(t.transpose(1, 2) for t in dense), attn_mask=mask, is_causal=causal)

    return make


def _attentions(device: torch.device, masked: bool) -> dict[str, Callable[..., torch.Tensor]]:
    """torch's attention: its default choice, compiled, and each of its backends."""
    attend = F.scaled_dot_product_attention
    calls = {
        "eager": attend,
        "compiled": torch.compile(lambda *arguments, **named: attend(*arguments, **named), dynamic=False),
    }
    if device.type == "cuda":
        from torch.nn.attention import SDPBackend, sdpa_kernel

        backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
        for backend in backends + [SDPBackend.FLASH_ATTENTION] * (not masked):

            def forced(*arguments: Any, backend: Any = backend, **named: Any) -> torch.Tensor:
                with sdpa_kernel(backend):
                    return attend(*arguments, **named)

            calls[f"sdpa {backend.name.split('_')[0].lower()}"] = forced
    return calls


def decode(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Shape]:
    heads, width = sizes.heads, sizes.width
    for rows, past in sizes.decode:
        torch.manual_seed(0)
        capacity = past + 1
        pools = torch.randn(2, rows * capacity, heads, width, device=device, dtype=dtype).unbind()
        q, k, v = torch.randn(3, rows, heads, width, device=device, dtype=dtype).unbind()
        table = torch.arange(rows * capacity, device=device, dtype=torch.int32).view(rows, capacity)
        arguments = dict(
            q=q, k=k, v=v, key_pool=pools[0], value_pool=pools[1], slots=table[:, past].contiguous(), table=table,
            lengths=torch.full((rows,), past, dtype=torch.int32, device=device),
        )  # fmt: skip
        contenders = {
            "eager": Contender(_grown(past)),
            "compiled": Contender(_grown(past, compile=True)),
            "sdpa, gathered": Contender(_gathered(past)),
            "bertgen": Contender(of(ops.decode_attention)),
        }
        yield Shape(
            "decode_attention", dict(rows=rows, past=past, heads=heads, width=width), arguments,
            decode_attention_reference, contenders, float(pools[0].nbytes + pools[1].nbytes), 4.0 * pools[0].numel(),
        )  # fmt: skip


def _grown(past: int, compile: bool = False) -> Callable[..., Call]:
    """Contiguous keys and values, to which each step concatenates a position, as transformers does."""

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        grown = (torch.cat((old, new[:, :, None]), 2) for old, new in ((keys, k), (values, v)))
        return F.scaled_dot_product_attention(q[:, :, None], *grown)[:, :, 0]

    run = torch.compile(attend, dynamic=False) if compile else attend

    def make(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **cache: Any) -> Call:
        keys, values = (
            pool.view(len(q), -1, *q.shape[1:])[:, :past].transpose(1, 2).contiguous()
            for pool in (cache["key_pool"], cache["value_pool"])
        )
        return functools.partial(run, q, k, v, keys, values)

    return make


def _gathered(past: int) -> Callable[..., Call]:
    """Attention alone, over contiguous keys and values that include the new position."""

    def make(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **cache: Any) -> Call:
        keys, values = (
            torch.cat((pool.view(len(q), -1, *q.shape[1:])[:, :past], new[:, None]), 1).transpose(1, 2).contiguous()
            for pool, new in ((cache["key_pool"], k), (cache["value_pool"], v))
        )
        return lambda: F.scaled_dot_product_attention(q[:, :, None], keys, values)[:, :, 0]

    return make


def cross(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Shape]:
    heads, width = sizes.heads, sizes.width
    for sources, beams, length in sizes.cross:
        torch.manual_seed(0)
        q = torch.randn(sources * beams, heads, width, device=device, dtype=dtype)
        pools = torch.randn(2, sources * length, heads, width, device=device, dtype=dtype).unbind()
        arguments = dict(
            q=q, key_pool=pools[0], value_pool=pools[1],
            table=torch.arange(sources * length, device=device, dtype=torch.int32).view(sources, length),
            lengths=torch.full((sources,), length, dtype=torch.int32, device=device),
            cu_rows=torch.arange(sources + 1, dtype=torch.int32, device=device) * beams, max_rows=beams,
        )  # fmt: skip
        contenders = {
            "eager": Contender(_per_beam),
            "compiled": Contender(functools.partial(_per_beam, compile=True)),
            "sdpa, shared": Contender(_shared),
            "bertgen": Contender(of(ops.cross_decode_attention)),
        }
        yield Shape(
            "cross_decode_attention", dict(sources=sources, beams=beams, length=length, heads=heads, width=width),
            arguments, cross_decode_attention_reference, contenders,
            float(pools[0].nbytes + pools[1].nbytes), 4.0 * beams * pools[0].numel(),
        )  # fmt: skip


def _sources(q: torch.Tensor, key_pool: torch.Tensor, value_pool: torch.Tensor, table: torch.Tensor, **_: Any) -> Any:
    return (pool.view(*table.shape, *q.shape[1:]).transpose(1, 2) for pool in (key_pool, value_pool))


def _per_beam(q: torch.Tensor, max_rows: int, compile: bool = False, **cache: Any) -> Call:
    """Keys and values repeated for each beam, as in transformers."""
    keys, values = (t.repeat_interleave(max_rows, 0).contiguous() for t in _sources(q, **cache))

    def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q[:, :, None], keys, values)[:, :, 0]

    return functools.partial(torch.compile(attend, dynamic=False) if compile else attend, q, keys, values)


def _shared(q: torch.Tensor, max_rows: int, **cache: Any) -> Call:
    """The beams as the queries of one source: keys and values are not repeated."""
    keys, values = (t.contiguous() for t in _sources(q, **cache))
    queries = q.unflatten(0, (-1, max_rows)).transpose(1, 2)
    return lambda: F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(0, 1)


def reorder(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Shape]:
    """Beam reorder of one layer: gather rows of the slot table (bertgen), or all keys and values (eager)."""
    for sources, beams, positions in sizes.reorder:
        torch.manual_seed(0)
        rows = sources * beams
        pools = torch.randn(2, rows, positions, sizes.heads, sizes.width, device=device, dtype=dtype)
        table = torch.arange(rows * positions, device=device, dtype=torch.int32).view(rows, positions)
        parents = torch.randint(beams, (rows,), device=device)
        parents += torch.arange(sources, device=device).repeat_interleave(beams) * beams

        def cached(pools: torch.Tensor, parents: torch.Tensor, **_: Any) -> torch.Tensor:
            return pools.index_select(1, parents)

        def slots(table: torch.Tensor, parents: torch.Tensor, **_: Any) -> torch.Tensor:
            return table.index_select(0, parents)

        contenders = {
            "eager": Contender(of(cached)),
            "bertgen": Contender(
                of(slots), lambda got, pools=pools: pools.flatten(1, 2)[:, got.long().flatten()].view_as(pools)
            ),
        }
        yield Shape(
            "beam_reorder", dict(sources=sources, beams=beams, positions=positions, heads=sizes.heads, layers=1),
            dict(pools=pools, table=table, parents=parents), cached, contenders, 2.0 * table.nbytes, 0.0,
        )  # fmt: skip


# Norms and activations


def norm(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Shape]:
    torch.manual_seed(0)
    x, residual = torch.randn(2, sizes.tokens, sizes.hidden, device=device, dtype=dtype).unbind()
    bias, weight, shift = torch.randn(3, sizes.hidden, device=device, dtype=dtype).unbind()

    def eager(x, bias, residual, weight, shift, eps):
        return F.layer_norm(x + bias + residual, x.shape[-1:], weight, shift, eps)

    contenders = {
        "eager": Contender(of(eager)),
        "compiled": Contender(compiled(eager)),
        "liger": Contender(peers.liger_layer_norm),
        "bertgen": Contender(of(ops.add_layer_norm)),
    }
    yield Shape(
        "add_layer_norm", dict(tokens=sizes.tokens, hidden=sizes.hidden),
        dict(x=x, bias=bias, residual=residual, weight=weight, shift=shift, eps=1e-12), add_layer_norm_reference,
        contenders, 3.0 * x.nbytes, NORM * x.numel(),
    )  # fmt: skip


def gelu(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Shape]:
    torch.manual_seed(0)
    wide = 4 * sizes.hidden
    x, bias = torch.randn(sizes.tokens, wide, device=device, dtype=dtype), torch.randn(wide, device=device, dtype=dtype)

    def eager(x, bias):
        return F.gelu(x + bias)

    contenders = {
        "eager": Contender(of(eager)),
        "compiled": Contender(compiled(eager)),
        "bertgen": Contender(of(ops.bias_gelu)),
    }
    yield Shape(
        "bias_gelu", dict(tokens=sizes.tokens, hidden=wide), dict(x=x, bias=bias), bias_gelu_reference, contenders,
        2.0 * x.nbytes, GELU * x.numel(),
    )  # fmt: skip


# Products


def _product(rows: int, n: int, k: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(
        x=torch.randn(rows, k, device=device, dtype=dtype),
        weight=(torch.randn(n, k, device=device) / math.sqrt(k)).to(dtype),
        bias=torch.randn(n, device=device, dtype=dtype),
    )


def linear(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Shape]:
    """Products of few rows, of which up to some tens take the time of reading the weight."""
    for n, k in sizes.linear:
        for rows in sizes.few:
            contenders = {
                "eager": Contender(of(linear_reference)),
                "compiled": Contender(compiled(linear_reference)),
                "bertgen": Contender(of(ops.linear)),
            }
            if device.type == "cpu":
                contenders["oneDNN"] = Contender(of(linear_onednn))
                contenders["oneDNN, packed"] = Contender(_packed)
            yield Shape(
                "linear", dict(rows=rows, n=n, k=k), _product(rows, n, k, device, dtype), linear_reference, contenders,
                *_work(rows, n, k, dtype),
            )  # fmt: skip


def _packed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Call:
    """oneDNN with a copy of the weight in its packed layout."""
    return functools.partial(linear_onednn, x, torch.ops.mkldnn._reorder_linear_weight(weight, len(x)), bias)


def _work(rows: int, n: int, k: int, dtype: torch.dtype, bits: float | None = None) -> tuple[float, float]:
    """Bytes and FLOPs of a product. `bits`: bits per weight (default: those of the dtype)."""
    item = torch.finfo(dtype).bits / 8
    return n * k * (item if bits is None else bits / 8) + rows * (n + k) * item, 2.0 * rows * n * k


def linear_gelu(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Shape]:
    def eager(x, weight, bias):
        return F.gelu(F.linear(x, weight, bias))

    for rows in sizes.gelu:
        n, k = 4 * sizes.hidden, sizes.hidden
        contenders = {
            "eager": Contender(of(eager)),
            "compiled": Contender(compiled(eager)),
            "product alone": Contender(lambda x, weight, bias: functools.partial(F.linear, x, weight), judged=False),
            "bertgen": Contender(of(ops.linear, activation="gelu")),
        }
        yield Shape(
            "linear_gelu", dict(rows=rows, n=n, k=k), _product(rows, n, k, device, dtype), linear_gelu_reference,
            contenders, *_work(rows, n, k, dtype),
        )  # fmt: skip


def int4(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Shape]:
    """4-bit products. Eager torch, and packages that round weights themselves, get the unrounded weights."""
    for n, k in sizes.int4:
        weight = _product(1, n, k, device, dtype)["weight"]
        packed, scale, _ = quantize(weight)
        for rows in sizes.int4_rows:
            x = torch.randn(rows, k, device=device, dtype=dtype)
            contenders = {
                "eager": Contender(lambda x, weight, **_: functools.partial(F.linear, x, weight), judged=False),
                "compiled": Contender(_rounded(compiled(int4_matmul_reference))),
                "bertgen": Contender(_rounded(of(ops.int4_matmul))),
                "tinygemm": Contender(_rounded(peers.tinygemm)),
            }
            if device.type == "cuda":
                contenders |= {
                    "gemlite": Contender(_rounded(peers.gemlite_int4)),
                    "bitsandbytes": Contender(
                        lambda x, weight, **_: peers.bitsandbytes_nf4(x, weight, 64), judged=False
                    ),
                    "torchao": Contender(lambda x, weight, **_: peers.torchao_int4(x, weight, 64), judged=False),
                }  # fmt: skip
            params = dict(rows=rows, n=n, k=k, group=64)
            arguments = dict(x=x, packed=packed, scale=scale, weight=weight)
            reference = _rounded(int4_matmul_reference)
            work = _work(rows, n, k, dtype, 4 + torch.finfo(dtype).bits / 64)
            yield Shape("int4_matmul", params, arguments, reference, contenders, *work)
            if device.type == "cpu":  # integer products exist on a CPU only
                some = {name: contenders[name] for name in ("eager", "bertgen")}
                integers = params | dict(integers=True), arguments | dict(int8=True)
                yield Shape("int4_matmul", *integers, reference, some, *work)


def _rounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function without its argument `weight` (in floats)."""
    return lambda weight, **arguments: function(**arguments)


# The choice of tokens


def choice(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Shape]:
    def eager(scores, count, offsets, group):
        total = scores.float().log_softmax(-1) + offsets[:, None]
        return total.unflatten(0, (-1, group)).flatten(1).topk(count).values

    def values(**arguments):
        return top_log_probs_reference(**arguments)[0]

    for sources, beams in sizes.choice:
        torch.manual_seed(0)
        arguments = dict(
            scores=torch.randn(sources * beams, sizes.vocabulary, device=device, dtype=dtype) * 3,
            count=1 if beams == 1 else 2 * beams, offsets=torch.randn(sources * beams, device=device), group=beams,
        )  # fmt: skip
        contenders = {
            "eager": Contender(of(eager)),
            "compiled": Contender(compiled(eager)),
            "bertgen": Contender(of(ops.top_log_probs), lambda got: got[0]),
        }
        yield Shape(
            "top_log_probs", dict(sources=sources, beams=beams, vocabulary=sizes.vocabulary), arguments, values,
            contenders, float(arguments["scores"].nbytes), SOFTMAX * arguments["scores"].numel(),
        )  # fmt: skip


# A whole encoder


def encoder(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Shape]:
    """A whole encoder: transformers' model on a padded batch, the same compiled, and bertgen's on packed tokens."""
    config = BertGenerationConfig(
        vocab_size=8, hidden_size=sizes.hidden, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.hidden, initializer_range=0.05,
    )  # fmt: skip
    for batch, length in sizes.whole:
        for fill in (1.0, 0.6):
            lengths = _lengths(batch, length, fill)
            inside = (torch.arange(int(lengths.max())) < lengths[:, None]).to(device)
            weights = BertGenerationEncoder(config).to(device, dtype).state_dict()
            embeds = torch.randn(int(lengths.sum()), sizes.hidden, device=device, dtype=dtype)
            theirs = functools.partial(_transformers_encoder, config=config)
            contenders = {
                "eager": Contender(functools.partial(theirs, attention="eager"), lambda out, at=inside: out[at]),
                "sdpa": Contender(theirs, lambda out, at=inside: out[at]),
                "compiled": Contender(functools.partial(theirs, compile=True), lambda out, at=inside: out[at]),
                "bertgen": Contender(functools.partial(_packed_encoder, config=config)),
            }
            products = sum(w.numel() for name, w in weights.items() if name.startswith("encoder") and w.dim() == 2)
            attention = 4.0 * sizes.hidden * float((lengths.double() ** 2).sum()) * sizes.layers
            item = torch.finfo(dtype).bits / 8
            yield Shape(
                "encoder", dict(batch=batch, length=length, hidden=sizes.hidden, layers=sizes.layers, fill=fill),
                dict(embeds=embeds, inside=inside, **weights), functools.partial(encoder_reference, config=config),
                contenders, item * products + 2.0 * embeds.nbytes, 2.0 * products * len(embeds) + attention,
            )  # fmt: skip


def encoder_reference(
    embeds: torch.Tensor, inside: torch.Tensor, config: BertGenerationConfig, **weights: torch.Tensor
) -> torch.Tensor:
    """Reference of BERT's encoder (Devlin et al. 2019, arXiv 1810.04805).

    Args:
        embeds: [T, hidden] of the real tokens. inside: bool [B, S], their positions. weights: as in a checkpoint.

    Returns:
        [T, hidden]
    """

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], config.layer_norm_eps)

    x = embeds.new_zeros(*inside.shape, config.hidden_size)
    x[inside] = embeds
    x = norm("embeddings.LayerNorm", x + weights["embeddings.position_embeddings.weight"][: inside.shape[1]])
    hidden = x.new_zeros(inside.shape).masked_fill(~inside, -math.inf)[:, None, None]
    for layer in (f"encoder.layer.{i}" for i in range(config.num_hidden_layers)):
        q, k, v = (
            linear(f"{layer}.attention.self.{one}", x).unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)
            for one in ("query", "key", "value")
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1]) + hidden
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = norm(f"{layer}.attention.output.LayerNorm", x + linear(f"{layer}.attention.output.dense", mixed))
        wide = F.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", wide))
    return x[inside]


def _transformers_encoder(
    embeds: torch.Tensor, inside: torch.Tensor, config: BertGenerationConfig, attention: str = "sdpa",
    compile: bool = False, **weights: torch.Tensor,
) -> Call:  # fmt: skip
    transformers = silent_transformers()
    with embeds.device:
        model = transformers.BertGenerationEncoder(transformers.BertGenerationConfig(**config.to_dict()))
    model.load_state_dict(weights, assign=True)
    model.set_attn_implementation(attention)
    padded = embeds.new_zeros(*inside.shape, config.hidden_size)
    padded[inside] = embeds
    run = torch.compile(model.eval(), dynamic=False) if compile else model.eval()
    return lambda: run(inputs_embeds=padded, attention_mask=inside.long()).last_hidden_state


def _packed_encoder(
    embeds: torch.Tensor, inside: torch.Tensor, config: BertGenerationConfig, **weights: torch.Tensor
) -> Call:
    with torch.device("meta"):
        model = BertGenerationEncoder(config)
    model.load_state_dict(weights, assign=True)
    rows = Packing.of_mask(inside, *inside.shape, embeds.device)
    positions = inside.nonzero()[:, 1]
    return functools.partial(model.eval().packed, None, positions, AttentionContext(rows), embeds)


MAKERS: dict[str, Callable[[Sizes, torch.device, torch.dtype], Iterator[Shape]]] = {
    "attention": attention, "decode_attention": decode, "cross_decode_attention": cross, "beam_reorder": reorder,
    "add_layer_norm": norm, "bias_gelu": gelu, "linear": linear, "linear_gelu": linear_gelu, "int4_matmul": int4,
    "top_log_probs": choice, "encoder": encoder,
}  # fmt: skip
