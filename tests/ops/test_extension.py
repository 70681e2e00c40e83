"""How the C++ extension is loaded."""

from __future__ import annotations

import pytest
import torch

from bertgen import BackendError
from bertgen.ops import extension

needs_extension = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")


@needs_extension
def test_an_extension_of_other_sources(monkeypatch):
    """A checkout that went on, and was not built again."""

    def missing(name, function):
        raise RuntimeError(f"operator {name} does not exist")

    monkeypatch.setattr(torch.library, "register_fake", missing)
    monkeypatch.setattr(extension, "_reason", "")
    monkeypatch.delenv("BERTGEN_REQUIRE_EXT", raising=False)
    assert not extension.available()
    assert "bertgen_C::decode_attention does not exist): build it again" in extension.why_not()


@needs_extension
def test_a_variable_chooses_the_instruction_set(monkeypatch):
    before = extension.instruction_set()
    monkeypatch.setattr(torch.library, "register_fake", lambda *arguments: None)
    try:
        for name in ("portable", "sse9"):
            monkeypatch.setattr(extension, "_reason", "")
            monkeypatch.setenv("BERTGEN_CPU", name)
            if name == "portable":
                assert extension.instruction_set() == "portable"
            else:
                with pytest.raises(BackendError, match="'sse9' is not one of portable, avx2, avx512"):
                    extension.available()
    finally:
        monkeypatch.undo()
        extension.use_instruction_set(before)
