"""Modules for other models, with the names and the state of the torch modules they replace."""

from __future__ import annotations

import torch
from torch import nn

from . import ops
from .config.validators import check_flag, check_integer
from .errors import InputError, UnsupportedError, quoted
from .kernels.layernorm_gelu import ACTIVATIONS
from .layers.linear import Int4Linear as Int4Linear
from .layers.linear import apply
from .model.inputs import check_columns, check_mask


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the last dimension, fused with the sum before it: LayerNorm(x + bias + residual).

    Statistics are in float32 for any dtype of x (Ba et al. 2016, arXiv 1607.06450).
    """

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x and residual [.., hidden], bias [hidden] -> [.., hidden]"""
        if len(self.normalized_shape) != 1 or self.weight is None or self.bias is None:
            raise UnsupportedError(f"LayerNorm over {self.normalized_shape} without weight and bias is not supported")
        tensors = {"x": x} | {name: t for name, t in (("residual", residual), ("bias", bias)) if t is not None}
        check_columns(self.weight, self.normalized_shape[0], **tensors)
        if residual is not None and residual.shape != x.shape:
            raise InputError(f"residual {tuple(residual.shape)} must have the shape of x, {tuple(x.shape)}")
        if bias is not None and bias.dim() != 1:
            raise InputError(f"bias must be [{self.normalized_shape[0]}], got {tuple(bias.shape)}")
        flat = x.reshape(-1, x.shape[-1])
        other = None if residual is None else residual.reshape(flat.shape)
        return ops.add_layer_norm(flat, bias, other, self.weight, self.bias, self.eps).view(x.shape)


class FeedForward(nn.Module):
    """dense_out(activation(dense_in(x))), the feed-forward block of a transformer; either may become an Int4Linear.

    Args:
        hidden: columns of x and of the result. intermediate: columns between the two.
        activation: a name of `bertgen.kernels.layernorm_gelu.ACTIVATIONS`; "gelu" is the exact one, with erf.

    Raises:
        UnsupportedError: another activation.
    """

    def __init__(self, hidden: int, intermediate: int, activation: str = "gelu"):
        super().__init__()
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise UnsupportedError(f"activation {quoted(activation)} is none of {', '.join(ACTIVATIONS)}")
        hidden, intermediate = check_integer(1, hidden, "hidden"), check_integer(1, intermediate, "intermediate")
        self.dense_in, self.dense_out = nn.Linear(hidden, intermediate), nn.Linear(intermediate, hidden)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., hidden] -> [.., hidden]"""
        check_columns(self.dense_out.bias, self.dense_in.in_features, x=x)
        flat = x.reshape(-1, x.shape[-1])
        return apply(self.dense_out, apply(self.dense_in, flat, self.activation)).view(x.shape)


class MultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with the same state, for batches [B, L, hidden] (batch_first=True).

    Padding at any place is left out instead of masked. Attention weights are not returned, and `attn_mask` is not
    supported; `is_causal` counts positions, padding included.
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, None]:
        """query [B, T, hidden], key and value [B, S, hidden], key_padding_mask bool [B, S], True hides a key.

        Returns:
            [B, T, hidden], and None in place of the weights. A query without visible keys has zeros before the output
            projection.
        """
        if check_flag(need_weights, "need_weights") or attn_mask is not None:
            raise UnsupportedError("need_weights=True and attn_mask are not supported: no matrix of weights is made")
        if not self.batch_first or self.in_proj_weight is None or self.bias_k is not None or self.add_zero_attn:
            raise UnsupportedError(
                "only batch_first=True, one size of query, key and value, and no added keys are supported"
            )
        check_columns(self.in_proj_weight, self.embed_dim, query=query, key=key, value=value)
        if query.dim() != 3 or key.dim() != 3:
            shapes = f"{tuple(query.shape)} and {tuple(key.shape)}"
            raise InputError(f"query and key must be [batch, length, hidden], got {shapes}")
        is_causal = check_flag(is_causal, "is_causal")
        rows, length, hidden = query.shape
        source = key.shape[1]
        check_mask(key_padding_mask, rows, source, "key_padding_mask")
        if key.shape != (rows, source, hidden) or value.shape != key.shape:
            shapes = f"key {tuple(key.shape)} and value {tuple(value.shape)}"
            raise InputError(f"{shapes} must both be [{rows}, source length, {hidden}], as query {tuple(query.shape)}")
        q, k, v = self._projected(query, key, value)
        cu_q = torch.arange(rows + 1, dtype=torch.int32, device=query.device) * length
        cu_k = torch.arange(rows + 1, dtype=torch.int32, device=query.device) * source
        visible = None if key_padding_mask is None else ~key_padding_mask.bool()
        out = ops.attention(
            q, k, v, cu_q, cu_k, length, source,
            causal=is_causal, key_mask=visible, dropout=self.dropout if self.training else 0.0,
        )  # fmt: skip
        out = ops.linear(out.reshape(rows * length, hidden), self.out_proj.weight, self.out_proj.bias)
        return out.view(rows, length, hidden), None

    def _projected(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [
            ops.linear(x.reshape(-1, x.shape[-1]), w, b).unflatten(-1, (self.num_heads, self.head_dim))
            for x, w, b in zip(inputs, weights, biases, strict=True)
        ]
