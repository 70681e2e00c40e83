"""The names that the C++ extension and bertgen share: the same in the sources, and compared when it is loaded."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertgen.ops import extension
from bertgen.ops.step_layout import LAYOUT, StepArguments

CSRC = Path(__file__).parents[2] / "csrc"

needs_extension = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")


def names(path, start, end, pattern):
    """All matches of a pattern in a part of a source file."""
    part = re.search(rf"{start}(.*?){end}", (CSRC / path).read_text(encoding="utf-8"), re.DOTALL).group(1)
    return tuple(re.findall(pattern, part))


def test_the_sources_name_the_same_layout():
    """Without the extension: one that differs is not used, and then the tests of its operators do not run."""
    header = "bindings/decoder_step_layout.h"
    assert LAYOUT == {
        "LAYER_PARTS": names(header, r"kLayerParts\[\] = {", "};", r'{"(\w+)"'),
        "STEP_TABLES": names(header, r"define BERTGEN_STEP_TABLES", "\n\n", r'FIELD\(k\w+, "(\w+)"\)'),
        "LAYER_POOLS": names(header, r"define BERTGEN_LAYER_POOLS", "\n\n", r'FIELD\(k\w+, "(\w+)"\)'),
        "PROCESSORS": names("processors_cpu.h", r"kProcessorNames\[\] = {", "};", r'"(\w+)"'),
    }
    parameters = names("bindings/decoder_step.cpp", r'BERTGEN_KERNEL\("decoder_step", \w+,\s+"', '"', r"\w+")
    assert parameters == (*StepArguments._fields, "out")
    sets = names("instruction_sets.h", "define BERTGEN_INSTRUCTION_SETS", "\n\n", r'SET\(\w+, "(\w+)"')
    assert sets == extension.INSTRUCTION_SETS


@needs_extension
def test_the_extension_has_the_names_of_its_sources():
    from bertgen import _C

    assert tuple(inspect.signature(_C.decoder_step).parameters) == (*StepArguments._fields, "out")
    assert tuple(_C.INSTRUCTION_SETS.split()) == extension.INSTRUCTION_SETS
    for name, fields in LAYOUT.items():
        assert tuple(getattr(_C, name).split()) == fields


def swapped(fields):
    """With the last two in the other order."""
    *first, one, two = fields
    return (*first, two, one)


def reason_of_another_load(monkeypatch):
    monkeypatch.setattr(extension, "_reason", "")
    monkeypatch.delenv("BERTGEN_REQUIRE_EXT", raising=False)
    assert not extension.available()
    return extension.why_not()


@needs_extension
@pytest.mark.parametrize("name", LAYOUT)
def test_an_extension_with_another_layout_is_not_used(name, monkeypatch):
    monkeypatch.setattr(extension, "LAYOUT", {**LAYOUT, name: swapped(LAYOUT[name])})
    theirs, ours = ", ".join(LAYOUT[name]), ", ".join(swapped(LAYOUT[name]))
    reason = reason_of_another_load(monkeypatch)
    assert reason == f"it was built from other sources ({name} are {theirs}, not {ours})"


@needs_extension
def test_an_extension_with_other_arguments_is_not_used(monkeypatch):
    other = SimpleNamespace(_fields=swapped(StepArguments._fields))
    monkeypatch.setattr(extension, "StepArguments", other)
    assert "(arguments of decoder_step are x, parameters, " in reason_of_another_load(monkeypatch)


@needs_extension
def test_an_extension_without_names_is_not_used(monkeypatch):
    """As an extension that was built before the layout had names."""
    from bertgen import _C

    monkeypatch.delattr(_C, "LAYER_PARTS")
    assert "(LAYER_PARTS are missing, not query, key, " in reason_of_another_load(monkeypatch)
