"""Operators against their equations in float64, and every other backend against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from bertgen.kernels.attention import attention_reference
from bertgen.kernels.decode_attention import cross_decode_attention_reference, decode_attention_reference
from bertgen.kernels.int4_matmul import int4_matmul_reference
from bertgen.kernels.layernorm_gelu import ACTIVATIONS, activation_function, add_layer_norm_reference
from bertgen.kernels.linear import (
    ONEDNN_ELEMENTS,
    few_rows,
    linear_cpp,
    linear_onednn,
    linear_reference,
    why_not_linear_cpp,
    why_not_linear_onednn,
)

from bertgen import ops
from bertgen.ops import extension
from tests.support.large_tensors import LARGE


def close(got: torch.Tensor, exact: torch.Tensor, bound: float = 1e-5) -> bool:
    """Largest error within the bound; NaN fails."""
    error = (got.double() - exact).abs().max()
    return bool(error <= bound)


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 64, 129])
@pytest.mark.parametrize("shape", [(1024, 256), (768, 768), (257, 1031)])
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_products_round_like_the_reference(rows, shape, bias):
    """It adds in another order, which doubles the mean error, of two units in the last place, and no more."""
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, shape[1]), torch.randn(shape) / math.sqrt(shape[1])
    b = torch.randn(shape[0]) if bias else None
    with torch.no_grad():
        assert why_not_linear_onednn(x, weight) is None
        exact = x.double() @ weight.double().T + (0 if b is None else b.double())
        ours, plain = linear_onednn(x, weight, b), linear_reference(x, weight, b)
        assert bool((ours - exact).abs().mean() <= 2.5 * (plain - exact).abs().mean())
        assert close(ours, exact, 1e-5)
        assert close(ops.linear(x, weight, b, "gelu"), torch.nn.functional.gelu(exact))
        # A slice of a larger storage, as fused projections are.
        whole = torch.cat((weight, weight))
        assert close(linear_onednn(x, whole[shape[0] :], b), exact)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_onednn_takes_weights_that_are_large_together(monkeypatch):
    weights, x = [torch.randn(320, 320) for _ in range(3)], torch.randn(few_rows() + 1, 320)
    assert 3 * weights[0].numel() >= ONEDNN_ELEMENTS > weights[0].numel()
    calls = []
    monkeypatch.setattr(ops.operators, "linear_onednn", lambda *given: calls.append(given) or linear_onednn(*given))
    with torch.no_grad():
        products = ops.linears(x, weights, [None] * 3)
        assert len(calls) == 3
        assert all(torch.equal(y, linear_onednn(x, w)) for y, w in zip(products, weights, strict=True))
        ops.linears(x, weights[:1], [None])
        ops.linear(x, weights[0])
        assert len(calls) == 3


def test_onednn_is_left_alone_where_it_does_not_fit():
    x, weight = torch.randn(4, 512), torch.randn(512, 512)
    assert why_not_linear_onednn(x, weight)  # gradients
    with torch.no_grad():
        assert why_not_linear_onednn(x, weight) is None
        assert why_not_linear_onednn(x, weight[:, :256]) and why_not_linear_onednn(x.T, weight)
        assert why_not_linear_onednn(x[:0], weight) and ops.linear(x[:0], weight).shape == (0, 512)
        assert why_not_linear_onednn(x.half(), weight.half())
        assert why_not_linear_onednn(x[:, :8].contiguous(), weight[:8, :8].contiguous())
        with torch.autocast("cpu", torch.bfloat16):
            assert ops.linear(x, weight).dtype == torch.bfloat16
    assert ops.linear(x, weight.requires_grad_()).requires_grad and weight.numel() >= ONEDNN_ELEMENTS


@pytest.mark.skipif(extension.why_not() is not None, reason="needs the C++ extension")
def test_few_rows_go_to_the_extension(monkeypatch):
    """Of any shape of input; a row is the same whatever stands beside it."""
    called = []
    monkeypatch.setattr(ops.operators, "linear_cpp", lambda *given: called.append(given[0].shape) or linear_cpp(*given))
    weight, bias = torch.randn(40, 24), torch.randn(40)
    with torch.no_grad():
        for x in (torch.randn(few_rows(), 24), torch.randn(1, 24), torch.randn(2, 3, 24), torch.randn(24)):
            exact = x.double() @ weight.double().T + bias.double()
            assert close(ops.linear(x, weight, bias), exact)
            assert close(ops.linear(x, weight, bias, "gelu"), torch.nn.functional.gelu(exact))
            assert ops.linear(x, weight).shape == exact.shape
        assert len(called) == 12
        x = torch.randn(4, 24)
        assert torch.equal(ops.linear(x, weight, bias)[2:3], ops.linear(x[2:3], weight, bias))
        strided = torch.randn(80)[::2]
        assert close(ops.linear(x, weight, strided), x.double() @ weight.double().T + strided.double())


def test_the_extension_is_left_alone_where_it_does_not_fit():
    x, weight = torch.randn(4, 24), torch.randn(40, 24)
    assert why_not_linear_cpp(x, weight)  # gradients
    with torch.no_grad():
        assert why_not_linear_cpp(x, weight) is None and why_not_linear_cpp(torch.randn(few_rows() + 1, 24), weight)
        assert why_not_linear_cpp(x[:0], weight) and why_not_linear_cpp(x.half(), weight)
        assert why_not_linear_cpp(x.half(), weight.bfloat16()) and why_not_linear_cpp(x, weight.half()) is None
        for dtype in (torch.bfloat16, torch.float16):
            assert why_not_linear_cpp(torch.randn(few_rows(dtype), 24, dtype=dtype), weight.to(dtype)) is None
            assert why_not_linear_cpp(torch.randn(few_rows(dtype) + 1, 24), weight.to(dtype)) == "x has too many rows"
        assert why_not_linear_cpp(x[:, ::2], weight[:, ::2]) and why_not_linear_cpp(x.double(), weight.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert ops.linear(x, weight).dtype == torch.bfloat16
        compiled = torch.compile(ops.linear, backend="eager", fullgraph=True)
        assert close(compiled(x, weight), x.double() @ weight.double().T)
        before = ops.set_backend("reference")
        try:
            assert torch.equal(ops.linear(x, weight), torch.nn.functional.linear(x, weight))
        finally:
            ops.set_backend(before)


def exact_attention(q, k, v, visible):
    """One row: q [Lq, H, D], k and v [Lk, H, D], visible bool [Lq, Lk]; 0 where a query sees nothing."""
    scores = torch.einsum("qhd,khd->hqk", q.double(), k.double()) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hqk,khd->qhd", weights, v.double())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [([3, 3], [3, 3]), ([4, 1, 6], [4, 1, 6]), ([2, 5], [7, 0]), ([1], [9])])
@pytest.mark.parametrize("limited", [False, True])
def test_attention_of_packed_rows(causal, lengths, limited):
    torch.manual_seed(0)
    queries, keys = lengths
    cu_q, cu_k = (torch.tensor([0, *x]).cumsum(0).int() for x in (queries, keys))
    same = queries == keys
    q, k, v = (torch.randn(n, 2, 8) for n in (sum(queries), sum(keys), sum(keys)))
    start = None if same else torch.tensor([max(a - b, 0) for a, b in zip(keys, queries)])
    key_len = torch.tensor([max(n - 1, 0) for n in keys]) if limited else None
    got = attention_reference(
        q, k, v, cu_q, cu_q if same else cu_k, max(queries), max(keys), causal=causal, q_start=start, key_len=key_len
    )
    for row, (a, b) in enumerate(zip(queries, keys)):
        position = torch.arange(a)[:, None] + (0 if start is None else int(start[row]))
        visible = torch.arange(b)[None] <= position if causal else torch.ones(a, b, dtype=torch.bool)
        visible = visible & (torch.arange(b) < (b if key_len is None else int(key_len[row])))
        mine, its = slice(cu_q[row], cu_q[row + 1]), slice(cu_k[row], cu_k[row + 1])
        assert close(got[mine], exact_attention(q[mine], k[its], v[its], visible)), row


@pytest.mark.parametrize("lengths", [[4, 4, 4], [0, 6, 4], [0, 0, 0], [9, -2, 3]])
def test_decode_attention_over_slots(lengths):
    torch.manual_seed(0)
    rows, columns = 3, 6
    keys, values = (torch.randn(rows * (columns + 1), 2, 8) for _ in range(2))
    own = torch.randperm(rows * (columns + 1)).view(rows, columns + 1).int()
    slots, table = own[:, columns], own[:, :columns].clone()
    table[0, :3] = own[2, :3]
    table[2, 1] = own[1, 1]
    seen = [table[row, : max(length, 0)].tolist() for row, length in enumerate(lengths)]
    unused = torch.ones(len(keys), dtype=torch.bool)
    unused[[slot for slots in seen for slot in slots]] = False
    keys[unused], values[unused] = math.nan, math.nan  # slots that must not be read
    for row, length in enumerate(lengths):
        table[row, max(length, 0) :] = 2**31 - 1  # no slot
    q, k, v = (torch.randn(rows, 2, 8) for _ in range(3))
    before = keys.clone()
    got = decode_attention_reference(q, k, v, keys, values, slots, table, torch.tensor(lengths, dtype=torch.int32))
    for row in range(rows):
        past = torch.tensor([*seen[row], int(slots[row])])
        everything = torch.ones(1, len(past), dtype=torch.bool)
        assert close(got[row : row + 1], exact_attention(q[row : row + 1], keys[past], values[past], everything))
    changed = (keys.nan_to_num() != before.nan_to_num()).flatten(1).any(1)
    assert sorted(changed.nonzero().flatten().tolist()) == sorted(slots.tolist()) and torch.equal(keys[slots], k)


def test_rows_that_share_a_slot_to_write_to_see_their_own_key():
    torch.manual_seed(0)
    pool, table = torch.randn(6, 2, 8), torch.tensor([[0, 1], [2, 3], [4, 4]], dtype=torch.int32)
    q, k, v = (torch.randn(3, 2, 8) for _ in range(3))
    slots, lengths = torch.tensor([5, 5, 5]), torch.tensor([2, 1, 0], dtype=torch.int32)
    got = decode_attention_reference(q, k, v, pool, pool.clone(), slots, table, lengths)
    apart = decode_attention_reference(
        q, k, v, *torch.cat((pool, pool)).expand(2, -1, -1, -1).clone(), torch.arange(6, 9), table, lengths
    )
    assert close(got, apart.double()) and torch.equal(got[2], v[2]) and any(torch.equal(pool[5], new) for new in k)


def test_cross_attention_serves_all_rows_of_a_source():
    torch.manual_seed(0)
    q, keys, values = torch.randn(8, 2, 8), torch.randn(12, 2, 8), torch.randn(12, 2, 8)
    table = torch.tensor([[3, 9, 1], [7, 7, 2], [0, 2**31 - 1, -5], [2**31 - 1] * 3], dtype=torch.int32)
    lengths, cu_rows = (torch.tensor(n, dtype=torch.int32) for n in ([3, 7, 1, 0], [0, 4, 4, 5, 7]))
    got = cross_decode_attention_reference(q, keys, values, table, lengths, cu_rows, 6)
    for row in range(7):
        source = 0 if row < 4 else 2 if row < 5 else 3
        slots = table[source, : lengths[source]].long()
        everything = torch.ones(1, len(slots), dtype=torch.bool)
        assert close(got[row : row + 1], exact_attention(q[row : row + 1], keys[slots], values[slots], everything))
    assert not got[5:].any()  # no keys, and no source
    nothing = torch.zeros_like(lengths)
    assert not cross_decode_attention_reference(q, keys[:0], values[:0], table, nothing, cu_rows, 6).any()
    assert not cross_decode_attention_reference(q, keys, values, table[:0], nothing[:0], cu_rows[:1], 6).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_layer_norm_of_constant_rows_is_the_shift(dtype):
    """eps 1e-12 vanishes in float16: statistics must not be taken there."""
    x = torch.tensor([[3.0] * 64, [1e4] * 64], dtype=dtype)
    weight, shift = torch.randn(64, dtype=dtype), torch.randn(64, dtype=dtype)
    got = add_layer_norm_reference(x, None, None, weight, shift, 1e-12)
    assert close(got, shift.double().expand(2, 64), 1e-2)


def test_add_layer_norm_is_its_equation():
    x, residual = torch.randn(5, 32), torch.randn(5, 32)
    bias, weight, shift = torch.randn(3, 32)
    total = (x + bias + residual).double()
    centred = total - total.mean(1, keepdim=True)
    exact = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double() + shift.double()
    assert close(add_layer_norm_reference(x, bias, residual, weight, shift, 1e-5), exact)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_transformers(name):
    from transformers.activations import ACT2FN

    x = torch.linspace(-8, 12, 401)
    assert close(activation_function(name)(x), ACT2FN[name](x).double(), 2e-6)


@pytest.mark.parametrize("form", ["symmetric", "zero points", "codebook"])
def test_int4_product_is_its_definition(form):
    torch.manual_seed(0)
    rows, columns, group = 6, 64, 32
    nibbles = torch.randint(0, 16, (rows, columns))
    scale, zero = torch.rand(rows, columns // group), torch.randint(0, 16, (rows, columns // group))
    book = torch.linspace(-1, 1, 16)
    weight = torch.empty(rows, columns, dtype=torch.float64)
    for r in range(rows):
        for c in range(columns):
            n, g = int(nibbles[r, c]), c // group
            value = {"symmetric": n - 8, "zero points": n - int(zero[r, g]), "codebook": float(book[n])}[form]
            weight[r, c] = value * float(scale[r, g])
    packed = (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).to(torch.uint8)
    x, bias = torch.randn(3, columns), torch.randn(rows)
    got = int4_matmul_reference(
        x, packed, scale, zero if form == "zero points" else None, bias, book if form == "codebook" else None
    )
    assert close(got, x.double() @ weight.T + bias.double(), 1e-4)


@pytest.mark.parametrize("name", LARGE)
def test_the_calls_that_are_large_on_a_gpu_agree_with_small_ones(name):
    large, small = LARGE[name](3 * 128, torch.device("cpu"), torch.float32)
    assert close(large, small.double()) and float(small.abs().max()) > 0.1


def test_activations_after_a_product_use_their_kernels(monkeypatch):
    """Where kernels would run; recorders stand in for them here."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 8), torch.randn(6, 8), torch.randn(6)
    called = []
    for op in (ops.bias_gelu, ops.linear_gelu):

        def kernel(*arguments, op=op):
            called.append(op.name)
            return op.reference(*arguments)

        monkeypatch.setitem(vars(op), "triton", kernel)
        monkeypatch.setitem(vars(op), "why_not", lambda *arguments, **named: None)
    before = ops.set_backend("triton")
    try:
        for activation, name in (("gelu", "linear_gelu"), ("gelu_new", "bias_gelu"), (None, None)):
            called.clear()
            assert close(
                ops.linear(x, weight, bias, activation), linear_reference(x, weight, bias, activation).double()
            )
            assert called == ([name] if name else [])
        called.clear()
        ops.linear(x.requires_grad_(), weight, bias, "gelu").sum().backward()
        assert called == ["bias_gelu"] and x.grad is not None
    finally:
        ops.set_backend(before)
