"""Every `pip install` of the pages and messages works as written, with the bounds of the dependencies and extras."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from packaging.requirements import InvalidRequirement, Requirement

from tests.support import requirements

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
SOURCES = [path for folder in ("bertgen", "bench", "kernels") for path in (ROOT / folder).rglob("*.py")]
TOOLS = {"build", "cmake", "pip", "pre-commit", "setuptools", "uv", "wheel"}  # what a page may install besides
VALUED = {"-c", "--constraint", "--extra-index-url", "-f", "--find-links", "--index-url", "-i", "--python", "-C"}
COMMAND = re.compile(r"pip3? install((?: [^\n`;&|)]+)?)")


def strings(source):
    """The strings of a Python file; a value that is filled in is {}."""
    nodes = list(ast.walk(ast.parse(source)))
    filled = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in filled for part in node.values}
    for node in filled:
        yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def commands(path):
    """What follows `pip install`, of every such command in a page or a source file."""
    text = path.read_text(encoding="utf-8")
    if "install" not in text:
        return []
    return [tail for part in (strings(text) if path.suffix == ".py" else [text]) for tail in COMMAND.findall(part)]


def problem(tail):
    """Why a command does not work as it stands; None where it does."""
    tail = tail.replace("dist/bertgen-*", "dist/bertgen-0.1.0")  # as the shell does
    if re.search(r"[\[\]<>*]", re.sub(r"'[^']*'|\"[^\"]*\"", "", tail)):
        return "a shell reads brackets and < > *: quote the word"
    words = iter(shlex.split(tail.replace("--no-index --find-links wheelhouse bertgen", "")))  # what `pip wheel` made
    for word in words:
        if word in VALUED:
            next(words)
        elif not word.startswith("-") and word != "{}" and (reason := why_not(word)):
            return f"{word}: {reason}"
    return None


def why_not(word):
    """Why pip should not get a word; None for the checkout, its extras, and the packages that bertgen names."""
    if match := re.fullmatch(r"\.(?:\[([\w,]+)\])?", word):
        unknown = set((match[1] or "").split(",")) - {""} - requirements.extras().keys()
        return f"no extra {', '.join(unknown)}" if unknown else None
    if word.endswith((".whl", ".tar.gz")):
        return None if Path(word).name.startswith("bertgen-") else "another package"
    try:
        asked = Requirement(word)
    except InvalidRequirement:
        return "neither the checkout nor a package"
    core, optional = requirements.core(), requirements.optional()
    if asked.name in optional and asked.specifier != optional[asked.name]:
        return f"the extra has {asked.name}{optional[asked.name]}"
    if asked.name in core and any(
        one.operator == "==" and one.version not in core[asked.name] for one in asked.specifier
    ):
        return f"bertgen needs {asked.name}{core[asked.name]}"
    return None if asked.name in core.keys() | optional.keys() | TOOLS else "no package that bertgen names"


def test_every_install_line_works_as_written():
    found = {path: commands(path) for path in (*PAGES, *SOURCES)}
    names = {path.relative_to(ROOT).as_posix() for path, tails in found.items() if tails}
    assert names >= {"docs/install.md", "docs/transformers.md", "bertgen/optional_imports.py"}
    wrong = [(path.name, tail, why) for path, tails in found.items() for tail in tails if (why := problem(tail))]
    assert wrong == []


def test_nothing_installs_bertgen_from_an_index():
    """It is on none: pip would fail, or take the package of a stranger."""
    index = re.compile(r"bertgen\[|pip3? install (-\S+ )*['\"]?bertgen\b")
    paths = (*PAGES, *SOURCES, ROOT / "Makefile", ROOT / ".ci/run")
    assert [path.name for path in paths if index.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "tail, reason",
    [
        (" .", None),
        (" -c constraints.txt '.[plot,test]'", None),
        (" 'transformers>=5.16'", None),
        (" torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu", None),
        (" '{}'", None),
        (" .[test]", "quote"),
        (" transformers>=5.16", "quote"),
        (" '.[all]'", "no extra all"),
        (" transformers", "the extra has transformers>=5.16"),
        (" 'transformers>=4.40'", "the extra has transformers>=5.16"),
        (" torch==2.4.0", "bertgen needs torch"),
        (" 'bertgen[test]'", "no package that bertgen names"),
        (" matplotlob", "no package that bertgen names"),
    ],
)
def test_what_is_wrong_with_a_command(tail, reason):
    found = problem(tail)
    assert found is None if reason is None else reason in found
