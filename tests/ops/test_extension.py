"""How the C++ extension is loaded."""

from __future__ import annotations

import sys

import pytest
import torch

from bertgen import BackendError
from bertgen.ops import extension

needs_extension = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")


def load_again(monkeypatch):
    monkeypatch.setattr(extension, "_reason", "")
    monkeypatch.delenv("BERTGEN_REQUIRE_EXT", raising=False)
    assert not extension.available()
    return extension.why_not()


@needs_extension
def test_an_extension_of_other_sources(monkeypatch):
    """A checkout that went on, and was not built again."""
    monkeypatch.delattr(sys.modules["bertgen._C"], "decoder_step")
    reason = load_again(monkeypatch)
    assert "(arguments of decoder_step are missing, not x, parameters, " in reason and ")" in reason


@needs_extension
def test_a_torch_without_what_the_extension_takes_of_it(monkeypatch):
    class Tensor:
        pass

    monkeypatch.setattr(extension.torch, "Tensor", Tensor)
    assert f"it does not fit torch {torch.__version__}: type object 'Tensor' has no attribute" in load_again(
        monkeypatch
    )
    monkeypatch.undo()
    monkeypatch.setattr(extension, "_address", lambda name: extension.ctypes.CDLL(None).no_such_function)
    assert "undefined symbol: no_such_function" in load_again(monkeypatch)


@needs_extension
def test_a_variable_chooses_the_instruction_set(monkeypatch):
    before = extension.instruction_set()
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
