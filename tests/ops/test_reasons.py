"""Which arguments Triton kernels decline, and the reasons."""

from __future__ import annotations

import pytest
import torch

from bertgen import ops
from bertgen.ops.reasons import (
    why_not_attention,
    why_not_decode_attention,
    why_not_int4_matmul,
    why_not_scores,
)

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", FLOATS)
def test_kernels_take_floats_and_heads_up_to_their_limit(dtype):
    q, scores = torch.zeros(2, 1, 128, dtype=dtype), torch.zeros(2, 9, dtype=dtype)
    assert why_not_attention(q, q, q) is why_not_decode_attention(q, q, q) is None
    assert why_not_scores(scores) is why_not_int4_matmul(scores, scores, scores) is None


def test_kernels_decline_other_dtypes():
    reason = "torch.float64 is none of float32, float16 and bfloat16"
    x = torch.zeros(2, 1, 8, dtype=torch.float64)
    assert why_not_attention(x, x, x) == why_not_decode_attention(x, x, x) == reason
    assert why_not_scores(x[0]) == why_not_int4_matmul(x[0], x[0], x[0]) == reason


def test_attention_declines_wide_heads_and_masks():
    q = torch.zeros(2, 1, 129)
    reason = "the head dimension is 129, the kernel takes up to 128"
    assert why_not_attention(q, q, q) == why_not_decode_attention(q, q, q) == reason
    mask = torch.ones(2, 4, dtype=torch.bool)
    assert "no mask that lengths cannot express" in why_not_attention(q[..., :8], q, q, key_mask=mask)


def test_the_int4_product_declines_8_bits():
    x = torch.zeros(2, 64)
    assert why_not_int4_matmul(x, x, x, int8=True) == "the kernel does not round x to 8 bits"


def test_kernels_without_a_backward_decline_gradients():
    q = torch.randn(2, 1, 8, requires_grad=True)
    reason = ops.cross_decode_attention.why_not_triton
    assert "a gradient is required" in reason(q=q.detach(), key_pool=q, value_pool=q)
    assert reason(q=q.detach(), key_pool=q.detach(), value_pool=q.detach()) is None
    assert "a gradient is required" in why_not_scores(q[0])
    x = torch.zeros(2, 64)
    assert "a gradient is required" in why_not_int4_matmul(x, x, x, bias=q)
    with torch.no_grad():
        assert why_not_scores(q[0]) is None
    assert why_not_attention(q, q, q) is None  # it has a backward
