"""Registering bertgen with transformers."""

from __future__ import annotations

import sys

import pytest
from transformers import AttentionInterface, AttentionMaskInterface

import bertgen
from bertgen.dropin.attention import attend, visible_keys


def test_registering_is_explicit_and_can_be_repeated(monkeypatch):
    assert "bertgen.dropin.attention" in sys.modules
    bertgen.register_with_transformers()
    assert AttentionInterface()["bertgen"] is attend and AttentionMaskInterface()["bertgen"] is visible_keys
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(bertgen.BackendError, match="registering with transformers needs a package"):
        bertgen.register_with_transformers()


def test_an_old_transformers_is_refused(monkeypatch):
    # transformers replaces its own module when a model is first imported, so the name above may be another object.
    for version in ("4.57.1", "5.15.0"):
        monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
        with pytest.raises(bertgen.BackendError, match=f"needs transformers 5.16 or newer, got {version}"):
            bertgen.register_with_transformers()
    for version in ("5.16.0", "6.0.0.dev0"):
        monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
        bertgen.register_with_transformers()
