"""Detects patched code: functions and classes of a library that other code replaced.

A function keeps the namespace it was compiled in, even if attributes of another function are copied to it. So a patch
is detected at any time, also one from before the import of bertgen.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterable
from typing import Any

from torch import nn

PACKAGES = frozenset({"torch", "transformers", "bertgen", "peft"})
_DATA = types.GetSetDescriptorType, types.MemberDescriptorType  # attributes that Python itself adds to a class
_IMPORTED = frozenset({"accelerate", "numpy", "huggingface_hub", "safetensors"})  # imported by transformers' files
# The methods by which torch calls a module.
CALL_METHODS = ("forward", "__call__", "_call_impl", "_wrapped_call_impl")
# Methods that do not run in a call. They build a model: deepspeed's zero.Init wraps the constructors of all modules. Or
# Python 3.14 adds them to a class with annotations, under another name than they were compiled with.
_NOT_CALLED = frozenset(
    {"__init__", "from_pretrained", "from_encoder_decoder_pretrained", "_init_weights"}
    | {"__annotate__", "__annotate_func__"}
)


def package(name: str) -> str:
    """The first part of a module's dotted name."""
    return name.partition(".")[0]


def is_known(module: str) -> bool:
    """Whether a module of this name belongs to one of PACKAGES or to Python's standard library."""
    return package(module) in PACKAGES or package(module) in sys.stdlib_module_names


def is_original(function: Any, place: str | None = None) -> bool:
    """Whether a function, and every function it wraps, was compiled in one of PACKAGES or in the standard library.

    Args:
        function: a function of a library. Decorators of the library declare what they wrap (`functools.wraps`).
        place: dotted module, class and name under which the innermost function was defined; None accepts any place.
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
    """The name of the first function or class in a module that is not an original one; None if all are."""
    for name, value in vars(namespace).items():
        if name.startswith("__"):  # written by Python or torch.compile
            continue
        if isinstance(value, (types.FunctionType, functools._lru_cache_wrapper)):
            original = is_original(value) or package(value.__module__ or "") in _IMPORTED
        elif isinstance(value, type):
            original = is_known(value.__module__) or package(value.__module__) in _IMPORTED
        else:  # loggers, tables, objects of typing; a callable of another kind replaced a function
            original = not callable(value) or package(type(value).__module__) in {"builtins", "typing", *PACKAGES}
        if not original:
            return f"{namespace.__name__}.{name}"
    return None


def patched_method(cls: type, names: Iterable[str] | None = None) -> str | None:
    """The first method of a class, inherited ones included, that is not an original one; None if all are.

    Args:
        names: the methods to check. None checks CALL_METHODS, and all methods of classes in transformers' `modeling_`
            files.
    """
    for owner in cls.__mro__:
        home = package(owner.__module__)
        if home in sys.stdlib_module_names:
            continue
        check_all = names is None and owner.__module__.startswith("transformers.models.")
        for name, value in vars(owner).items():
            if name in _NOT_CALLED or (not check_all and name not in (CALL_METHODS if names is None else names)):
                continue
            function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
            function = function.fget if isinstance(function, property) else function
            if isinstance(function, (type, *_DATA)) or not (callable(function) or hasattr(function, "__get__")):
                continue
            # nn.Module has aliases of its methods; accelerated classes have the names of transformers' classes.
            has_aliases = owner is nn.Module or home == "bertgen"
            place = None if has_aliases else f"{owner.__module__}.{owner.__qualname__}.{name}"
            if not is_original(function, place):
                return f"{owner.__qualname__}.{name}"
    return None
