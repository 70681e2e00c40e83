"""The C++ extension: whether it can be used, and why not.

Its functions are those of `bertgen.kernels.cpp`, defined in csrc/bindings. It is compiled without torch, and connected
to torch on first use. BERTGEN_WITHOUT_EXT=1 ignores it; BERTGEN_REQUIRE_EXT=1 makes its absence an error. BERTGEN_CPU
names the instruction set of its kernels; by default that is the best of the processor.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys
import threading
from typing import Any

import torch

from ..errors import BackendError
from ..kernels import cpp
from . import decode_steps_layout, step_layout
from .step_layout import StepArguments

LAYOUT = {**step_layout.LAYOUT, **decode_steps_layout.LAYOUT}

INSTRUCTION_SETS = ("portable", "avx2", "avx512")  # as csrc/instruction_sets.h lists them; each includes those before

_loading = threading.Lock()
_reason: str | None = ""  # the result of `why_not`, once it is known


def available() -> bool:
    """Whether the extension can be used; loads it.

    Raises:
        BackendError: it cannot be used, and BERTGEN_REQUIRE_EXT=1.
    """
    if os.environ.get("BERTGEN_REQUIRE_EXT") == "1":
        require()
    return why_not() is None


def require() -> None:
    """Load the extension.

    Raises:
        BackendError: it cannot be used; the message has the reason.
    """
    if reason := why_not():
        raise BackendError(f"the C++ extension is needed here, but {reason}; `bertgen info` shows how to build it")


def why_not() -> str | None:
    """Why the extension cannot be used; None where it can, and is loaded.

    Raises:
        BackendError: BERTGEN_CPU names an instruction set that is unknown or not available.
    """
    global _reason
    if _reason == "":  # first without the lock: operators call this function often
        with _loading:
            if _reason == "":
                _reason = _load()
    return _reason


def instruction_set() -> str:
    """Which of INSTRUCTION_SETS the kernels use. BackendError: the extension cannot be used."""
    require()
    return INSTRUCTION_SETS[cpp.use_instruction_set(-1)]


def use_instruction_set(name: str) -> str:
    """Choose one of INSTRUCTION_SETS for this process.

    Returns:
        The name of the set before.

    Raises:
        BackendError: an unknown name, a set that the processor does not have, or the extension cannot be used.
    """
    require()
    return _use(name)


def _use(name: str) -> str:
    if name not in INSTRUCTION_SETS:
        raise BackendError(f"instruction set {name!r} is not one of {', '.join(INSTRUCTION_SETS)} (BERTGEN_CPU)")
    number, change = INSTRUCTION_SETS.index(name), cpp.use_instruction_set
    before = change(number)
    if (best := change(-1)) < number:
        change(before)
        raise BackendError(
            f"instruction set {name!r} is not available: the best of this processor is {INSTRUCTION_SETS[best]!r}"
        )
    return INSTRUCTION_SETS[before]


def _load() -> str | None:
    if os.environ.get("BERTGEN_WITHOUT_EXT") == "1":
        return "BERTGEN_WITHOUT_EXT=1 disables it"
    try:
        module = importlib.import_module(".._C", __package__)
    except ModuleNotFoundError:
        return "it was not built"
    except ImportError as error:
        return f"it does not load: {error}"
    try:
        _check_names(module)
    except RuntimeError as error:
        return f"it was built from other sources ({error})"
    try:
        module.use_torch(torch.Tensor, _address("torch_get_num_threads"))
    except (AttributeError, OSError, RuntimeError) as error:
        return f"it does not fit torch {torch.__version__}: {error}"
    if name := os.environ.get("BERTGEN_CPU"):
        _use(name)
    return None


def _address(name: str) -> int:
    """Where a C function of libtorch_cpu is in memory; OSError or AttributeError where it is not found."""
    # On POSIX the search in a library goes on in those that it needs.
    library = ctypes.CDLL("torch_cpu.dll" if sys.platform == "win32" else torch._C.__file__)
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def _check_names(module: Any) -> None:
    """RuntimeError where the extension has other names, or another order, than this side."""
    signature = getattr(getattr(module, "decoder_step", None), "__text_signature__", None) or ""
    parameters = re.findall(r"\w+", signature.removeprefix("($module, "))
    for name, ours, theirs in [
        ("arguments of decoder_step", (*StepArguments._fields, "out"), parameters),
        ("INSTRUCTION_SETS", INSTRUCTION_SETS, getattr(module, "INSTRUCTION_SETS", "").split()),
        *((name, fields, getattr(module, name, "").split()) for name, fields in LAYOUT.items()),
    ]:
        if tuple(theirs) != ours:
            raise RuntimeError(f"{name} are {', '.join(theirs) or 'missing'}, not {', '.join(ours)}")
