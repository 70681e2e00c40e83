"""The functions of the C++ extension `bertgen._C`; none where it cannot be imported.

They check shapes and dtypes, and raise RuntimeError. csrc/bindings describes their arguments: all are positional, and
results are written to the last one, `out`. `bertgen.ops.extension` loads the extension and says why it cannot be used;
no function may be called before.
"""

from __future__ import annotations

try:
    from .._C import *  # noqa: F403
except ImportError:
    pass
