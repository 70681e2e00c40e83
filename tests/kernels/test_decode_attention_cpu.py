"""decode_attention and cross_decode_attention of the C++ extension against their equations in float64."""

from __future__ import annotations

import math

import pytest
import torch
from bertgen.kernels.checks import difference
from bertgen.kernels.decode_attention_cpp import why_not_decode_attention_cpp

from bertgen import ops
from bertgen.kernels import cpp
from bertgen.ops import extension

pytestmark = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = [1, 2, 7, 8, 9, 16, 24, 33, 63, 64, 65, 80, 127, 128, 200]


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


class Arguments:
    """Arguments of a function, in the order of NAMES; those in HEADS are always float32 for the function itself."""

    HEADS: tuple[str, ...]
    NAMES: tuple[str, ...]

    def given(self, **other):
        return {name: other.get(name, getattr(self, name)) for name in self.NAMES}


class Self(Arguments):
    """Arguments of decode_attention over pools of `dtype` with poison in each slot that must not be read."""

    HEADS = ("q", "k", "v")
    NAMES = (*HEADS, "key_pool", "value_pool", "slots", "table", "lengths")

    def __init__(self, lengths, heads, width, seed=0, scale=1.0, poison=math.nan, dtype=torch.float32):
        torch.manual_seed(seed)
        rows, capacity = len(lengths), max(lengths, default=0) + 3
        self.q, self.k, self.v = torch.randn(rows, 3, heads, width).mul(scale).unbind(1)
        slots = torch.randperm(max(1, rows * capacity) + 5)[: rows * capacity].view(rows, capacity).int()
        self.key_pool = torch.full((max(1, rows * capacity) + 5, heads, width), poison, dtype=dtype)
        self.value_pool = self.key_pool.clone()
        self.table = torch.full((rows, capacity), 2147480000, dtype=torch.int32)
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        self.slots = slots[:, -1].contiguous()
        for row, length in enumerate(lengths):
            self.table[row, :length] = slots[row, :length]
            self.key_pool[slots[row, :length]] = (torch.randn(length, heads, width) * scale).to(dtype)
            self.value_pool[slots[row, :length]] = torch.randn(length, heads, width).to(dtype)

    def call(self, **other):
        given = self.given(**other)
        out = torch.full(given["q"].shape, math.nan)
        cpp.decode_attention(*given.values(), out)
        return out

    def expected(self, dtype):
        out = torch.empty(self.q.shape, dtype=dtype)
        for row, length in enumerate(self.lengths):
            history = self.table[row, :length]
            new = (x[row : row + 1].to(self.key_pool) for x in (self.k, self.v))  # rounded as the pools are
            keys, values = (torch.cat((p[history], x)).to(dtype) for p, x in zip((self.key_pool, self.value_pool), new))
            out[row] = attend(self.q[row].to(dtype), keys, values)
        return out


class Cross(Arguments):
    """Arguments of cross_decode_attention: the rows of each source, and each source's length."""

    HEADS = ("q",)
    NAMES = ("q", "key_pool", "value_pool", "table", "lengths", "cu_rows")

    def __init__(self, rows, lengths, heads, width, seed=0, poison=math.nan, dtype=torch.float32):
        torch.manual_seed(seed)
        sources, most = len(lengths), max(lengths, default=0) + 2
        self.q = torch.randn(sum(rows), heads, width)
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        self.cu_rows = torch.tensor([0, *torch.tensor(rows).cumsum(0)], dtype=torch.int32)
        slots = torch.randperm(sources * most + 1)[: sources * most].view(sources, most).int()
        self.key_pool = torch.full((sources * most + 1, heads, width), poison, dtype=dtype)
        self.value_pool = self.key_pool.clone()
        self.table = torch.full((sources, most), -7, dtype=torch.int32)
        for source, length in enumerate(lengths):
            self.table[source, :length] = slots[source, :length]
            self.key_pool[slots[source, :length]] = torch.randn(length, heads, width).to(dtype)
            self.value_pool[slots[source, :length]] = torch.randn(length, heads, width).to(dtype)

    def call(self, **other):
        given = self.given(**other)
        out = torch.full(given["q"].shape, math.nan)
        cpp.cross_decode_attention(*given.values(), out)
        return out

    def expected(self, dtype):
        out = torch.zeros(self.q.shape, dtype=dtype)
        for source, length in enumerate(self.lengths):
            history = self.table[source, :length]
            for row in range(self.cu_rows[source], self.cu_rows[source + 1] if length else 0):
                keys, values = self.key_pool[history].to(dtype), self.value_pool[history].to(dtype)
                out[row] = attend(self.q[row].to(dtype), keys, values)
        return out


def attend(q, keys, values):
    """The equation: q [H, D], keys and values [T, H, D]"""
    weights = (torch.einsum("hd,thd->ht", q, keys) / math.sqrt(q.shape[-1])).softmax(1)
    return torch.einsum("ht,thd->hd", weights, values)


