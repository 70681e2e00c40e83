"""The functions of the C++ extension `bertgen._C`; none where it cannot be imported.

They check shapes and dtypes, and raise RuntimeError. csrc/bindings describes their arguments: all are positional, and
results are written to the last one, `out`. `bertgen.ops.extension` loads the extension and says why it cannot be used;
no function may be called before. They read the memory of tensors, so a negative view (`torch._neg_view`) is read
without its sign.

A running profiler of torch sees each call as `bertgen_C::NAME`, as it would see an operator of torch.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch.autograd import profiler


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    name = f"bertgen_C::{function.__name__}"

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if not profiler._is_profiler_enabled:  # which costs 0.04 µs
            return function(*arguments)
        with profiler.record_function(name):
            return function(*arguments)

    return call


try:
    from .. import _C
except ImportError:
    pass
else:
    globals().update({name: _recorded(f) for name, f in vars(_C).items() if inspect.isbuiltin(f)})
