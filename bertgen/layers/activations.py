"""Activations with parameters. Those without are functions in `kernels/activations.py`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ConfigError
from ..kernels.layernorm_gelu import ACTIVATIONS


class XIELU(nn.Module):
    """x > 0: a_p x^2 + b x, else a_n (e^x - 1 - x) + b x, with learned a_p and a_n (Huang 2024, arXiv 2411.13010).

    The parameters hold softplus^-1(a_p) and softplus^-1(a_n - b).
    """

    beta: torch.Tensor
    eps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p, self.alpha_n = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))
        self.register_buffer("beta", torch.empty(()))
        self.register_buffer("eps", torch.empty(()))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """The paper's initial values: a_p = a_n = 0.8, b = 0.5."""
        self.alpha_p.fill_(math.log(math.expm1(0.8)))
        self.alpha_n.fill_(math.log(math.expm1(0.3)))
        self.beta.fill_(0.5)
        self.eps.fill_(-1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..] -> [..]"""
        positive = F.softplus(self.alpha_p) * x * x
        negative = (self.beta + F.softplus(self.alpha_n)) * (torch.expm1(torch.minimum(x, self.eps)) - x)
        return torch.where(x > 0, positive, negative) + self.beta * x


_LEARNED = {"prelu": nn.PReLU, "xielu": XIELU}


def learned_activation(name: str) -> nn.Module | None:
    """The module of an activation with parameters; None for one without. ConfigError for unknown names."""
    if name in _LEARNED:
        return _LEARNED[name]()
    if name not in ACTIVATIONS:
        raise ConfigError(f"hidden_act {name!r} is not one of {', '.join((*ACTIVATIONS, *_LEARNED))}")
    return None
