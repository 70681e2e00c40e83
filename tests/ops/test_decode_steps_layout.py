"""The names of the tensors of decode_steps: the same in the sources, and compared when the extension is loaded."""

from __future__ import annotations

import pytest

from bertgen.ops import extension
from bertgen.ops.decode_steps_layout import LAYOUT
from tests.ops.test_step_layout import names, reason_of_another_load, swapped

needs_extension = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")


def test_the_sources_name_the_same_layout():
    header = "bindings/decode_steps_layout.h"
    assert LAYOUT.keys() == {"DECODER_PARTS", "STATIC_TABLES", "SAMPLING_STATE", "BEAM_STATE"}
    for name, fields in LAYOUT.items():
        assert fields == names(header, rf"define BERTGEN_{name}\(", "\n\n", r'FIELD\(k\w+, "(\w+)"\)')


@needs_extension
@pytest.mark.parametrize("name", LAYOUT)
def test_an_extension_with_another_layout_is_not_used(name, monkeypatch):
    monkeypatch.setattr(extension, "LAYOUT", {**extension.LAYOUT, name: swapped(LAYOUT[name])})
    theirs, ours = ", ".join(LAYOUT[name]), ", ".join(swapped(LAYOUT[name]))
    reason = reason_of_another_load(monkeypatch)
    assert reason == f"it was built from other sources ({name} are {theirs}, not {ours})"
