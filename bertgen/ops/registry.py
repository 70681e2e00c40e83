"""The classes of operators, and how a call of an operator chooses its backend.

A layer calls `ops.NAME(...)`. The call goes to the backend that suits the arguments: on a GPU a Triton kernel, on a CPU
a function of the C++ extension or of oneDNN, and the reference implementation where those decline. `explain()` returns
which and why. BERTGEN_BACKEND, or `set_backend`, selects one by name. An operator that has this backend then raises
BackendError where the backend declines; an operator that lacks it runs its reference implementation.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import BackendError, quoted
from ..kernels.language import INTERPRETED, WHY_NOT_TRITON
from ..kernels.plain import why_not_kernel
from . import extension, torch_library
from .device_guard import device_guard

Function = Callable[..., Any]
BACKENDS = ("auto", "reference", "triton", "cpp")


def _check_name(name: str) -> str:
    if not isinstance(name, str) or name not in BACKENDS:
        raise BackendError(f"backend {quoted(name)} is not one of {', '.join(BACKENDS)} (BERTGEN_BACKEND, set_backend)")
    return name


_backend = _check_name(os.environ.get("BERTGEN_BACKEND") or "auto")


def backend() -> str:
    """The name that BERTGEN_BACKEND or `set_backend` selected; "auto" by default."""
    return _backend


def set_backend(name: str) -> str:
    """Select how operators run, in this process.

    Args:
        name: "auto" uses the Triton kernel on CUDA devices, and C++ or oneDNN on CPUs, wherever they take the
            arguments; "reference" uses none of them; "triton" and "cpp" use that one in every operator that has it, and
            raise BackendError where it declines. Functions in C++ for inference only, as those of `linear` and
            `add_layer_norm`, are exceptions: other calls fall back instead of raising.

    Returns:
        The name selected before.

    Raises:
        BackendError: another name.
    """
    global _backend
    before, _backend = _backend, _check_name(name)
    return before


def why_not_extension() -> str | None:
    """Why functions of the C++ extension are not used in this process; None where they are."""
    if _backend not in ("auto", "cpp"):
        return f"the backend is set to {_backend}"
    return extension.why_not()


def _why_not_device(backend: str, device: str) -> str | None:
    """Why "triton" or "cpp" does not run on tensors of a device type in this process; None where it does."""
    if backend == "triton":
        if WHY_NOT_TRITON is not None:
            return WHY_NOT_TRITON
        if device != "cuda" and not INTERPRETED:
            return f"the tensors are on a {device} device and the kernel needs a CUDA device"
        return None
    if device != "cpu":
        return f"the tensors are on a {device} device and not on a CPU"
    reason = extension.why_not()
    return None if reason is None else f"the C++ extension cannot be used: {reason}"


def _takes_all(*arguments: Any, **named: Any) -> None:
    """`why_not_triton` and `why_not_cpp` of an operator that takes all arguments."""


@dataclass(frozen=True)
class Op:
    """One operator: a callable that computes `meaning` by the backend that suits its arguments."""

    name: str
    meaning: str

    def explain(self, device: str) -> str:
        """Which backend the operator uses on `device` ("cpu" or "cuda"), and why."""
        if _backend == "reference":
            return "reference: selected by BERTGEN_BACKEND or set_backend"
        return self._explain(device)

    def _explain(self, device: str) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class KernelOp(Op):
    """An operator with a reference implementation, and kernels that take the same arguments or decline them.

    Attributes:
        triton: launches the kernel, for CUDA tensors (and for CPU tensors where Triton interprets).
        why_not_triton: why the kernel does not take these arguments; None where it does.
        cpp: the function of the C++ extension, for CPU tensors.
        why_not_cpp: why that function does not take these arguments; None where it does.
        infers: the function is for inference. Then torch.compile traces the reference, and a call that the function
            declines runs the reference even where "cpp" is selected.
    """

    reference: Function
    triton: Function | None = None
    why_not_triton: Callable[..., str | None] = _takes_all
    cpp: Function | None = None
    why_not_cpp: Callable[..., str | None] = _takes_all
    infers: bool = False

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not arguments:
            arguments = (named.pop(self._first),)
        in_graph = torch.compiler.is_compiling()
        if in_graph and self.infers and not self.prefers_triton(arguments[0]):
            return self.reference(*arguments, **named)
        if in_graph and (self.prefers_triton(arguments[0]) or self.cpp is not None):
            # One node of the graph. With dropout the reference is traced: a node would draw anew in the backward pass.
            if named.get("dropout"):
                return self.reference(*arguments, **named)
            defaults = torch_library.ARGUMENTS[self.name]
            named = {**defaults, **dict(zip(defaults, arguments)), **named}
            named.pop("dropout", None)
            return getattr(torch.ops.bertgen, self.name)(**named)
        return self.run(*arguments, **named)

    @functools.cached_property
    def _first(self) -> str:
        return next(iter(inspect.signature(self.reference).parameters))

    def run(self, first: torch.Tensor, *rest: Any, **named: Any) -> Any:
        """Call the backend that suits the arguments, outside of a graph."""
        backend = self._preferred(first.is_cuda)
        if backend == "reference":
            return self.reference(first, *rest, **named)
        reason = self.why_not(backend, first, *rest, **named)
        if reason is None:
            function = self.triton if backend == "triton" else self.cpp
            assert function is not None
            if not first.is_cuda:
                return function(first, *rest, **named)
            with device_guard(first.device):
                return function(first, *rest, **named)
        if _backend == backend and not (backend == "cpp" and self.infers):
            raise BackendError(f"{self.name}: the backend is set to {backend}, but {reason}")
        return self.reference(first, *rest, **named)

    def prefers_triton(self, first: torch.Tensor) -> bool:
        """Whether calls with such a tensor go to the Triton kernel, unless it declines."""
        return self._preferred(first.is_cuda) == "triton"

    def _preferred(self, is_cuda: bool) -> str:
        """The backend of calls with tensors on a GPU or elsewhere, unless it declines."""
        if self.triton is not None and (_backend == "triton" or (_backend == "auto" and is_cuda)):
            return "triton"
        return "cpp" if self.cpp is not None and _backend in ("auto", "cpp") else "reference"

    def why_not(self, backend: str, first: torch.Tensor, *rest: Any, **named: Any) -> str | None:
        """Why "triton" or "cpp" does not take these arguments here, as one clause; None where it does."""
        why_not_arguments = self.why_not_triton if backend == "triton" else self.why_not_cpp
        return (
            _why_not_device(backend, first.device.type)
            or why_not_kernel(first)
            or why_not_arguments(first, *rest, **named)
        )

    def _explain(self, device: str) -> str:
        backend = self._preferred(device == "cuda")
        if backend == "reference":
            if _backend != "auto":
                return f"reference: plain torch, the operator has no {_backend} backend"
            reason = "there is no kernel" if self.triton is None else "the kernel needs a CUDA device"
            return f"reference: plain torch, {reason}"
        reason = _why_not_device(backend, device)
        if reason is not None:
            if _backend == backend and not (backend == "cpp" and self.infers):
                return f"an error: the backend is set to {backend}, but {reason}"
            return f"reference: plain torch, {reason}"
        fallback = "an error" if _backend == backend and not (backend == "cpp" and self.infers) else "reference"
        if backend == "cpp":
            return f"cpp{' in inference' if self.infers else ''}, else {fallback}"
        return f"triton, and {fallback} for arguments that the kernel does not take"
