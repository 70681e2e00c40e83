"""Initial values of weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..layers.activations import XIELU


@torch.no_grad()
def initialize_modules(modules: Iterable[nn.Module], std: float) -> None:
    """Set the parameters that these modules hold themselves to initial values.

    N(0, std) for Linear and Embedding weights, 0 for biases and the padding row, 1 and 0 for LayerNorm. Modules with
    parameters on the meta device are skipped: a call of `normal_` on them costs as much as on real ones.
    """
    for module in modules:
        if any(p.is_meta for p in module.parameters(recurse=False)):
            continue
        if isinstance(module, nn.PReLU):
            module.weight.fill_(0.25)
        if isinstance(module, XIELU):
            module.reset()
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(0.0, std)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.zero_()


@torch.no_grad()
def initialize_meta_parameters(module: nn.Module, std: float, like: torch.Tensor) -> None:
    """Replace a module's own parameters and buffers on the meta device by initialized ones.

    Args:
        module: its other parameters keep their values.
        std: of the normal distribution.
        like: dtype and device of the new tensors.
    """
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    missing = [(name, t) for name, t in own if t.is_meta]
    kept = {name: t.clone() for name, t in own if not t.is_meta}
    for name, t in missing:
        new = torch.empty(t.shape, dtype=like.dtype, device=like.device)
        setattr(module, name, nn.Parameter(new) if isinstance(t, nn.Parameter) else new)
    if missing:
        initialize_modules([module], std)
        for name, value in kept.items():
            getattr(module, name).data.copy_(value)
