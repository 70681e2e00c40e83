"""Calls with more than 2^31 elements, where 32-bit addresses would overflow.

`LARGE[name](rows, device, dtype)` returns the last rows of a large call and the same rows of a small call of the
operator, which must be equal. The first rows are not compared: only the last ones have addresses above 2^31.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bertgen import ops
from bertgen.quantization.int4 import quantize

Pair = tuple[torch.Tensor, torch.Tensor]
HIDDEN, HEADS, HEAD_DIM, TAIL = 1024, 16, 64, 128


def _random(rows: int, *shape: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Zeros except for the last TAIL rows, so that a read of another row shows."""
    x = torch.zeros(rows, *shape, device=device, dtype=dtype)
    x[-TAIL:] = torch.randn(min(TAIL, rows), *shape, device=device, dtype=torch.float32).to(dtype)
    return x


def add_layer_norm(rows: int, device: torch.device, dtype: torch.dtype) -> Pair:
    x = _random(rows, HIDDEN, device=device, dtype=dtype)
    weight, shift = torch.randn(2, HIDDEN, device=device).to(dtype)
    run = lambda x: ops.add_layer_norm(x, None, None, weight, shift, 1e-5)  # noqa: E731
    return run(x)[-TAIL:], run(x[-TAIL:])


def bias_gelu(rows: int, device: torch.device, dtype: torch.dtype) -> Pair:
    x, bias = _random(rows, HIDDEN, device=device, dtype=dtype), torch.randn(HIDDEN, device=device).to(dtype)
    return ops.bias_gelu(x, bias)[-TAIL:], ops.bias_gelu(x[-TAIL:], bias)


def attention(rows: int, device: torch.device, dtype: torch.dtype) -> Pair:
    x = _random(rows, HEADS, HEAD_DIM, device=device, dtype=dtype)
    cu = torch.arange(0, rows + 1, TAIL, dtype=torch.int32, device=device)
    large = ops.attention(x, x, x, cu, cu, TAIL, TAIL)
    return large[-TAIL:], ops.attention(x[-TAIL:], x[-TAIL:], x[-TAIL:], cu[:2], cu[:2], TAIL, TAIL)


def decode_attention(rows: int, device: torch.device, dtype: torch.dtype) -> Pair:
    pool = _random(rows, HEADS, HEAD_DIM, device=device, dtype=dtype)
    q = _random(2, HEADS, HEAD_DIM, device=device, dtype=dtype)
    results = []
    for keys in (pool, pool[-TAIL:].clone()):
        table = torch.arange(len(keys) - TAIL, len(keys), dtype=torch.int32, device=device).view(2, TAIL // 2)
        lengths = torch.tensor([TAIL // 2 - 1, 5], dtype=torch.int32, device=device)
        results.append(ops.decode_attention(q, q, q, keys, keys.clone(), table[:, TAIL // 2 - 1], table, lengths))
    return results[0], results[1]


def cross_decode_attention(rows: int, device: torch.device, dtype: torch.dtype) -> Pair:
    pool = _random(rows, HEADS, HEAD_DIM, device=device, dtype=dtype)
    q = _random(rows, HEADS, HEAD_DIM, device=device, dtype=dtype)  # TAIL rows for each source

    def attend(q: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
        table = torch.arange(len(pool), dtype=torch.int32, device=device).view(-1, TAIL)
        cu_rows = torch.arange(0, len(q) + 1, TAIL, dtype=torch.int32, device=device)
        return ops.cross_decode_attention(q, pool, pool, table, torch.full_like(table[:, 0], TAIL), cu_rows, TAIL)

    return attend(q, pool)[-TAIL:], attend(q[-TAIL:], pool[-TAIL:])


def int4_matmul(rows: int, device: torch.device, dtype: torch.dtype) -> Pair:
    weight = torch.randn(TAIL, HIDDEN, device=device).to(dtype)
    packed, scale, _ = quantize(weight)
    x = torch.randn(3, HIDDEN, device=device).to(dtype)
    whole = (
        torch.zeros(rows, HIDDEN // 2, device=device, dtype=torch.uint8),
        torch.zeros(rows, scale.shape[1]).to(scale),
    )
    for large, small in zip(whole, (packed, scale)):
        large[-TAIL:] = small
    return ops.int4_matmul(x, *whole)[:, -TAIL:], ops.int4_matmul(x, packed, scale)


def linear_gelu(rows: int, device: torch.device, dtype: torch.dtype) -> Pair:
    """Sums of small integers, which are exact in any order and dtype: the small call may take another kernel."""
    x = torch.zeros(rows, HIDDEN, device=device, dtype=dtype)
    x[-TAIL:, ::8] = torch.randint(-1, 2, (min(TAIL, rows), HIDDEN // 8), device=device).to(dtype)
    weight = torch.randint(-1, 2, (HIDDEN, HIDDEN), device=device).to(dtype)
    bias = torch.randint(-3, 4, (HIDDEN,), device=device).to(dtype)
    return ops.linear_gelu(x, weight, bias)[-TAIL:], ops.linear_gelu(x[-TAIL:], weight, bias)


def top_log_probs(rows: int, device: torch.device, dtype: torch.dtype) -> Pair:
    scores = _random(rows, HIDDEN, device=device, dtype=dtype)
    return ops.top_log_probs(scores, 3)[0][-TAIL:], ops.top_log_probs(scores[-TAIL:], 3)[0]


def process(rows: int, device: torch.device, dtype: torch.dtype) -> Pair:
    scores = _random(rows, HIDDEN, device=device, dtype=torch.float32)
    small = scores[-TAIL:].clone()
    tokens = torch.arange(HIDDEN // 2, device=device).expand(rows, -1)
    width, penalty = tokens.shape[1], torch.full((rows,), 2.0, device=device)
    number = torch.full((rows,), width, device=device)
    for part in (scores, small):
        n = len(part)
        ops.process(part, tokens[:n], number[:n], penalty[:n], torch.zeros_like(number[:n]))
    return scores[-TAIL:], small


def sample(rows: int, device: torch.device, dtype: torch.dtype) -> Pair:
    scores = _random(rows, HIDDEN, device=device, dtype=dtype)
    one, none = torch.ones(rows, device=device), torch.zeros(rows, device=device)
    number = torch.arange(rows, device=device)
    options = [torch.zeros_like(number), number, number, one, torch.full_like(number, 5), one, none]
    tails = [scores[-TAIL:], *(option[-TAIL:] for option in options)]
    return ops.sample(scores, *options)[1][-TAIL:], ops.sample(*tails)[1]


LARGE: dict[str, Callable[[int, torch.device, torch.dtype], Pair]] = {
    function.__name__: function
    for function in (
        add_layer_norm,
        bias_gelu,
        attention,
        decode_attention,
        cross_decode_attention,
        int4_matmul,
        linear_gelu,
        top_log_probs,
        process,
        sample,
    )
}
ROWS = 2**31 // HIDDEN + 2 * TAIL  # of HIDDEN elements each
