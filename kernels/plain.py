"""Whether a kernel may be called: only on plain tensors, and only where nothing intercepts torch's operators.

A kernel reads and writes memory directly. A tensor subclass (of a quantizer, sharded, fake) has no such memory or gives
it another meaning. Code that intercepts operators (torch.jit.trace, make_fx, fake tensors, counters, vmap) does not see
a kernel, or records a graph without it. Plain torch operators handle both correctly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

PLAIN = (torch.Tensor, nn.Parameter)


def is_plain_tensor(x: torch.Tensor) -> bool:
    """Whether a tensor is a torch.Tensor or Parameter and not a subclass."""
    return type(x) in PLAIN


def is_intercepted() -> bool:
    """Whether this thread's operators are traced, or go through a dispatch mode or a transform of torch.func.

    torch.compile is a separate case: `torch.compiler.is_compiling`.
    """
    return bool(
        torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def is_traced() -> bool:
    """Whether operators are recorded for other values or run without values, so that control flow must not read them.

    True under torch.jit.trace, make_fx, fake tensors and transforms of torch.func. False under a dispatch mode that
    only observes, and under torch.compile, which callers check separately.
    """
    if torch.compiler.is_compiling() or not is_intercepted():
        return False
    keys = torch._C._TorchDispatchModeKey
    return (
        torch._C._is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or any(torch._C._get_dispatch_mode(key) is not None for key in (keys.FAKE, keys.PROXY))
    )


def why_not_kernel(x: torch.Tensor) -> str | None:
    """Why no kernel may be called on a tensor here, as one clause; None where one may."""
    if not is_plain_tensor(x):
        return f"a {type(x).__name__} is no plain tensor"
    return "operators are intercepted (by a trace, a dispatch mode or a transform)" if is_intercepted() else None


def why_not_gradients(*arguments: Any) -> str | None:
    """Why a kernel without a backward cannot take these arguments, as one clause; None where it can."""
    if torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in arguments):
        return "a gradient is required, and the kernel has no backward"
    return None
