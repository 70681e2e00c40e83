"""top_log_probs: numerical properties of the reference, and arguments that raise."""

from __future__ import annotations

import math

import pytest
import torch
from bertgen.kernels.top_log_probs import top_log_probs_reference, top_log_probs_triton

SCORES = torch.zeros(4, 9)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("rows", "count", "group"), [(6, 1, 1), (6, 5, 1), (6, 4, 2), (6, 40, 6), (6, 64, 3)])
def test_top_log_probs_are_the_best_of_the_sums(rows, count, group):
    generator = seeded(23)
    scores = torch.randn(rows, 30, generator=generator)
    offsets = torch.randn(rows, generator=generator)
    values, indices = top_log_probs_reference(scores, count, offsets, group)
    sums = (scores.log_softmax(-1) + offsets[:, None]).view(rows // group, -1)
    expected = sums.topk(count)
    assert torch.equal(indices, expected.indices) and torch.equal(values, expected.values)


def test_equal_scores_come_in_the_order_of_their_tokens():
    scores = torch.tensor([[0.0, 1.0, -0.0, 1.0, -math.inf, 0.0, math.nan], [2.0] * 7]).repeat(2, 1)
    assert top_log_probs_reference(scores, 7)[1][0].tolist() == [6, 1, 3, 0, 2, 5, 4]
    assert top_log_probs_reference(scores[1:2], 7)[1][0].tolist() == list(range(7))
    assert top_log_probs_reference(scores[[1, 1, 1]], 10, None, 3)[1][0].tolist() == list(range(10))
    assert top_log_probs_reference(scores[[1, 1]], 9, torch.tensor([-math.inf, 0.0]), 2)[1][0].tolist() == [
        7, 8, 9, 10, 11, 12, 13, 0, 1,
    ]  # fmt: skip


def test_rows_without_hope_lose_to_all_others():
    scores = torch.full((2, 9), -math.inf)
    scores[1, 3] = 1.0
    values, indices = top_log_probs_reference(scores, 12, torch.zeros(2), 2)
    assert values[0].tolist() == [0.0] + [-math.inf] * 11
    assert int(indices[0, 0]) == 12 and len(set(indices[0].tolist())) == 12
    assert 0 <= int(indices.min()) and int(indices.max()) < 18


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SCORES, 0), "count is 0, it must be from 1 to 9"),
        ((SCORES, 10), "count is 10, it must be from 1 to 9"),
        ((torch.zeros(4, 90), 65), "count is 65, it must be from 1 to 64"),
        ((SCORES, 2, None, 3), "scores have 4 rows, which is not a multiple of group 3"),
        ((torch.zeros(34, 2), 2, None, 17), "group is 17, it must be from 1 to 16"),
        ((SCORES, 2, torch.zeros(3)), r"offsets must be \[4\], not \[3\]"),
        ((SCORES, 2, torch.zeros(4).half()), "offsets is torch.float16; supported are float32"),
        ((SCORES[0], 2), r"scores must be \[R, V\], not \(9,\)"),
        ((SCORES.int(), 2), "scores are torch.int32"),
        ((SCORES[:, :0], 1), "there is no token to choose"),
        ((SCORES.clone().requires_grad_(), 1), "require a gradient"),
        ((torch.empty(1, 2**18 + 1), 1), "at most 262144 are supported"),
    ],
)
@pytest.mark.parametrize("call", [top_log_probs_reference, top_log_probs_triton])
def test_top_log_probs_refuses(call, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(*arguments)


def test_the_kernel_refuses_what_it_cannot_read():
    wide = torch.zeros(4, 18)
    with pytest.raises(ValueError, match="scores must be contiguous, its stride is 2"):
        top_log_probs_triton(wide[:, ::2], 1)
    with pytest.raises(ValueError, match="scores are float64"):
        top_log_probs_triton(wide.double(), 1)
