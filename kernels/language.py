"""Triton, where there is one: it has wheels for Linux only, and without it the references do all the work."""

from __future__ import annotations

import os
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:

    class _Absent:
        """Lets kernels be defined that nobody will launch."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *options: Any, **named: Any) -> Any:
            return options[0] if len(options) == 1 and callable(options[0]) else self

    triton = tl = _Absent()

HAS_TRITON = hasattr(triton, "__version__") and isinstance(triton.__version__, str)
# Read when a kernel is decorated: the interpreter runs kernels on a CPU, one program after another.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

__all__ = ["HAS_TRITON", "INTERPRETED", "tl", "triton"]
