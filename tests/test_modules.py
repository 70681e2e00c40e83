"""The modules of `bertgen.modules` equal the torch modules they replace."""

from __future__ import annotations

import pytest
import torch
from bertgen.kernels.int4_matmul import dequantize_reference
from torch import nn

from bertgen import InputError, Int4Config, UnsupportedError
from bertgen.modules import FeedForward, Int4Linear, LayerNorm, MultiheadAttention
from bertgen.quantization.int4 import quantize


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())


def with_weights_of(module: nn.Module, other: nn.Module) -> nn.Module:
    """`other`, with the weights of `module`, which become random."""
    for p in module.parameters():
        p.data += 0.1 * torch.randn_like(p)
    other.load_state_dict(module.state_dict())
    return other


def test_layer_norm():
    plain = nn.LayerNorm(24, eps=1e-12)
    ours = with_weights_of(plain, LayerNorm(24, eps=1e-12))
    x, residual, bias = torch.randn(3, 5, 24), torch.randn(3, 5, 24), torch.randn(24)
    assert distance(ours(x), plain(x)) <= 1e-6
    assert distance(ours(x, residual, bias), plain(x + residual + bias)) <= 1e-5
    ours(x, residual).sum().backward()
    assert ours.weight.grad.isfinite().all()
    with pytest.raises(UnsupportedError, match=r"\(2, 24\)"):
        LayerNorm((2, 24))(torch.randn(3, 2, 24))


def test_feed_forward():
    ours = FeedForward(16, 40)
    plain = nn.Sequential(ours.dense_in, nn.GELU(), ours.dense_out)
    x = torch.randn(2, 3, 16)
    assert distance(ours(x), plain(x)) <= 1e-6
    with pytest.raises(UnsupportedError, match="'swish2' is none of"):
        FeedForward(16, 40, "swish2")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("causal", [False, True])
def test_multihead_attention(bias, causal):
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(24, 3, bias=bias, batch_first=True)
    ours = with_weights_of(plain, MultiheadAttention(24, 3, bias=bias, batch_first=True))
    x = torch.randn(4, 6, 24)
    y = x if causal else torch.randn(4, 9, 24)
    hidden = torch.zeros(4, y.shape[1], dtype=torch.bool)
    hidden[1, 4:], hidden[2, 1] = True, True
    mask = nn.Transformer.generate_square_subsequent_mask(6) if causal else None
    floating = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
    expected, _ = plain(x, y, y, key_padding_mask=floating, attn_mask=mask, is_causal=causal, need_weights=False)
    got, weights = ours(x, y, y, key_padding_mask=hidden, is_causal=causal)
    assert weights is None and distance(got, expected) <= 1e-5
    hidden[3] = True
    assert ours(x, y, y, key_padding_mask=hidden)[0].isfinite().all()
    for options in (dict(need_weights=True), dict(attn_mask=torch.zeros(6, 6))):
        with pytest.raises(UnsupportedError, match="need_weights"):
            ours(x, x, x, **options)
    with pytest.raises(InputError, match=r"key must be .*\(4, \d, 8\)"):
        ours(x, y[..., :8], y[..., :8])
    with pytest.raises(InputError, match=r"must both be \[4, source length, 24\], as query \(4, 6, 24\)"):
        ours(x, y, y[:, 1:])


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_int4_linear(group, symmetric):
    torch.manual_seed(group)
    linear = nn.Linear(256, 48)
    linear.weight.data[0] = 0.0  # groups of zeros
    linear.weight.data[1] = linear.weight.data[1].abs()  # a group on one side
    config = Int4Config(group_size=group, symmetric=symmetric, scales="absmax")
    ours = Int4Linear.from_linear(linear, config)
    weight = dequantize_reference(ours.packed, ours.scale, ours.zero, None)
    error = (weight - linear.weight).abs().view(48, -1, group)
    # Half a level; in symmetric groups one end has no level, and is off by a whole one.
    worst = ours.scale.abs()[..., None] * (1.0 if symmetric else 0.5)
    assert bool((error <= worst * 1.001 + 1e-7).all()) and not error[0].any()
    x = torch.randn(2, 3, 256)
    assert distance(ours(x), nn.functional.linear(x, weight, linear.bias)) <= 1e-5
    assert ours.packed.numel() * 2 == linear.weight.numel()
    again = Int4Linear(*quantize(torch.zeros(48, 256), config), bias=torch.zeros(48), config=config)
    again.load_state_dict(ours.state_dict())
    assert distance(again(x), ours(x)) == 0


def test_rounding_is_to_the_nearest_level():
    weight = torch.arange(-8, 8).float().repeat(2)[None] * 0.5
    packed, scale, _ = quantize(weight, Int4Config(group_size=32))
    assert distance(dequantize_reference(packed, scale, None, None), weight) == 0
    packed, scale, zero = quantize((weight + 4.0) / 7.5, Int4Config(group_size=32, symmetric=False))
    assert distance(dequantize_reference(packed, scale, zero, None), (weight + 4.0) / 7.5) <= 1e-6


def test_bad_weights_are_named():
    with pytest.raises(InputError, match="96 columns has no groups of 64"):
        quantize(torch.zeros(2, 96))
    with pytest.raises(InputError, match=r"int64 \(2, 64\)"):
        quantize(torch.zeros(2, 64, dtype=torch.long))
    with pytest.raises(InputError, match="not finite"):
        quantize(torch.full((2, 64), torch.nan))
    for weight in (torch.zeros(0, 64), torch.zeros(2, 0), torch.zeros(2, 64, device="meta")):
        with pytest.raises(InputError, match="expected a floating weight"):
            quantize(weight)
    with pytest.raises(InputError, match=r"the weight has values from -3e\+38 to 3e\+38, too large for torch.float32"):
        quantize(torch.tensor([[3e38, -3e38] * 32]), Int4Config(symmetric=False))


def test_either_half_of_a_feed_forward_block_can_be_in_4_bits():
    torch.manual_seed(0)
    block, x = FeedForward(64, 128), torch.randn(2, 3, 64)
    block.dense_in, block.dense_out = (Int4Linear.from_linear(linear) for linear in (block.dense_in, block.dense_out))
    got = block(x)
    block.dense_in, block.dense_out = block.dense_in.to_linear(), block.dense_out.to_linear()
    assert distance(got, block(x)) <= 1e-5


@pytest.mark.parametrize("train", [True, False])
def test_each_part_is_one_graph_and_has_the_state_of_what_it_replaces(train):
    torch.manual_seed(0)
    torch._dynamo.reset()
    norm, block, attention = LayerNorm(64), FeedForward(64, 128), MultiheadAttention(64, 4, batch_first=True)
    small = Int4Linear.from_linear(nn.Linear(64, 64))
    for ours, plain in ((norm, nn.LayerNorm(64)), (attention, nn.MultiheadAttention(64, 4, batch_first=True))):
        assert isinstance(ours, type(plain))
        plain.load_state_dict(ours.state_dict())
        ours.load_state_dict(plain.state_dict())

    def run(x, padding):
        y = norm(attention(x, x, x, key_padding_mask=padding)[0], x)
        return small(norm(block(y), y) + attention(y, y, y, is_causal=True)[0])

    x, padding = torch.randn(2, 5, 64), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    weights = [p for part in (norm, block, attention) for p in part.parameters()]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(train):
        got, expected = compiled(x, padding), run(x, padding)
        assert distance(got, expected) <= 1e-5
    if train:
        for a, b in zip(*(torch.autograd.grad(y.square().sum(), weights) for y in (got, expected)), strict=True):
            assert distance(a, b) <= 1e-3
