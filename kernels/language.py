"""Imports triton where it is installed (it has wheels for Linux only), else a stand-in: the references still work."""

from __future__ import annotations

import os
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:

    class _Stub:
        """Accepts what `@triton.jit` and `tl` are used for at import, so that modules with kernels can be imported."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *options: Any, **named: Any) -> Any:
            return options[0] if len(options) == 1 and callable(options[0]) else self

    triton = tl = _Stub()

HAS_TRITON = hasattr(triton, "__version__") and isinstance(triton.__version__, str)
# Triton reads this when a kernel is decorated: the interpreter runs kernels on a CPU, one program after another.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

__all__ = ["HAS_TRITON", "INTERPRETED", "tl", "triton"]
