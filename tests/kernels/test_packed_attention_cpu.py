"""attention of the C++ extension against its reference and its equation in float64."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from bertgen.kernels.attention import attention_reference
from bertgen.kernels.attention_cases import CHECK
from bertgen.kernels.attention_cpp import attention_cpp, why_not_attention_cpp
from bertgen.kernels.checks import Case, check_case, difference

from bertgen import ops
from bertgen.kernels import cpp
from bertgen.ops import extension

pytestmark = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def packed(queries, keys=None, heads=2, width=64, dtype=torch.float32, seed=0, **options):
    """Arguments of attention: sequences of these numbers of queries and keys (None: as many)."""
    torch.manual_seed(seed)
    keys = queries if keys is None else keys
    q, k, v = (torch.randn(sum(n), heads, width).to(dtype) for n in (queries, keys, keys))
    cu_q, cu_k = (torch.tensor([0, *accumulate(n)], dtype=torch.int32) for n in (queries, keys))
    longest = {"max_q": max(queries, default=0), "max_k": max(keys, default=0)}
    return {"q": q, "k": k, "v": v, "cu_q": cu_q, "cu_k": cu_k, **longest, **options}


def exact(arguments):
    """The equation in float64, sequence by sequence."""
    q, k, v = (arguments[name].double() for name in "qkv")
    out = torch.zeros_like(q)
    starts = zip(arguments["cu_q"], arguments["cu_q"][1:], arguments["cu_k"], arguments["cu_k"][1:])
    for b, (i, query, j, key) in enumerate(starts):
        rows, columns = query - i, key - j
        visible = torch.ones(rows, columns, dtype=torch.bool)
        if arguments.get("causal"):
            start = 0 if arguments.get("q_start") is None else int(arguments["q_start"][b])
            visible &= torch.arange(columns) <= start + torch.arange(rows)[:, None]
        if arguments.get("key_len") is not None:
            visible &= torch.arange(columns) < arguments["key_len"][b]
        if arguments.get("key_mask") is not None:
            visible &= arguments["key_mask"][b, :columns]
        scores = torch.einsum("ihd,jhd->hij", q[i:query], k[j:key]) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~visible, -math.inf).softmax(-1).nan_to_num(0.0)
        out[i:query] = torch.einsum("hij,jhd->ihd", weights, v[j:key])
    return out


def check(**arguments):
    assert difference(attention_cpp(**arguments), attention_reference(**arguments), exact(arguments)) is None


# In float32 torch adds the products of so few tokens in an order with smaller errors than that of more tokens, which is
# the order of the extension; test_scores_of_all_sizes has such scores of more tokens.
FEW_TOKENS = ("scores far below 0", "scores far apart")


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(c, d) for c in CHECK.cases for d in DTYPES if c.name not in FEW_TOKENS or d != torch.float32],
    ids=lambda value: value.name if isinstance(value, Case) else str(value),
)
def test_the_cases_of_attention(case, dtype):
    def computed(dropout=0.0, **arguments):
        if why_not_attention_cpp(**arguments, dropout=dropout) is not None:
            return CHECK.reference(**arguments, dropout=dropout)
        return attention_cpp(**arguments)

    assert check_case(CHECK, Case(case.name, case.make), dtype, CPU, computed) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_long_and_short_sequences(causal, dtype):
    check(**packed([700, 1, 8, 0, 9, 257, 16], dtype=dtype, causal=causal))


@pytest.mark.parametrize("width", [1, 5, 8, 13, 63, 65, 72, 200])
def test_widths(width):
    check(**packed([7, 40, 150], [130, 9, 64], width=width))


@pytest.mark.parametrize("causal", [False, True])
def test_any_mask(causal):
    mask = torch.rand(4, 210) < 0.5
    mask[1], mask[2, :150] = False, False
    arguments = packed([33, 5, 180, 17], [200, 9, 190, 17], causal=causal, key_mask=mask)
    arguments["q_start"] = torch.tensor([160, 4, 2, 0]) if causal else None
    arguments["key_len"] = torch.tensor([190, 9, 500, 12], dtype=torch.int32)
    check(**arguments | {"key_mask": mask[:, :200]})
    visible = torch.cat(
        [mask[b, :n] & (torch.arange(n) < arguments["key_len"][b]) for b, n in enumerate([200, 9, 190, 17])]
    )
    hidden = {name: arguments[name].masked_fill(~visible[:, None, None], math.nan) for name in "kv"}
    assert torch.equal(attention_cpp(**arguments), attention_cpp(**arguments | hidden))  # not even read


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_neither_other_sequences_nor_threads_change_a_bit(causal, dtype):
    lengths, before = [300, 3, 77, 64, 1, 18], torch.get_num_threads()
    arguments = packed(lengths, heads=5, dtype=dtype, causal=causal)
    whole = attention_cpp(**arguments)
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            assert torch.equal(attention_cpp(**arguments), whole)
            for first, end in zip(arguments["cu_q"], arguments["cu_q"][1:]):
                own = {name: arguments[name][first:end] for name in "qkv"}
                cu, length = torch.tensor([0, end - first], dtype=torch.int32), int(end - first)
                alone = attention_cpp(**own, cu_q=cu, cu_k=cu, max_q=length, max_k=length, causal=causal)
                assert torch.equal(alone, whole[first:end])
    finally:
        torch.set_num_threads(before)


def test_neither_other_queries_nor_heads_change_a_bit():
    arguments = packed([90], [150], heads=3, causal=True, q_start=torch.tensor([60]))
    whole = attention_cpp(**arguments)
    for i in (0, 1, 15, 16, 47, 89):
        one = {"q": arguments["q"][i : i + 1], "cu_q": torch.tensor([0, 1], dtype=torch.int32), "max_q": 1}
        assert torch.equal(attention_cpp(**arguments | one | {"q_start": torch.tensor([60 + i])}), whole[i : i + 1])
    head = {name: arguments[name][:, 1:2] for name in "qkv"}
    assert torch.equal(attention_cpp(**arguments | head), whole[:, 1:2])


@pytest.mark.parametrize("shift", [0.0, 3.6])
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 30.0, 1e3])
def test_scores_of_all_sizes(scale, shift):
    """At 1e3 the scores reach 1e7: one key has all the weight. With a shift all are far below 0."""
    arguments = packed([40, 300])
    check(**arguments | {"q": arguments["q"] * scale + shift, "k": arguments["k"] * scale - shift})


def test_what_is_not_finite_is_where_torch_has_it():
    arguments = packed([20, 5, 5, 9], heads=1)
    arguments["k"][2, 0, 3], arguments["v"][21, 0, 5], arguments["k"][26, 0, 7] = math.nan, math.inf, math.inf
    arguments["q"][33] = math.nan
    got, plain = attention_cpp(**arguments), attention_reference(**arguments)
    assert torch.equal(got.isnan(), plain.isnan()) and torch.equal(got.isinf(), plain.isinf())


def test_what_cannot_be_represented_in_16_bits():
    """Results beyond the largest float16 are infinite, and tiny ones are rounded to even, as by torch."""
    arguments = packed([1] * 6, width=2, heads=1, dtype=torch.float16)
    arguments["v"].copy_(
        torch.tensor([65504.0, -65504.0, 6e-8, 3e-8, 1.0, math.inf]).half()[:, None, None].expand(6, 1, 2)
    )
    assert torch.equal(attention_cpp(**arguments), arguments["v"])


def test_the_operator_computes_inference_in_cpp(monkeypatch):
    arguments = packed([5, 9], causal=True)
    calls = []
    monkeypatch.setitem(vars(ops.attention), "cpp", lambda *a, **b: calls.append(1) or attention_cpp(*a, **b))
    before = ops.set_backend("cpp")
    try:
        ops.attention(**arguments)
        assert calls == [1]
        leaf = arguments["q"].requires_grad_()
        ops.attention(**arguments).sum().backward()
        with torch.no_grad():
            ops.attention(**arguments, dropout=0.5)
            assert calls == [1] and leaf.grad is not None
            assert torch.equal(ops.attention(**arguments), attention_cpp(**arguments)) and calls == [1, 1]
    finally:
        ops.set_backend(before)
    for change, reason in [
        ({"q": arguments["q"].detach().double()}, "torch.float64 is none of float32, bfloat16 and float16"),
        ({"q": arguments["q"].detach().half()}, "q is torch.float16, k torch.float32 and v torch.float32"),
        ({"dropout": 0.1, "q": arguments["q"].detach()}, "it drops no weights"),
        ({}, "a gradient is required, and the function has no backward"),
        ({name: arguments[name].detach()[..., :0] for name in "qkv"}, "the head dimension is 0"),
    ]:
        assert why_not_attention_cpp(**arguments | change) == reason


def test_what_does_not_fit_is_refused():
    arguments = packed([5, 9], [7, 12])
    q, k, v, cu_q, cu_k = (arguments[name] for name in ("q", "k", "v", "cu_q", "cu_k"))
    for change, message in [
        ({"k": k.half()}, "k has dtype float16, and q another one"),
        ({"q": q.double()}, "q has dtype float64, not float32, bfloat16 or float16"),
        ({"q": q[0]}, "q has 2 dimensions, not 3"),
        ({"v": v[:-1]}, "v has size 18 in dimension 0, not 19"),
        ({"k": k[:, :1]}, "k has size 1 in dimension 1, not 2"),
        ({"k": k[..., ::2]}, "k has size 32 in dimension 2, not 64"),
        ({"cu_q": cu_q.long()}, "cu_q has dtype int64, not int32"),
        ({"cu_q": cu_q + 1}, "cu_q goes from 1 to 15, not from 0 to 14"),
        ({"cu_k": cu_k[:-1]}, "cu_k has size 2 in dimension 0, not 3"),
        ({"cu_k": torch.tensor([0, 20, 19], dtype=torch.int32)}, r"cu_k\[2\] is 19, less than 20 before it"),
        ({"cu_q": cu_q[:0], "cu_k": cu_k[:0]}, "cu_q is not a vector of at least one number"),
        ({"q_start": torch.zeros(3)}, "q_start has size 3 in dimension 0, not 2"),
        ({"key_len": torch.zeros(1)}, "key_len has size 1 in dimension 0, not 2"),
        ({"key_mask": torch.ones(2, 11, dtype=torch.bool)}, "key_mask is for 11 keys, a sequence has 12"),
        ({"key_mask": torch.ones(2, 12)}, "key_mask has dtype float32, not bool"),
        ({name: arguments[name][..., :0] for name in "qkv"}, "the head dimension is 0"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            attention_cpp(**arguments | change)
    other = {
        "k": k,
        "v": v,
        "cu_q": cu_q,
        "cu_k": cu_k,
        "causal": False,
        "q_start": None,
        "key_len": None,
        "mask": None,
    }
    for out, message in [
        (q, "out shares memory with another argument"),
        (torch.empty(14, 2, 65)[..., :64], "out is not contiguous"),
        (torch.empty(14, 2, 63), "out has size 63 in dimension 2, not 64"),
        (torch.empty(14, 2, 64).half(), "out has dtype float16, and q another one"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            cpp.packed_attention(q, *other.values(), out)
