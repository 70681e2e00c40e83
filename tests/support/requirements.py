"""The dependencies and the extras of pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def project():
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]


def parsed(requirement: str) -> SpecifierSet:
    """The versions that a requirement allows, without its marker."""
    return Requirement(requirement).specifier


def core() -> dict[str, SpecifierSet]:
    """Package -> versions, of the packages that every installation has."""
    return {one.name: one.specifier for one in map(Requirement, project()["dependencies"])}


def extras() -> dict[str, list[Requirement]]:
    """Extra -> its own requirements."""
    return {name: [*map(Requirement, lines)] for name, lines in project()["optional-dependencies"].items()}


def optional() -> dict[str, SpecifierSet]:
    """Package -> versions, of the packages of all extras."""
    return {one.name: one.specifier for lines in extras().values() for one in lines if one.name != "bertgen"}