def check(case):
    expected = case.expected(torch.float32), case.expected(torch.float64)  # before the call: it writes
    assert difference(case.call(), *expected) is None


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_head_dimensions(dtype, width):
    check(Self([0, 1, 5, 8, 40], 3, width, dtype=dtype))
    check(Cross([1, 3, 2], [4, 17, 0], 3, width, dtype=dtype))


@pytest.mark.parametrize("rows", [0, 1, 5, 64])
@pytest.mark.parametrize("heads", [1, 12])
def test_numbers_of_rows(rows, heads):
    check(Self([(7 * row) % 33 for row in range(rows)], heads, 64))
    check(Cross([1 + row % 4 for row in range(rows)], [(5 * row) % 29 for row in range(rows)], heads, 64))


@pytest.mark.parametrize("length", [0, 1, 6, 7, 8, 9, 15, 16, 17, 512])
def test_lengths(length):
    check(Self([length] * 2, 2, 64))
    check(Cross([2, 1], [length, 3], 2, 64))


def test_many_rows_of_one_source():
    check(Cross([300, 0, 5], [130, 9, 0], 3, 64))


@pytest.mark.parametrize("heads", [1, 2, 5, 12])
def test_threads_do_not_change_a_bit(heads):
    mine, cross = Self([600, 3, 77], heads, 64), Cross([4, 1], [600, 20], heads, 64)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            results.append((mine.call(), cross.call()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, results[0][0]) and torch.equal(b, results[0][1]) for a, b in results)


def test_the_other_rows_do_not_change_a_bit():
    case = Self([40, 7, 300, 0], 12, 64)
    whole = case.call()
    for row in range(4):
        one = slice(row, row + 1)
        alone = {name: getattr(case, name)[one] for name in ("q", "k", "v", "slots", "table", "lengths")}
        assert torch.equal(case.call(**alone), whole[one])


