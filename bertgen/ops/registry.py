"""What an operator is, and how a call of one chooses its backend.

A layer calls `ops.NAME(...)`. The call goes to the backend that suits the arguments: on a GPU a Triton kernel, on a CPU
a function of the C++ extension or of oneDNN, and the reference implementation where those decline. `explain()` says
which and why. BERTGEN_BACKEND, or `set_backend`, selects one by name; an operator that cannot use it then raises.
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
from ..kernels.language import HAS_TRITON, INTERPRETED
from ..kernels.plain import why_not_kernel
from . import extension, torch_library

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
            raise BackendError where it declines.

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
    """

    reference: Function
    triton: Function | None = None
    why_not_triton: Callable[..., str | None] = _takes_all
    cpp: Function | None = None
    why_not_cpp: Callable[..., str | None] = _takes_all

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not arguments:
            arguments = (named.pop(self._first),)
        if torch.compiler.is_compiling() and (self.prefers_triton(arguments[0]) or self.cpp is not None):
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
        if self.prefers_triton(first):
            backend, function = "triton", self.triton
        elif self.cpp is not None and _backend in ("auto", "cpp"):
            backend, function = "cpp", self.cpp
        else:
            return self.reference(first, *rest, **named)
        reason = self.why_not(backend, first, *rest, **named)
        if reason is None:
            assert function is not None
            return function(first, *rest, **named)
        if _backend == backend:
            raise BackendError(f"{self.name}: the backend is set to {backend}, but {reason}")
        return self.reference(first, *rest, **named)

    def prefers_triton(self, first: torch.Tensor) -> bool:
        """Whether calls with such a tensor go to the Triton kernel, unless it declines."""
        if self.triton is None or _backend in ("reference", "cpp"):
            return False
        return _backend == "triton" or first.is_cuda

    def why_not(self, backend: str, first: torch.Tensor, *rest: Any, **named: Any) -> str | None:
        """Why "triton" or "cpp" does not take these arguments here, as one clause; None where it does."""
        if backend == "triton":
            if not HAS_TRITON:
                return "triton is not installed"
            if first.device.type != "cuda" and not INTERPRETED:
                return f"the tensors are on {first.device} and not on a CUDA device"
            return why_not_kernel(first) or self.why_not_triton(first, *rest, **named)
        if not first.is_cpu:
            return f"the tensors are on {first.device} and not on a CPU"
        return extension.why_not() or why_not_kernel(first) or self.why_not_cpp(first, *rest, **named)

    def _explain(self, device: str) -> str:
        if self.cpp is not None and device == "cpu" and _backend in ("auto", "cpp"):
            reason = extension.why_not()
            return "cpp in float32, else reference" if reason is None else f"reference: no C++ extension: {reason}"
        if self.triton is None or _backend == "cpp":
            return "reference: plain torch, there is no kernel"
        if not HAS_TRITON:
            return "reference: plain torch, triton is not installed"
        if device == "cuda":
            return "triton, and reference for arguments that the kernel does not take"
        if INTERPRETED:
            return "reference: plain torch; Triton's interpreter where the backend is set to triton"
        return "reference: plain torch, the kernel needs a CUDA device"
