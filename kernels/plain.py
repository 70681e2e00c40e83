"""What kernels can take: plain tensors, in calls that nobody follows.

A kernel reads and writes memory behind torch's back. A tensor that is of a class of its own (of a quantizer, sharded,
fake) has no such memory or means something else by it, and whoever follows the operators that run (torch.jit.trace,
make_fx, fake tensors, counters, vmap) sees nothing of it, or records a graph without it. Plain torch does both right.
"""

from __future__ import annotations

import torch
from torch import nn

PLAIN = (torch.Tensor, nn.Parameter)


def is_plain_tensor(x: torch.Tensor) -> bool:
    """Whether a tensor is what its memory says: of no class but torch's own."""
    return type(x) in PLAIN


def is_followed() -> bool:
    """Whether this thread's calls are traced, or go through a mode of the dispatcher or a transform of torch.func.

    torch.compile is another matter, as it asks before anything runs: `torch.compiler.is_compiling`.
    """
    return bool(
        torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def is_traced() -> bool:
    """Whether what runs now is recorded for other values, or has none: no value of a tensor may choose the way.

    So it is under torch.jit.trace, make_fx, fake tensors and transforms of torch.func. It is not under a mode that only
    watches, nor here under torch.compile, which the caller asks about.
    """
    if torch.compiler.is_compiling() or not is_followed():
        return False
    kinds = torch._C._TorchDispatchModeKey
    return (
        torch._C._is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or any(torch._C._get_dispatch_mode(kind) is not None for kind in (kinds.FAKE, kinds.PROXY))
    )


def hidden(x: torch.Tensor) -> str | None:
    """Why no kernel may be called on a tensor; None where one may."""
    if not is_plain_tensor(x):
        return f"a {type(x).__name__} is no plain tensor"
    return "the operators that run are followed (a trace, a mode, a transform)" if is_followed() else None
