"""Imports triton where it can be used (it has wheels for Linux only), else a stand-in: the references still work."""

from __future__ import annotations

import os
from typing import Any

OLDEST_TRITON = "3.6"  # that of torch 2.10
WHY_NOT_TRITON: str | None = None  # why triton cannot be used; None where it can

try:
    import triton
    import triton.language as tl

    if [int(number) for number in triton.__version__.split(".")[:2]] < [int(n) for n in OLDEST_TRITON.split(".")]:
        raise ImportError(f"it is version {triton.__version__}, and the kernels need {OLDEST_TRITON} or newer")
except Exception as error:  # a broken installation raises errors of any kind

    class _Stub:
        """Accepts what `@triton.jit` and `tl` are used for at import, so that modules with kernels can be imported."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *options: Any, **named: Any) -> Any:
            return options[0] if len(options) == 1 and callable(options[0]) else self

    triton = tl = _Stub()
    if isinstance(error, ModuleNotFoundError) and error.name == "triton":
        WHY_NOT_TRITON = "triton is not installed"
    else:
        WHY_NOT_TRITON = f"triton cannot be used: {' '.join(str(error).split()) or type(error).__name__}"

HAS_TRITON = WHY_NOT_TRITON is None
# Triton reads this when a kernel is decorated: the interpreter runs kernels on a CPU, one program after another.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

__all__ = ["HAS_TRITON", "INTERPRETED", "OLDEST_TRITON", "WHY_NOT_TRITON", "tl", "triton"]
