"""The layout of the code: each module has a test of its name, and private names are used in their own module only.

python tests/test_layout.py --prune    # after a new test file: takes modules that have one from tested_elsewhere.txt
"""

from __future__ import annotations

import argparse
import ast
import textwrap
from pathlib import Path

from torch import nn

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("bertgen", "kernels", "bench")
    for path in (ROOT / folder).rglob("*.py")
)

# "module: test file" of each module without a test file of its name, and the file that tests it.
TESTED_ELSEWHERE = Path(__file__).with_name("tested_elsewhere.txt")

LONGEST_LIST = 20  # lower it when the list becomes shorter

# "file: name" of each private name that is used outside of its module. This list may only become shorter.
PRIVATE_USES = {
    "bertgen/ops/operators.py: _backend",  # read in every call: a function call would cost time
    "bertgen/tokenizer/base.py: _align",  # the parts of an encoding that are made on first use
}


def test_file_of(source):
    """bertgen/ops/registry.py -> tests/ops/test_registry.py; bertgen/hub.py -> tests/test_hub.py"""
    path = Path(source)
    return (Path("tests") / path.parent.relative_to("bertgen") / f"test_{path.name}").as_posix()


test_file_of.__test__ = False
MODULES = [s for s in SOURCES if s.startswith("bertgen/") and not Path(s).stem.startswith("__")]


def elsewhere():
    """Module -> the file that tests it, of the committed list."""
    lines = TESTED_ELSEWHERE.read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ") for line in lines if line and not line.startswith("#"))


def modules_without_a_test():
    return {source for source in MODULES if not (ROOT / test_file_of(source)).is_file()}


def test_every_module_has_a_test_of_its_name():
    missing = modules_without_a_test() - elsewhere().keys()
    assert not missing, f"write {[test_file_of(source) for source in sorted(missing)]}"


def test_the_list_of_modules_tested_elsewhere_only_becomes_shorter():
    listed = elsewhere()
    stale = listed.keys() - modules_without_a_test()
    assert not stale, f"python tests/test_layout.py --prune takes {sorted(stale)} from {TESTED_ELSEWHERE.name}"
    assert len(listed) <= LONGEST_LIST
    files = {test for test in listed.values() if not (ROOT / test).is_file()}
    assert not files, f"{TESTED_ELSEWHERE.name} names files that do not exist: {sorted(files)}"


def private(name):
    return name.startswith("_") and not name.startswith("__")


def defined_names(tree):
    """The private names that a module defines: variables, functions, classes, members and attributes of instances."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            yield node.attr


def is_self(node):
    """Whether an expression is the object or the class itself; a subclass may use what its base defines."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def foreign_names(tree, ours):
    """The private names that a module takes from others: by import, or as an attribute that only others define.

    Args:
        ours: private names that any module of the package defines; attributes of other names belong to other packages.
    """
    own = {*defined_names(tree), *vars(nn.Module())}  # attributes of any module belong to torch
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("bertgen")):
            names = {alias.name for alias in node.names if private(alias.name)}
            yield from names - own - {"_C"}  # the extension
        elif isinstance(node, ast.Attribute) and private(node.attr) and not is_self(node.value):
            if node.attr in ours and node.attr not in own:
                yield node.attr


TREES = {source: ast.parse((ROOT / source).read_text(encoding="utf-8")) for source in SOURCES}
# A file of cases belongs to its kernel.
for source in [source for source in TREES if source.endswith("_cases.py")]:
    if (kernel := source.replace("_cases.py", ".py")) in TREES:
        TREES[kernel].body += TREES.pop(source).body
OURS = {name for tree in TREES.values() for name in defined_names(tree) if private(name)}


def test_private_names_are_used_in_their_module_only():
    uses = {f"{source}: {name}" for source, tree in TREES.items() for name in foreign_names(tree, OURS)}
    assert uses - PRIVATE_USES == set(), "give these names without an underscore, or use something public"
    assert PRIVATE_USES - uses == set(), "these are gone: take them from the list"


def test_the_search_for_private_names_sees_every_use():
    source = """
        from .sample import _blocks, blocks
        from torch import _C
        class Cache:
            def __init__(self, other):
                self._rows = other._rows
                other._pages = self._inherited
                other._foreign_of_torch
    """
    names = foreign_names(ast.parse(textwrap.dedent(source)), {"_rows", "_pages", "_inherited", "_blocks"})
    assert sorted(names) == ["_blocks", "_pages"]


def prune():
    """Take modules that have a test file of their name, or are gone, from the list."""
    without = modules_without_a_test()
    lines = TESTED_ELSEWHERE.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.startswith("#") or line.partition(":")[0] in without]
    TESTED_ELSEWHERE.write_text("".join(kept), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prune", action="store_true", required=True)
    parser.parse_args()
    prune()
