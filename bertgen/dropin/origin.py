"""Whether code is what its library came with, or somebody has put other code in its place.

A function knows the namespace that it was compiled in, whatever is copied onto it later: that tells a patch from the
original whenever it was made, also before anything here was imported.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterable
from typing import Any

from torch import nn

PACKAGES = frozenset({"torch", "transformers", "bertgen", "peft"})
_DATA = types.GetSetDescriptorType, types.MemberDescriptorType  # what Python itself puts into a class
_IMPORTED = frozenset({"accelerate", "numpy", "huggingface_hub", "safetensors"})  # by files of transformers
# By which torch calls a module.
CALLED = ("forward", "__call__", "_call_impl", "_wrapped_call_impl")


def package(name: str) -> str:
    """The first part of the name of a module."""
    return name.partition(".")[0]


def is_known(module: str) -> bool:
    """Whether a module of this name belongs to one of PACKAGES or to Python."""
    return package(module) in PACKAGES or package(module) in sys.stdlib_module_names


def is_original(function: Any, place: str | None = None) -> bool:
    """Whether a function, and each that it wraps, was compiled in a module of PACKAGES or of Python itself.

    Args:
        function: of the library; the decorators it came with say what they wrap (`functools.wraps`).
        place: the module, the class and the name that the innermost one was written under, with dots; None is any.
    """
    if isinstance(function, types.BuiltinFunctionType):
        return True
    if isinstance(function, functools._lru_cache_wrapper):
        function = function.__wrapped__
    while isinstance(function, types.FunctionType):
        module = function.__globals__.get("__name__", "")
        if not is_known(module):
            return False
        inner = getattr(function, "__wrapped__", None)
        if inner is None:
            return place is None or f"{module}.{function.__qualname__}" == place
        function = inner
    return False


def patched_value(namespace: types.ModuleType) -> str | None:
    """The name of the first function or class in a module that is not an original one; None where all are."""
    for name, value in vars(namespace).items():
        if name.startswith("__"):  # of Python, and what torch.compile writes there
            continue
        if isinstance(value, (types.FunctionType, functools._lru_cache_wrapper)):
            fine = is_original(value) or package(value.__module__ or "") in _IMPORTED
        elif isinstance(value, type):
            fine = is_known(value.__module__) or package(value.__module__) in _IMPORTED
        else:  # typing's names, loggers, tables; what can be called here was a function
            fine = not callable(value) or package(type(value).__module__) in {"builtins", "typing", *PACKAGES}
        if not fine:
            return f"{namespace.__name__}.{name}"
    return None


# What makes a model, and is not called while it runs: deepspeed's zero.Init wraps the constructors of all modules.
_MAKERS = frozenset({"__init__", "from_pretrained", "from_encoder_decoder_pretrained", "_init_weights"})


def patched_method(cls: type, names: Iterable[str] | None = None) -> str | None:
    """The first method of a class, inherited ones included, that is not the original one; None where all are.

    Args:
        names: the methods that matter; None is all of those by which a module is called, and in a class of a
            `modeling_` file of transformers every one.
    """
    for owner in cls.__mro__:
        home = package(owner.__module__)
        if home in sys.stdlib_module_names:
            continue
        whole = names is None and owner.__module__.startswith("transformers.models.")
        for name, value in vars(owner).items():
            if name in _MAKERS or (not whole and name not in (CALLED if names is None else names)):
                continue
            function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
            function = function.fget if isinstance(function, property) else function
            if isinstance(function, (type, *_DATA)) or not (callable(function) or hasattr(function, "__get__")):
                continue
            # Those of nn.Module have second names, ours have the names of what they stand for.
            renamed = owner is nn.Module or home == "bertgen"
            place = None if renamed else f"{owner.__module__}.{owner.__qualname__}.{name}"
            if not is_original(function, place):
                return f"{owner.__qualname__}.{name}"
    return None
