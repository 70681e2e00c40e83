"""The C++ extension: whether it is here, and why not.

Its operators are `torch.ops.bertgen_C.*`, defined in csrc/binding.cpp. Nothing is loaded before it is asked for.
BERTGEN_WITHOUT_EXT=1 does as if it had not been built; BERTGEN_REQUIRE_EXT=1 makes its absence an error. BERTGEN_CPU
names the instructions that its kernels use, where those are not to be the best of the processor.
"""

from __future__ import annotations

import importlib
import os
import threading
from typing import Any

import torch

from ..errors import BackendError

INSTRUCTIONS = ("portable", "avx2", "avx512")  # each with those before it; "avx512" is F, BW, DQ, VL and VNNI

_loading = threading.Lock()
_reason: str | None = ""  # of the absence, once it is known


def available() -> bool:
    """Whether the extension can be used; loads it.

    Raises:
        BackendError: it cannot, and BERTGEN_REQUIRE_EXT=1.
    """
    if os.environ.get("BERTGEN_REQUIRE_EXT") == "1":
        require()
    return absence() is None


def require() -> None:
    """Load the extension.

    Raises:
        BackendError: it cannot be used; says why.
    """
    if reason := absence():
        raise BackendError(f"the C++ extension is needed here, but {reason}")


def absence() -> str | None:
    """Why the extension cannot be used; None where it can, and is loaded.

    Raises:
        BackendError: BERTGEN_CPU names instructions that are not known or not there.
    """
    global _reason
    if _reason == "":  # operators ask this at every call, so without the lock
        with _loading:
            if _reason == "":
                _reason = _load()
    return _reason


def instructions() -> str:
    """Which of INSTRUCTIONS the kernels use. BackendError: the extension cannot be used."""
    require()
    return INSTRUCTIONS[torch.ops.bertgen_C.use_instructions(-1)]


def use_instructions(name: str) -> str:
    """Choose among INSTRUCTIONS, in this process.

    Returns:
        The name that held before.

    Raises:
        BackendError: another name, what the processor does not have, or the extension cannot be used.
    """
    require()
    return _use(name)


def _use(name: str) -> str:
    if name not in INSTRUCTIONS:
        raise BackendError(f"instructions {name!r} are none of {', '.join(INSTRUCTIONS)} (BERTGEN_CPU)")
    wanted, change = INSTRUCTIONS.index(name), torch.ops.bertgen_C.use_instructions
    before = change(wanted)
    if (best := change(-1)) < wanted:
        change(before)
        raise BackendError(
            f"instructions {name!r} are not there: the best of this processor are {INSTRUCTIONS[best]!r}"
        )
    return INSTRUCTIONS[before]


def _load() -> str | None:
    if os.environ.get("BERTGEN_WITHOUT_EXT") == "1":
        return "BERTGEN_WITHOUT_EXT=1 says to do without"
    try:
        importlib.import_module(".._C", __package__)
    except ModuleNotFoundError:
        return (
            "it was not built: that takes a C++ compiler, torch installed before, and pip install --no-build-isolation"
        )
    except ImportError as error:
        return f"it does not load: {error}"
    try:
        _describe()
    except RuntimeError as error:
        return f"it was built from other sources ({error}): build it again"
    if name := os.environ.get("BERTGEN_CPU"):
        _use(name)
    return None


def _describe() -> None:
    """Tell torch what the operators return; RuntimeError where one is missing."""
    for name in ("decode_attention", "cross_decode_attention", "decoder_step"):
        torch.library.register_fake(f"bertgen_C::{name}", _like_the_first)
    for name in ("linear", "int4_matmul"):
        torch.library.register_fake(f"bertgen_C::{name}", lambda x, weight, *rest: x.new_empty(len(x), len(weight)))
    for name in ("linears", "int4_matmuls"):
        torch.library.register_fake(f"bertgen_C::{name}", _side_by_side)
    torch.library.register_fake("bertgen_C::int4_dequantize", lambda *arguments: None)


def _like_the_first(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


def _side_by_side(x: Any, weights: Any, *rest: Any) -> Any:
    return x.new_empty(len(x), len(weights) * len(weights[0]))
