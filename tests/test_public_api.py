"""The public names and their signatures are those of `tests/public_api.txt`.

python tests/test_public_api.py --write    # after a change that is meant, to be named in CHANGELOG.md
"""

from __future__ import annotations

import argparse
import enum
import importlib
import inspect
import sys
from pathlib import Path

import bertgen

LIST = Path(__file__).with_name("public_api.txt")
DOCUMENTED = {
    "bertgen.layers": ["AttentionContext"],
    "bertgen.modules": ["FeedForward", "Int4Linear", "LayerNorm", "MultiheadAttention"],
    "bertgen.ops": ["explain", "set_backend"],
}


def default(value):
    """A default as it is written; functions and sentinels by their name."""
    if isinstance(value, enum.Enum) or value is None or isinstance(value, (bool, int, float, str, tuple)):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def signature(function):
    """The parameters with their kinds and defaults. Annotations are not part of it: they name inner types too."""
    parts, kinds = [], inspect.Parameter
    before = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is kinds.KEYWORD_ONLY and before not in (kinds.KEYWORD_ONLY, kinds.VAR_POSITIONAL):
            parts.append("*")
        if before is kinds.POSITIONAL_ONLY and parameter.kind is not kinds.POSITIONAL_ONLY:
            parts.append("/")
        star = {kinds.VAR_POSITIONAL: "*", kinds.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        value = "" if parameter.default is kinds.empty else f"={default(parameter.default)}"
        parts.append(f"{star}{parameter.name}{value}")
        before = parameter.kind
    return f"({', '.join(parts)})"


def is_ours(function):
    return (getattr(function, "__module__", None) or "").partition(".")[0] == "bertgen"


def members(kind):
    """The lines of a class: its bases, how it is made, then what it or a base of bertgen's adds."""
    bases = [base.__qualname__ for base in kind.__mro__[1:-1] if not base.__qualname__.startswith("_")]
    yield f"bases: {', '.join(bases)}"
    if issubclass(kind, BaseException):
        return
    yield f"__init__{signature(kind)}"
    ours = [base for base in kind.__mro__ if is_ours(base)]
    for name in sorted({name for base in ours for name in vars(base) if not name.startswith("_")}):
        member = inspect.getattr_static(kind, name)
        if isinstance(member, property):
            yield f"{name}: property"
        elif isinstance(member, (staticmethod, classmethod)):
            yield f"{name}{signature(getattr(kind, name))}: {type(member).__name__}"
        elif inspect.isfunction(member):
            yield f"{name}{signature(member)}"
        else:
            yield f"{name}: attribute"


def describe(path, value):
    if inspect.isclass(value):
        return [f"class {path}", *(f"    {line}" for line in members(value))]
    return [f"{path}{signature(value)}" if callable(value) else f"{path}: {type(value).__name__}"]


def kernels():
    """Every function of `bertgen.kernels` that is a definition or starts a kernel."""
    for path in sorted((Path(__file__).parents[1] / "kernels").glob("*.py")):
        module = importlib.import_module(f"bertgen.kernels.{path.stem}")
        for name, value in sorted(vars(module).items()):
            if name.endswith(("_reference", "_triton")) and value.__module__ == module.__name__:
                yield from describe(f"{module.__name__}.{name}", value)


def options(parser, path):
    """The arguments of a command, then those of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from options(command, f"{path} {name}")
        elif action.dest != "help":
            choices = f" {{{','.join(map(str, action.choices))}}}" if action.choices else ""
            yield f"{path}: {' '.join(action.option_strings) or action.dest}{choices}"


def commands():
    from bertgen.cli import COMMANDS, _parser

    for command in COMMANDS:
        yield from (line for line in options(_parser([command]), "bertgen") if line.startswith(f"bertgen {command}"))


def public_api():
    lines = [line for name in sorted(bertgen.__all__) for line in describe(f"bertgen.{name}", getattr(bertgen, name))]
    for module, names in DOCUMENTED.items():
        for name in names:
            lines += describe(f"{module}.{name}", getattr(importlib.import_module(module), name))
    return [*lines, *kernels(), *commands()]


def test_public_names_and_signatures_are_those_of_the_list():
    assert public_api() == LIST.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        LIST.write_text("\n".join(public_api()) + "\n", encoding="utf-8")
    else:
        print("\n".join(public_api()))
