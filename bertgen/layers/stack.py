"""The stack of layers of an encoder or a decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..cache.cache import Cache
from ..config import BertGenerationConfig
from ..errors import UnsupportedError
from .attention import Attention, AttentionContext
from .block import Layer
from .decoder_step import decoder_step


class Stack(nn.Module):
    """The layers, in their order.

    Attributes:
        recompute: options of torch.utils.checkpoint, None where it is off. Training then keeps only the input of each
            layer and computes the rest again in the backward (Chen et al. 2016, arXiv 1604.06174): the memory of one
            layer instead of the stack, for a third more time.
    """

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        # Configurations of older versions of transformers may have this option.
        enabled = bool(config.extra.get("gradient_checkpointing"))
        self.recompute: dict[str, Any] | None = {"use_reentrant": False} if enabled else None

    def forward(self, x: torch.Tensor, context: AttentionContext, states: list[torch.Tensor] | None = None):
        """x [T, hidden] -> [T, hidden]; the input and the output of each layer are appended to `states` if given."""
        if context.source is not None and any(
            isinstance(layer, Layer) and not hasattr(layer, "crossattention") for layer in self.layer
        ):
            raise UnsupportedError("encoder states were given to a decoder built without add_cross_attention=True")
        if states is not None:
            states.append(x)
        elif (y := decoder_step(self.layer, x, context)) is not None:
            return y
        # With a cache nothing is recomputed: a second run would write it twice.
        recomputes = self.recompute is not None and self.training and torch.is_grad_enabled() and context.cache is None
        for index, layer in enumerate(self.layer):
            if context.cache is not None:
                context.cache.layer = index
            x = self._recomputed(layer, x, context) if recomputes else layer(x, context)
            if states is not None:
                states.append(x)
        return x

    def write_sources(self, cache: Cache, states: torch.Tensor) -> None:
        """Write every layer's keys and values of encoder states [T, hidden] for the sources of `begin_sources`.

        Raises:
            UnsupportedError: a layer without an `Attention` as its cross-attention.
        """
        self.check_sources()
        for index, layer in enumerate(self.layer):
            cross: Any = layer.crossattention
            cache.set_cross(index, *cross.source_pair(states))

    def check_sources(self) -> None:
        """Raise UnsupportedError where the keys of a source can only be computed by a call of the layer."""
        for index, layer in enumerate(self.layer):
            if not isinstance(getattr(layer, "crossattention", None), Attention):
                raise UnsupportedError(
                    f"layer {index} of the decoder is a {type(layer).__name__} without a cross-attention of bertgen's, "
                    "so its keys of a source cannot be computed before it is called; model.generate can call it"
                )

    def _recomputed(self, layer: nn.Module, x: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """The output of the layer, which the backward computes again.

        A reentrant checkpoint returns gradients only to its arguments, and only if one of them requires a gradient. So
        the tensors of the context are arguments, too, and a dummy tensor where only weights require gradients.
        """
        states, rows = context.source or (None, None)
        arguments: tuple[torch.Tensor | None, ...] = (x, states, context.mask)
        if not any(t is not None and t.requires_grad for t in arguments):
            if not any(p.requires_grad for p in layer.parameters()):
                return layer(x, context)
            arguments += (torch.empty(0, dtype=x.dtype, device=x.device, requires_grad=True),)

        def run(x, states, mask, *_):
            source = None if states is None else (states, rows)
            return layer(x, replace(context, source=source, mask=mask))

        return checkpoint(run, *arguments, **self.recompute)
