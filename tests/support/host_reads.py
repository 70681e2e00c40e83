"""A dispatch mode in which whatever would stop a GPU's stream, or depend on a value, is an error."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from bertgen.ops.registry import KernelOp

# Reads of a value on the host (in inference mode composites arrive whole: item, is_nonzero, to), tensors from data of
# the host (lift_fresh), and operations whose shapes or whose kernels on a GPU depend on values.
REFUSED = {
    "item", "_local_scalar_dense", "is_nonzero", "nonzero", "nonzero_numpy", "nonzero_static", "masked_select", "equal",
    "allclose", "unique_dim", "_unique", "_unique2", "unique_consecutive", "bincount", "isin", "lift_fresh",
    "resolve_conj", "resolve_neg", "tensor_split",
}  # fmt: skip
REFUSED_OVERLOADS = {
    "to.dtype_layout",
    "to.device",
    "to.other",
    "repeat_interleave.self_Tensor",
    "repeat_interleave.Tensor",
}


class HostRead(AssertionError):
    """An operation that a step of fixed tensors must not run."""


class RefuseHostReads(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        overload = f"{name}.{function._overloadname}"
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_bool = any(index is not None and index.dtype == torch.bool for index in indices)
        if name in REFUSED or overload in REFUSED_OVERLOADS or by_bool:
            raise HostRead(overload)
        return function(*args, **(kwargs or {}))


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Refuse host reads, but in operators of bertgen: their references on a CPU may read the host."""
    original = KernelOp.__call__

    @functools.wraps(original)
    def opaque(self: KernelOp, *arguments: Any, **named: Any) -> Any:
        with _disable_current_modes():
            return original(self, *arguments, **named)

    KernelOp.__call__ = opaque
    try:
        with torch.inference_mode(), RefuseHostReads():
            yield
    finally:
        KernelOp.__call__ = original
