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


def test_attention_declines_a_mixture_of_dtypes():
    """Under autocast a product has 16 bits, and keys in a cache those of the model."""
    q, pool = torch.zeros(2, 1, 8, dtype=torch.bfloat16), torch.zeros(4, 1, 8)
    reason = "q is torch.bfloat16, and another tensor torch.float32"
    assert why_not_decode_attention(q, q, q, pool, pool) == why_not_attention(q, pool, v=pool) == reason
    assert why_not_decode_attention(q, q, q, pool.bfloat16(), torch.zeros(2, dtype=torch.int32)) is None


def test_the_fused_product_declines_under_autocast():
    x = torch.zeros(2, 8)
    why_not = ops.linear_gelu.why_not_triton
    assert why_not(x, x) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert why_not(x, x) == "autocast chooses other dtypes"


def test_norms_and_activations_take_16_bits_beside_float32_and_no_other_mixture():
    half, single = torch.zeros(2, 8, dtype=torch.bfloat16), torch.zeros(2, 8)
    why_not = ops.add_layer_norm.why_not_triton
    for x, bias, residual, weight in (
        (half, None, single, single),
        (half, half, half, single),
        (half, single, None, single),
    ):
        bias = None if bias is None else bias[0]
        assert why_not(x, bias, residual, weight[0], weight[0], 1e-5) is None
    assert (
        why_not(single, None, half, single[0], single[0], 1e-5) == "residual is torch.bfloat16, weight is torch.float32"
    )
    assert why_not(half, None, single, half[0], half[0], 1e-5) == "residual is torch.float32, weight is torch.bfloat16"
    assert why_not(half, None, None, single[0], half[0], 1e-5) == "shift is torch.bfloat16, weight is torch.float32"
    assert "a tensor is torch.bfloat16" in why_not(single, None, None, half[0], half[0], 1e-5)
    assert ops.bias_gelu.why_not_triton(half, single[0]) is None
    assert "a tensor is torch.float16" in ops.bias_gelu.why_not_triton(half, single[0].half())


def test_a_norm_has_the_widest_dtype_and_an_activation_that_of_x():
    half, single = torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(2, 8)
    assert ops.add_layer_norm(half, None, single, single[0], single[0], 1e-5).dtype == torch.float32
    assert ops.add_layer_norm(half, None, None, single[0], single[0], 1e-5).dtype == torch.float32
    assert ops.gelu_layer_norm(half, single[0], single[0], 1e-5).dtype == torch.float32
    assert ops.bias_gelu(half, single[0]).dtype == torch.bfloat16
