"""Optional packages: errors name the operation that needs them; a block without transformers' messages."""

from __future__ import annotations

import sys

import pytest
import transformers

from bertgen import BackendError
from bertgen.optional_imports import load_ctranslate2, load_transformers, silence


def test_an_installed_package_is_returned():
    # Not the name above: transformers replaces its own module when a model is first imported.
    assert load_transformers("a test") is sys.modules["transformers"]


@pytest.mark.parametrize(
    "load, name, command",
    [
        (load_transformers, "transformers", r"pip install 'bertgen\[transformers\]'$"),
        (load_ctranslate2, "ctranslate2", "pip install ctranslate2$"),
        (load_ctranslate2, "ctranslate2.converters", "pip install ctranslate2$"),
    ],
)
def test_a_missing_package_is_named_with_the_purpose(monkeypatch, load, name, command):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=f"^a test needs a package that cannot be imported: .*{command}") as error:
        load("a test")
    assert isinstance(error.value.__cause__, ImportError)


@pytest.mark.parametrize("bars", [True, False])
def test_transformers_is_silent_inside_the_block_and_as_before_after_it(bars):
    log = transformers.logging
    verbosity, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    try:
        log.set_verbosity_info()
        (log.enable_progress_bar if bars else log.disable_progress_bar)()
        with pytest.raises(ValueError), silence(transformers):
            assert log.get_verbosity() == log.ERROR and not log.is_progress_bar_enabled()
            raise ValueError
        assert log.get_verbosity() == log.INFO and log.is_progress_bar_enabled() == bars
    finally:
        log.set_verbosity(verbosity)
        (log.enable_progress_bar if had_bars else log.disable_progress_bar)()
