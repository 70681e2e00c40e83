"""Packing: padded batches become one run of real tokens, and come back."""

from __future__ import annotations

import pytest
import torch

from bertgen.packing import Packing, padded

CPU = torch.device("cpu")
MASKS = {
    "right": [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]],
    "left": [[0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]],
    "gaps": [[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]],
    "an empty row": [[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]],
}


@pytest.mark.parametrize("name", MASKS)
def test_packed_tokens_are_the_real_ones_in_order(name):
    mask = torch.tensor(MASKS[name])
    packing = Packing.of_mask(mask, 3, 4, CPU)
    x = torch.arange(24.0).view(3, 4, 2)
    expected = torch.cat([x[row][mask[row].bool()] for row in range(3)])
    assert torch.equal(packing.pack(x), expected)
    assert torch.equal(packing.unpack(packing.pack(x)), x * mask[:, :, None])
    assert torch.equal(packing.mask(), mask.bool())


@pytest.mark.parametrize("name", MASKS)
def test_rows_begin_where_the_lengths_before_them_end(name):
    mask = torch.tensor(MASKS[name])
    packing = Packing.of_mask(mask, 3, 4, CPU)
    starts, longest = packing.joined([1, 1, 1])
    assert starts.tolist() == [0, *mask.sum(1).cumsum(0).tolist()] and starts.dtype == torch.int32
    assert longest == int(mask.sum(1).max())


@pytest.mark.parametrize("mask", [None, torch.ones(2, 3)])
def test_a_batch_without_padding_is_not_indexed(mask):
    packing = Packing.of_mask(mask, 2, 3, CPU)
    x = torch.arange(6).view(2, 3)
    assert packing.index is None and packing.mask() is None
    assert packing.pack(x).tolist() == [0, 1, 2, 3, 4, 5] and torch.equal(packing.unpack(packing.pack(x)), x)


def test_joined_rows_are_longer_rows_of_the_same_tokens():
    packing = Packing.of_mask(torch.tensor(MASKS["right"]), 3, 4, CPU)
    starts, longest = packing.joined([2, 1])
    assert starts.tolist() == [0, 4, 8] and longest == 4
    starts, longest = packing.joined([3])
    assert starts.tolist() == [0, 8] and longest == 8


def test_gradients_pass_through_packing():
    packing = Packing.of_mask(torch.tensor(MASKS["gaps"]), 3, 4, CPU)
    x = torch.randn(3, 4, 2, requires_grad=True)
    packing.unpack(packing.pack(x)).sum().backward()
    assert torch.equal(x.grad[:, :, 0], torch.tensor(MASKS["gaps"]).float())


def test_rows_of_ids_are_filled_up_on_the_right():
    ids, mask = padded([[5, 6, 7], [8], []], 9, CPU)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9], [9, 9, 9]] and ids.dtype == torch.int64
    assert mask.tolist() == [[True] * 3, [True, False, False], [False] * 3]
