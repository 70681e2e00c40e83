"""The pool of slots: how it grows, and its scratch slot."""

import torch

from bertgen.cache.kv_pool import KVPool


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
