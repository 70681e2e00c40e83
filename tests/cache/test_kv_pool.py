"""The pool of slots: how it grows, and its scratch slot."""

import pytest
import torch

from bertgen.cache import kv_pool
from bertgen.cache.kv_pool import KVPool


@pytest.fixture(params=["in place", "by copying"], autouse=True)
def growth(request, monkeypatch):
    """A pool grows by copying on other devices, and where the system reserves no memory."""
    if request.param == "by copying":
        monkeypatch.setattr(kv_pool, "reserved", lambda count, dtype: None)
    return request.param


def pool(limit=40, full=False):
    return KVPool(2, torch.zeros(2, 3), limit, full)


def test_it_grows_and_keeps_what_it_holds():
    one = pool()
    assert one.bytes == 0
    one.reserve(4)
    one.keys[1][3] = 1.0
    one.reserve(5)
    assert [len(t) for t in (*one.keys, *one.values)] == [6] * 4  # by half
    assert one.keys[1].sum() == 6 and one.keys[1][3].all()
    one.reserve(40)
    assert len(one.values[0]) == 40 and one.bytes == 4 * 40 * 6 * 4


def test_it_grows_in_place_where_memory_is_reserved(growth):
    one, whole = pool(), pool(full=True)
    one.reserve(4), one.add_scratch()
    before = [t.data_ptr() for t in (*one.keys, *one.values)]
    one.reserve(40)
    assert (before == [t.data_ptr() for t in (*one.keys, *one.values)]) is (growth == "in place")
    assert one.bytes == whole.bytes == 4 * 41 * 6 * 4, "the slots there are, written or not"


def test_tensors_are_no_views_of_autograd():
    """A view that was made without gradients could not be written with them."""
    with torch.no_grad():
        one = pool()
        one.reserve(4)
    one.keys[0].index_copy_(0, torch.tensor([1]), torch.ones(1, 2, 3, requires_grad=True))
    assert one.keys[0].requires_grad and not one.keys[1].requires_grad


def test_the_scratch_slot_comes_after_the_slots_of_rows_and_is_not_kept():
    one = pool()
    one.add_scratch()
    address = one.scratch.data_ptr()
    assert one.scratch.tolist() == [0] and len(one.keys[0]) == 1
    one.keys[0][one.scratch.long()] = torch.nan
    one.reserve(4)
    assert one.scratch.tolist() == [4] and len(one.keys[0]) == 5 and not one.keys[0].isnan().any()
    one.add_scratch()
    assert len(one.keys[0]) == 5 and one.scratch.data_ptr() == address


def test_a_full_pool_does_not_move():
    one = pool(full=True)
    assert one.scratch.tolist() == [40] and len(one.keys[0]) == 41
    before = [t.data_ptr() for t in one.keys]
    one.reserve(40), one.add_scratch(), one.fill()
    assert [t.data_ptr() for t in one.keys] == before
    other = pool()
    other.reserve(7)
    other.fill()
    assert other.scratch.tolist() == [40] and len(other.values[1]) == 41
    assert pool(limit=0, full=True).bytes == 0
