"""transformers and CTranslate2, for what is about them: imported when that is asked for, and not before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import BackendError


def load_transformers(purpose: str) -> Any:
    """The module; BackendError, with the purpose, where it is not installed or cannot be imported."""
    try:
        import transformers
    except ImportError as error:
        raise _missing(purpose, error, "'bertgen[transformers]'") from error
    return transformers


def load_ctranslate2(purpose: str) -> Any:
    """The module, with its converters; BackendError as `load_transformers`."""
    try:
        import ctranslate2.converters
    except ImportError as error:
        raise _missing(purpose, error, "ctranslate2") from error
    return ctranslate2


def _missing(purpose: str, error: ImportError, packages: str) -> BackendError:
    return BackendError(f"{purpose} needs a package that cannot be imported: {error}; pip install {packages}")


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No warnings and no bars of transformers."""
    log = transformers.logging
    former, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(former)
        if bars:
            log.enable_progress_bar()