@pytest.mark.parametrize("width", [20, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_other_rows_of_a_source_do_not_change_a_bit(dtype, width):
    """Rows are computed in fours, twos and ones."""
    case = Cross([7], [37], 3, width, dtype=dtype)
    whole = case.call()
    for first, last in [(0, 1), (0, 2), (0, 3), (0, 4), (3, 7), (4, 7), (6, 7)]:
        part = case.call(q=case.q[first:last], cu_rows=int32(0, last - first))
        assert torch.equal(part, whole[first:last])


@pytest.mark.parametrize("width", [3, 64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slots", [torch.int32, torch.int64])
def test_what_is_written(slots, dtype, width):
    case = Self([3, 0, 9], 4, width, poison=5.0, dtype=dtype)
    case.k[0, 0, :3] = torch.tensor([1e-7, 1.00390625, 70000.0])  # subnormal, a tie, infinite in float16
    keys, values = case.key_pool.clone(), case.value_pool.clone()
    case.call(slots=case.slots.to(slots))
    keys[case.slots.long()], values[case.slots.long()] = case.k.to(dtype), case.v.to(dtype)
    assert torch.equal(case.key_pool, keys) and torch.equal(case.value_pool, values)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_operators_in_16_bits_round_once(dtype):
    """They are the functions on widened queries, and at least as near to float64 as plain torch in this dtype."""
    mine, cross = Self([3, 0, 90, 300], 4, 64, dtype=dtype), Cross([2, 1, 3], [90, 0, 300], 4, 64, dtype=dtype)
    mine.q, mine.k, mine.v, cross.q = (x.to(dtype) for x in (mine.q, mine.k, mine.v, cross.q))
    for case, op in ((mine, ops.decode_attention), (cross, ops.cross_decode_attention)):
        plain, exact = case.expected(dtype), case.expected(torch.float64)
        out = op(**case.given(), **({"max_rows": 3} if case is cross else {}))
        assert torch.equal(out, case.call(**{name: getattr(case, name).float() for name in case.HEADS}).to(dtype))
        assert (out - exact).abs().max() <= (plain - exact).abs().max()


def test_operators_take_one_dtype_of_three():
    case = Self([3, 0, 9], 4, 64)
    assert why_not_decode_attention_cpp(*case.given().values()) is None
    mixed = case.given(key_pool=case.key_pool.bfloat16())
    assert why_not_decode_attention_cpp(*mixed.values()) == "torch.float32 and torch.bfloat16 are different"
    wide = case.given(q=case.q.double())
    assert "torch.float64 is not float32, bfloat16" in why_not_decode_attention_cpp(*wide.values())


def test_rows_may_share_a_slot_that_no_row_reads():
    case = Self([3, 1, 9], 4, 64)
    expected = case.expected(torch.float32), case.expected(torch.float64)
    assert difference(case.call(slots=case.slots[:1].expand(3).contiguous()), *expected) is None


def test_strides():
    """Slices of a fused projection; heads before rows; rows that are all the same."""
    case = Self([3, 0, 9], 4, 64)
    expected = case.expected(torch.float32), case.expected(torch.float64)
    assert not case.q.is_contiguous()
    turned = {name: getattr(case, name).transpose(0, 1).contiguous().transpose(0, 1) for name in "qkv"}
    assert torch.equal(case.call(**turned), case.call()) and difference(case.call(), *expected) is None
    case.q = case.q[:1].expand(3, -1, -1)
    assert difference(case.call(), case.expected(torch.float32), case.expected(torch.float64)) is None
    unaligned = torch.randn(3 * 4 * 64 + 1)[1:].view(3, 4, 64)
    assert torch.equal(case.call(k=unaligned), case.call(k=unaligned.clone()))
    cross = Cross([2, 1], [5, 6], 4, 64)
    fused = torch.stack((cross.q, cross.q), 1)[:, 1]
    assert not fused.is_contiguous() and torch.equal(cross.call(q=fused), cross.call())


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 30.0, 1e3])
def test_scores_of_all_sizes(scale):
    """At 1e3 the scores reach 1e7: one key has all the weight."""
    check(Self([1, 40, 300], 2, 64, scale=scale))


def test_what_is_not_finite_is_where_torch_has_it():
    case = Self([5, 5, 5, 5], 2, 64, poison=0.0)
    case.key_pool[case.table[0, 2].item(), 0, 3] = math.nan
    case.value_pool[case.table[1, 2].item(), 1, 5] = math.inf
    case.key_pool[case.table[2, 2].item(), 0, 3] = math.inf
    case.q[3, 1] = math.nan
    check(case)


def test_what_does_not_fit_is_refused_and_touches_nothing():
    case, cross = Self([3, 0, 9], 4, 64, poison=5.0), Cross([2, 1], [5, 6], 4, 64)
    pools = case.key_pool.clone(), case.value_pool.clone()
    slots, table = case.key_pool.shape[0], case.table.clone()
    table[2, 8] = slots
    below = case.table.clone()
    below[0, 2] = -1
    far = cross.table.clone()
    far[1, 5] = 2**31 - 1
    width = case.table.shape[1]
    for refused, message in [
        (lambda: case.call(table=table), rf"table\[2, 8\] is slot {slots}, the pool has {slots}"),
        (lambda: case.call(table=below), rf"table\[0, 2\] is slot -1, the pool has {slots}"),
        (lambda: case.call(slots=int32(0, slots, 1)), rf"slots\[1\] is slot {slots}, the pool has {slots}"),
        (lambda: case.call(slots=torch.tensor([0, 1, -(2**40)])), r"slots\[2\] is slot -1099511627776, the pool"),
        (lambda: case.call(lengths=int32(0, 0, width + 1)), rf"lengths\[2\] is {width + 1}, the table holds {width}"),
        (lambda: case.call(lengths=int32(0, -1, 0)), r"lengths\[1\] is -1"),
        (lambda: case.call(q=case.q.double()), "q has dtype float64, not float32"),
        (lambda: case.call(k=case.k[:2]), "k has size 2 in dimension 0, not 3"),
        (lambda: case.call(v=case.v[..., ::2]), "v has size 32 in dimension 2, not 64"),
        (lambda: case.call(q=case.q.transpose(1, 2).contiguous().transpose(1, 2)), "last dimension of q is not cont"),
        (lambda: case.call(key_pool=case.key_pool.double()), "key_pool has dtype float64, not float32, bfloat16 or"),
        (lambda: case.call(value_pool=case.value_pool.half()), "value_pool has dtype float16, not float32"),
        (lambda: case.call(value_pool=case.value_pool[:-1]), f"value_pool has size {slots - 1} in dimension 0"),
        (lambda: case.call(key_pool=case.key_pool[:, :, :32]), "key_pool has size 32 in dimension 2, not 64"),
        (lambda: case.call(key_pool=case.key_pool[0]), "key_pool has 2 dimensions, not 3"),
        (lambda: case.call(table=case.table.long()), "table has dtype int64, not int32"),
        (lambda: case.call(q=case.q[..., :0], k=case.k[..., :0], v=case.v[..., :0]), "the head dimension is 0"),
        (lambda: cross.call(table=far), rf"table\[1, 5\] is slot {2**31 - 1}, the pool has"),
        (lambda: cross.call(cu_rows=int32(0, 2)), "cu_rows has size 2 in dimension 0, not 3"),
        (lambda: cross.call(cu_rows=int32(0, 2, 4)), "cu_rows goes from 0 to 4, not from 0 to 3"),
        (lambda: cross.call(cu_rows=int32(0, 5, 3)), r"cu_rows\[2\] is 3, less than 5 before it"),
        (lambda: cross.call(cu_rows=int32(1, 2, 3)), "cu_rows goes from 1"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            refused()
    assert torch.equal(case.key_pool, pools[0]) and torch.equal(case.value_pool, pools[1])


def test_no_sources():
    assert Cross([], [], 2, 64).call().shape == (0, 2, 64)
